"""The run of a study: baselines first, then searches, then the test part once."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gatesearch.cost import name_of
from gatesearch.errors import StudyRefusedError
from gatesearch.events import Emit, Progress, Warned
from gatesearch.execution.executors import open_executor
from gatesearch.execution.pool import WorkerPool
from gatesearch.execution.worker import perform
from gatesearch.methods import Context, NetworkSpec, binding_methods, check_study
from gatesearch.results import SINGLE_TASK, Result, StudyRecord, front
from gatesearch.search.plans import method_plan
from gatesearch.search.predictions import draw_predictions
from gatesearch.search.reuse import check_reuse
from gatesearch.search.search import Search
from gatesearch.search.setup import ExecutionOptions, Setup, check_run, task_infos
from gatesearch.stopping import Stop, stoppable
from gatesearch.store.backup import Backups
from gatesearch.store.database import explained
from gatesearch.store.lock import advisory_lock, locked
from gatesearch.store.status import StatusFile
from gatesearch.store.store import Store, open_store
from gatesearch.study import Study
from gatesearch.trials.context import open_context
from gatesearch.trials.trial import measure_on_test

HERE = ExecutionOptions()


def run(
    study: Study,
    *,
    n_trials: int | None,
    out: Path,
    data: Path,
    emit: Emit,
    budgets: Sequence[str] = (),
    prefer: Mapping[str, float] | None = None,
    options: ExecutionOptions = HERE,
    reuse: Path | None = None,
) -> StudyRecord:
    """Bring each search of a study to a total of `n_trials`, and measure on the test part.

    What the store already has is never trained again: the same call continues where the last one
    ended, and with nothing left to do it only reads.

    Args:
        study: The definition; its `methods` are the baselines, trained first, and the methods
            that it tunes are searched one after the other.
        n_trials: Total of each search; 0 trains the baselines and searches nothing; the tuned
            method's own number when None.
        out: The store's folder.
        data: Folder of packs.
        emit: Receives events.
        budgets: Upper bounds on every trial's cost, as `parse_budget` reads them; `n_trials`
            then counts the trials under these bounds, which share baselines with all others.
        prefer: Task -> how much it matters (`delta_mtl`) in the choice among what a supernet
            offers.
        options: Workers, their executor, the store's server.
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
    setup = check_run(study, budgets, options)
    study = setup.study
    if reuse is not None:
        check_reuse(reuse)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stoppable())
        stack.enter_context(explained(out))
        stack.enter_context(locked(out))
        if options.storage:
            stack.enter_context(advisory_lock(options.storage, study.name))
        store = open_store(
            study, folder=out, tasks=task_infos(study), storage=options.storage,
            complete=check_study, binding=binding_methods,
        )  # fmt: skip
        stack.callback(store.close)
        context = _context(setup, store, data=data, emit=emit)
        trials = {
            name: method.default_trials if n_trials is None else n_trials
            for name, method in setup.tuned.items()
        }
        status = _status(setup, out, options, wanted=max(trials.values()))
        stack.callback(status.close)
        pool = _pool(context, options, emit, stop, status)
        stack.callback(pool.executor.shutdown)
        changed = stack.enter_context(_backed_up(study, out, emit, on=not options.storage))
        search = Search(
            store, context, pool, status, data=data, changed=changed, devices=options.devices,
            reuse=reuse,
        )  # fmt: skip
        search.train_bases(setup.baselines)

        def single_task() -> Result:
            result = search.known(NetworkSpec(SINGLE_TASK, study.seed))
            assert result is not None
            return result

        for name, method in setup.tuned.items():
            plan = method_plan(
                method, context, store, single_task=single_task, budgets=setup.budgets,
                prefer=prefer or {}, emit=emit,
            )  # fmt: skip
            if len(setup.tuned) > 1:
                plan = replace(plan, stage=f"search {plan.name}")
            search.run_trials(plan, trials[name])
        return _measure_chosen(context, store, emit)


def _status(setup: Setup, out: Path, options: ExecutionOptions, *, wanted: int) -> StatusFile:
    return StatusFile(
        out,
        study=setup.study.name,
        fingerprint=setup.study.fingerprint,
        tune=tuple(setup.tuned) if setup.study.tune else (),
        budget=name_of(setup.budgets),
        storage=options.shown_storage,
        wanted=wanted,
    )


def _pool(
    context: Context, options: ExecutionOptions, emit: Emit, stop: Stop, status: StatusFile
) -> WorkerPool:
    executor = open_executor(
        options.executor,
        options.workers,
        devices=options.devices,
        perform=lambda job, emit: perform(job, context, emit=emit, stop=stop),
    )
    return WorkerPool(executor, options.workers, emit, stop, status)


@contextlib.contextmanager
def _backed_up(study: Study, out: Path, emit: Emit, *, on: bool) -> Iterator[Callable[[], None]]:
    """Give what is to be called after every change of a database that lies in a file."""
    backups = Backups(
        out,
        warn=lambda message: emit(Warned(message)),
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


def _context(setup: Setup, store: Store, *, data: Path, emit: Emit) -> Context:
    """The study's data, which must be those of the store, and the runtime of the store."""
    context = open_context(setup.study, data=data, stored=store.attribute("runtime"), emit=emit)
    known = store.attribute("data")
    sha256 = str(context.data["sha256"])
    if known is not None and known["sha256"] != sha256:
        raise StudyRefusedError(
            f"{store.folder} was made on other data: {known['pack']} {known['sha256'][:12]}, now "
            f"{sha256[:12]}; name another folder with --out, or the old --data"
        )
    store.keep("data", context.data)
    runtime = context.runtime
    kept = {"precision": runtime.precision, "memory_format": runtime.memory_format}
    store.keep("runtime", kept)
    return replace(context, stopwatch=setup.stopwatch)


def _measure_chosen(context: Context, store: Store, emit: Emit) -> StudyRecord:
    """Measure on the official test part, once for each network of the front and each baseline."""
    record = store.record()
    shown = [*record.baselines, *front(record)]
    shown = [result for result in shown if result.state == "complete"]
    missing = [result for result in shown if "test" not in result.metrics]
    for done, result in enumerate(missing, start=1):
        store.keep_test(result, measure_on_test(result, context, out=store.folder))
        emit(Progress("test part", done, len(missing), "networks"))
    of_this_seed = [result for result in shown if result.seed == context.study.seed]
    draw_predictions(of_this_seed, context, out=store.folder)
    # Read again where there is more now: test figures, the file of predictions.
    drawn = record.predictions is not None or context.study.report_frames == 0
    return record if drawn and not missing else store.record()
