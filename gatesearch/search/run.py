"""The run of a study: baselines first, then trials, then the test part once."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gatesearch.cost import Budget, measure_layers, measure_of, name_of, parse_budget
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.execution.executors import open_executor
from gatesearch.execution.pool import WorkerPool
from gatesearch.methods import build_model, method_of, needs_stl
from gatesearch.methods.context import (
    Context,
    Emit,
    Stopwatch,
    check_dataset,
    open_context,
    progress,
)
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import GatedSupernet, parts_of
from gatesearch.results import StudyRecord, TaskInfo, front
from gatesearch.search.one_shot import chooser
from gatesearch.search.predictions import draw_gallery
from gatesearch.search.reuse import check_reuse
from gatesearch.search.search import Search, SearchPlan
from gatesearch.search.space import SCALAR, draw, draw_shares, listed, search_of
from gatesearch.stopping import stoppable
from gatesearch.store.backup import Backups
from gatesearch.store.database import explained
from gatesearch.store.lock import advisory_lock, locked, server_url
from gatesearch.store.status import StatusFile
from gatesearch.store.store import Store, open_store
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import resolve_runtime
from gatesearch.training.weightings import build_weighting
from gatesearch.trials.costs import costs
from gatesearch.trials.trial import measure_on_test


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """What a run has at hand.

    Attributes:
        workers: Trainings at a time.
        executor: `process`, `ray`, or `ray://ADDRESS` of a cluster.
        devices: How many train one network together.
        storage: `postgresql://...` of the store; empty for SQLite in its folder.
        device: Where latency is measured, for budgets of it; the one trained on by default.
    """

    workers: int = 1
    executor: str = "process"
    devices: int = 1
    storage: str = ""
    device: str = ""

    @property
    def shown_storage(self) -> str:
        """The server without its password."""
        return server_url(self.storage).render_as_string() if self.storage else ""


HERE = ExecutionOptions()


def run(
    study: Study,
    *,
    n_trials: int,
    out: Path,
    data: Path,
    emit: Emit,
    budgets: Sequence[str] = (),
    prefer: Mapping[str, float] | None = None,
    means: ExecutionOptions = HERE,
    reuse: Path | None = None,
) -> StudyRecord:
    """Bring a search to a total of `n_trials` trials, and measure its networks on the test part.

    What the store already has is never trained again: the same call continues where the last one
    ended, and with nothing left to do it only reads.

    Args:
        study: The definition; its `methods` are the baselines, trained first.
        n_trials: Total of the search, `search.mode = "one_shot"` being one of its own; 0 trains the
            baselines and searches nothing.
        out: The store's folder.
        data: Folder of packs.
        emit: Receives events.
        budgets: Upper bounds on every trial's cost, as `parse_budget` reads them; `n_trials`
            then counts the trials under these bounds, which share baselines with all others.
        prefer: Task -> how much it matters (`delta_mtl`) in the choice of one-shot networks.
        means: Workers, their executor, the store's server.
        reuse: Folder of another store, whose baselines are taken over where they would be trained
            the same.

    Raises:
        UsageError: A definition that cannot be built, a budget that cannot be reached, or nothing
            to reuse.
        DataError: Data missing or damaged, or a folder that cannot be written.
        StudyRefusedError: The store belongs to another definition or process.
        TrainingError: The single-task networks, which everything is measured against, failed.
        KeyboardInterrupt: It was asked to stop; checkpoints of all trainings are kept.
    """
    baselines = _checked(study)
    if reuse is not None:
        check_reuse(reuse)
    stopwatch = None
    if timed(budgets):
        if (means.workers, means.devices, means.executor) != (1, 1, "process"):
            raise UsageError(
                "a budget of latency is measured while nothing else runs: it takes --workers 1, "
                f"--devices-per-trial 1 and no --executor, found {means.workers}, {means.devices} "
                f"and {means.executor}"
            )
        stopwatch = start_stopwatch(study, means.device)
    bounds = parse_budgets(study, budgets, stopwatch)
    one_shot = study.search.mode == "one_shot"
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stoppable())
        stack.enter_context(explained(out))
        stack.enter_context(locked(out))
        if means.storage:
            stack.enter_context(advisory_lock(means.storage, study.name))
        store = open_store(study, folder=out, tasks=task_infos(study), storage=means.storage)
        stack.callback(store.close)
        bench = replace(_bench(study, store, data=data, emit=emit), stopwatch=stopwatch)
        executor = open_executor(means.executor, means.workers, devices=means.devices)
        stack.callback(executor.shutdown)
        name = search_of(name_of(bounds), one_shot=one_shot)
        board = StatusFile(
            out, study=study.name, fingerprint=study.fingerprint, search=name,
            budget=name_of(bounds), storage=means.shown_storage, wanted=n_trials,
        )  # fmt: skip
        stack.callback(board.close)
        crew = WorkerPool(executor, means.workers, bench, emit, stop, board)
        changed = stack.enter_context(_backed_up(study, out, emit, on=not means.storage))
        search = Search(store, crew, data=data, changed=changed, devices=means.devices, reuse=reuse)
        search.train_bases(baselines)
        first = NetworkSpec(
            "interrogate", study.seed, 0, budgets=bounds, one_shot=one_shot,
            weighting="uniform" if one_shot else study.search.weighting[0],
        )  # fmt: skip
        hunt = SearchPlan(
            name, first, lambda trial: draw(trial, study.search, study.task_names),
            choose=lambda: listed(study.search.first, _tried(store, name, study.seed)),
        )  # fmt: skip
        if one_shot:
            stl = search.known(NetworkSpec("stl", study.seed))
            assert stl is not None
            hunt = SearchPlan(
                name, first, lambda trial: draw_shares(trial, study.task_names),
                choose=lambda: chooser(
                    bench, store, stl, budgets=bounds, prefer=prefer or {}, emit=emit
                ),
            )  # fmt: skip
        search.run_trials(hunt, n_trials)
        return _measure_chosen(bench, store, emit)


def _tried(store: Store, name: str, seed: int) -> list[Mapping[str, float | str]]:
    """Parameters of a search's trials with this seed, and of those that will go on."""
    ended = [result.params for result in store.results(name) if result.seed == seed]
    return ended + [begun.params for begun in store.unfinished() if begun.search == name]


@contextlib.contextmanager
def _backed_up(study: Study, out: Path, emit: Emit, *, on: bool) -> Iterator[Callable[[], None]]:
    """Give what is to be called behind every change of a database that lies in a file."""
    backups = Backups(
        out,
        warn=lambda message: emit({"event": "warning", "message": message}),
        minutes=study.execution.backup_minutes,
    )
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1
        if on:
            backups.after_change()

    try:
        yield changed
    finally:
        if on and changes:
            backups.close()


def timed(budgets: Sequence[str]) -> bool:
    """Whether a budget bounds latency.

    Raises:
        UsageError: Not a budget.
    """
    return "latency" in [measure_of(text) for text in budgets]


def start_stopwatch(study: Study, device: str) -> Stopwatch:
    """Measure the layers of a study's supernet.

    Args:
        study: The definition.
        device: `cpu`, `cuda` or `mps`; empty for the one trained on.

    Raises:
        UsageError: The device is not there.
    """
    runtime = resolve_runtime("fp32", study.training.memory_format)
    there = {"cpu", runtime.device}
    if device and device not in there:
        raise UsageError(
            f"--device must be one that torch can use here ({', '.join(sorted(there))}), found "
            f"'{device}'; install its driver and a build of torch for it"
        )
    runtime = replace(runtime, device=device or runtime.device)
    supernet = build_model(study, "interrogate", pretrained=False)
    assert isinstance(supernet, GatedSupernet)
    return Stopwatch(runtime, measure_layers(supernet, (1, 3, *study.protocol.size), runtime))


def parse_budgets(
    study: Study, budgets: Sequence[str], stopwatch: Stopwatch | None = None
) -> tuple[Budget, ...]:
    """Budgets of a study, checked against what its networks can cost.

    A budget of latency is named with its device, as `12ms@cpu`.

    Raises:
        UsageError: Not a budget, or out of reach.
    """
    if not budgets:
        if "flops" in study.search.regulariser:
            raise UsageError(
                'search.regulariser "flops" bounds cost by a budget; add --budget, such as 1.3xMTL'
            )
        return ()
    ends = costs(study, ("mtl", "stl"))
    latency = None if stopwatch is None else stopwatch.table.ends
    parsed = [
        parse_budget(text, mtl=ends["mtl"], stl=ends["stl"], latency=latency) for text in budgets
    ]
    return tuple(
        replace(budget, text=f"{budget.text}@{stopwatch.runtime.device}")
        if stopwatch is not None and budget.measure == "latency"
        else budget
        for budget in parsed
    )


def task_infos(study: Study) -> tuple[TaskInfo, ...]:
    """What a report must know of a study's tasks."""
    return tuple(
        TaskInfo(
            name,
            task.metric,
            task.unit,
            task.higher_is_better,
            study.tasks[name].kind,
            task.drawing,
            study.tasks[name].classes,
        )
        for name, task in build_tasks(study.tasks).items()
    )


def _checked(study: Study) -> tuple[str, ...]:
    """The baselines in order of training; everything that can be refused is refused here."""
    for method in (*study.methods, *study.options):
        method_of(method)
    _check_weightings(study)
    check_dataset(study)
    parts_of(study)  # its weights
    with torch.device("meta"):
        for method in {*study.methods, *study.options, "interrogate"}:
            needs_stl(study, method)
            build_model(study, method, pretrained=False)
    rest = [method for method in study.methods if method not in ("stl", "interrogate")]
    return ("stl", *rest)


def _check_weightings(study: Study) -> None:
    omega = {name: task.weight for name, task in study.tasks.items()}
    for name in (*study.weightings, *study.search.weighting, *study.balance):
        build_weighting(name, omega, options=study.balance.get(name))
    for key, names in (("search.weighting", study.search.weighting), ("balance", study.balance)):
        if SCALAR in names:
            raise UsageError(
                f"{key} cannot have '{SCALAR}', whose weights are a search of their own; name it "
                "in weightings, and its range in search.scalar"
            )


def _bench(study: Study, store: Store, *, data: Path, emit: Emit) -> Context:
    bench = open_context(study, data=data, stored=store.attribute("runtime"), emit=emit)
    known = store.attribute("data")
    if known is not None and known["sha256"] != bench.data["sha256"]:
        raise StudyRefusedError(
            f"{store.folder} was made on other data: {known['pack']} {known['sha256'][:12]}, now "
            f"{bench.data['sha256'][:12]}; name another folder with --out, or the old --data"
        )
    store.keep("data", bench.data)
    runtime = bench.runtime
    kept = {"precision": runtime.precision, "memory_format": runtime.memory_format}
    store.keep("runtime", kept)
    return bench


def _measure_chosen(bench: Context, store: Store, emit: Emit) -> StudyRecord:
    """The official test part, once for each network of the front and each baseline."""
    record = store.record()
    shown = [*record.baselines, *front(record)]
    shown = [result for result in shown if result.state == "complete"]
    missing = [result for result in shown if "test" not in result.metrics]
    for done, result in enumerate(missing, start=1):
        store.keep_test(result, measure_on_test(result, bench, out=store.folder))
        progress(emit, "test part", done, len(missing), "networks")
    own = [result for result in shown if result.seed == bench.study.seed]
    draw_gallery(own, bench, out=store.folder)
    # Read again where there is more now: test figures, the file of predictions.
    drawn = record.predictions is not None or bench.study.report_frames == 0
    return record if drawn and not missing else store.record()
