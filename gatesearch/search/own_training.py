"""`gs.search`: a search whose networks a function of the user's trains.

It draws parameters, keeps results and resumes as `gatesearch run` does (`Search`, the store), and
holds trials to their budgets; data, loop, losses and metrics are the function's.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget, count_macs, measure_of, parse_budget
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.events import Emit, Event, Warned
from gatesearch.execution.executors import ThisProcess
from gatesearch.execution.jobs import Job
from gatesearch.execution.pool import WorkerPool
from gatesearch.execution.worker import failed, perform_once
from gatesearch.library.network import InterroGate
from gatesearch.library.own_heads import HeadLike, accept_heads
from gatesearch.library.projection import budget_texts, counted_costs
from gatesearch.methods import (
    NetworkSpec,
    binding_methods,
    check_study,
    method_of,
    tuned_methods,
)
from gatesearch.methods.definitions import options_of
from gatesearch.methods.interrogate.method import INTERROGATE
from gatesearch.models import Parts, parts_of
from gatesearch.models.model_factory import OWN, OwnHead, features_for
from gatesearch.pruning.compact import check_saveable
from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result, StudyRecord
from gatesearch.search.networks import Networks
from gatesearch.search.own_trial import Trial, input_shape
from gatesearch.search.plans import drawn_plan
from gatesearch.search.run import backed_up
from gatesearch.search.search import Search
from gatesearch.search.setup import task_infos
from gatesearch.stopping import never
from gatesearch.store.database import explained
from gatesearch.store.lock import locked
from gatesearch.store.opening import begin_anew, open_store
from gatesearch.store.status import StatusFile
from gatesearch.store.store import Store
from gatesearch.study import Study
from gatesearch.tasks import Task, build_tasks
from gatesearch.training import TrainingError
from gatesearch.trials.kept_networks import HEADS, keep_network, network_state

HeadFactory = Callable[[], Mapping[str, HeadLike]]

_LOG = logging.getLogger("gatesearch")


@dataclass(frozen=True)
class _Context:
    """What the search knows; see `SearchContext`."""

    study: Study
    tasks: dict[str, Task]
    data: dict[str, object]


Train = Callable[[Trial], Mapping[str, float]]


def search(
    study: Study,
    train: Train,
    *,
    n_trials: int | None = None,
    budgets: str | Sequence[str] = (),
    heads: HeadFactory | None = None,
    out: str | Path | None = None,
    emit: Emit | None = None,
) -> StudyRecord:
    """Search InterroGate's hyperparameters with a training function of your own.

    The study's baselines are trained first (`stl` always), then trials, one after another in this
    process. The same call goes on where an earlier one was cut off, and trains nothing twice.
    `gatesearch report`, `select` and `status` read the store. Before each training, torch's random
    generator is seeded with the study's seed.

    Not done: several workers, controls, early stopping, searches of other methods, of weightings or
    of weights of losses, warm-up and fine-tuning by the study's options (the function can do both),
    budgets of latency, figures on a test part, pictures of predictions, and the cost of training.
    `gatesearch run` does not go on with such a store. A change of the function is not noticed:
    name another `out` after one.

    Args:
        study: The definition: tasks (their kinds say in which direction a metric is better), image
            size, backbone, ranges of `search`, options of `interrogate`. Its data set is not
            opened, but `data` and `training` are part of the fingerprint, so state them truly.
        train: Trains `trial.network` on your data, and returns task -> metric on the validation
            part, for the network that `trial.prune()` returned. Raising
            `gatesearch.training.TrainingError`, or running out of device memory, makes the trial a
            failed one; any other exception ends the search, and the same call tries it again.
        n_trials: Total number of trials, earlier ones included; 20 when None, 0 for baselines only.
        budgets: Upper bounds on the cost of every trial, in the forms of `gs.project` but latency.
        heads: Makes new heads, task -> module, for each network (see `gs.InterroGate`); those of
            the study's `model.head` when None.
        out: Folder of the store; `runs/NAME` when None.
        emit: Receives events; the logger `gatesearch` when None.

    Returns:
        Everything in the store: `record.front` are the trials that no other dominates.

    Raises:
        UsageError: The study asks for what is not done, a budget cannot be reached, or heads are
            refused; nothing was trained then. Or the function returned no metrics of its tasks.
        StudyRefusedError: The store belongs to another definition or to `gatesearch run`, or
            another process holds it.
        DataError: A folder cannot be written.
        TrainingError: The single-task networks failed.
    """
    study = _checked(study)
    folder = Path("runs") / study.name if out is None else Path(out)
    if not callable(train) or not isinstance(n_trials, int | None) or (n_trials or 0) < 0:
        raise UsageError(
            "search takes a function that trains, and a number of trials of 0 or more, found "
            f"{train!r:.100} and n_trials={n_trials!r:.20}"
        )
    parsed = _check_networks(study, budget_texts(budgets), heads)
    wanted = INTERROGATE.default_trials if n_trials is None else n_trials
    hear = _log if emit is None else emit
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained(folder, ""))
        stack.enter_context(locked(folder))
        store = open_store(
            study, folder=folder, tasks=task_infos(study), complete=check_study,
            binding=binding_methods,
        )  # fmt: skip
        stack.callback(store.close)
        context = _Context(study, build_tasks(study.tasks), _data(study, heads))
        _keep_data(store, context)
        plan = drawn_plan(INTERROGATE, study, store, budgets=parsed, n_trials=wanted)
        status = StatusFile(
            folder, study=study.name, fingerprint=study.fingerprint, tune=(INTERROGATE.name,),
            budget="+".join(sorted(budget.text for budget in parsed)), wanted=wanted,
            n_trials=n_trials,
        )  # fmt: skip
        stack.callback(status.close)

        def perform(job: Job, tell: Emit) -> Result:
            return perform_once(
                job, lambda: _train(job, study, train, heads, tell), emit=tell, stop=never
            )

        pool = WorkerPool(ThisProcess(perform), 1, hear, never, status)
        changed = stack.enter_context(backed_up(study, folder, hear, on=True))
        networks = Networks(store, context, hear, data=folder, changed=changed)
        running = Search(networks, pool, status)
        running.show_earlier([plan.name])
        shared = [method for method in study.methods if method != SINGLE_TASK]
        running.train_bases([SINGLE_TASK, *shared], seeds=[study.seed])
        running.run_trials([plan])
        return store.record()


def _log(event: Event) -> None:
    if not event.message:
        return
    level = logging.WARNING if isinstance(event, Warned) else logging.INFO
    _LOG.log(level, "%s", event.message)


def _checked(study: Study) -> Study:
    """Refuse a study that asks for what is not done here.

    Raises:
        UsageError: It does.
    """
    if not isinstance(study, Study):
        raise UsageError(
            f"search takes a study, found {type(study).__name__}; make one with gs.Study(...) or "
            "gs.load_study(FILE)"
        )
    study = check_study(study)
    options = options_of(study, INTERROGATE)
    tuned = [name for name in tuned_methods(study) if name != INTERROGATE.name]
    asked = {
        f"tune = {tuned}": bool(tuned),
        f"weightings = {list(study.weightings)}": study.weightings != ("uniform",),
        f"search.weighting = {list(study.search.weighting)}": study.search.weighting
        != ("uniform",),
        f"search.stop = '{study.search.stop}'": study.search.stop != "none",
        f"interrogate.warmup = {options.warmup}": options.warmup > 0,
        f"interrogate.finetune = {options.finetune}": options.finetune > 0,
    }
    for key, is_asked in asked.items():
        if is_asked:
            raise UsageError(
                f"gs.search leaves loss and schedule to your function and searches InterroGate "
                f"alone, found {key}; leave it out, or use `gatesearch run`"
            )
    return study


def _check_networks(
    study: Study, budgets: Sequence[str], heads: HeadFactory | None
) -> tuple[Budget, ...]:
    """Build every network once, count what heads cost, and read the budgets.

    Raises:
        UsageError: A network cannot be built, counted or saved, or a budget is out of reach.
    """
    if heads is not None:
        first, second = _heads(study, heads), _heads(study, heads)
        parameters = {id(p) for head in first.values() for p in head.parameters()}
        if any(id(p) in parameters for head in second.values() for p in head.parameters()):
            raise UsageError(
                "heads must be a function that makes new modules each time, as every network is "
                "trained from the start; found the same ones twice: build them inside the function"
            )
    parts_of(study)  # loads pretrained weights, and so refuses a missing file
    for text in budgets:
        if measure_of(text) == "latency":
            raise UsageError(
                f"gs.search bounds FLOPs or parameters, found {text}; use `gatesearch run`, or "
                "gs.project on a trained network, for a budget of latency"
            )
    for method in {SINGLE_TASK, *study.methods}:
        network = _build(NetworkSpec(method, study.seed), study, None, heads, pretrained=False)
        check_saveable(network)
        count_macs(network, input_shape(study), cross_check=False)
    spec = NetworkSpec(INTERROGATE.name, study.seed, 0)
    supernet = _build(spec, study, None, heads, pretrained=False)
    assert isinstance(supernet, InterroGate)
    ends = counted_costs(supernet, study.protocol.size)
    parsed = [parse_budget(text, mtl=ends[MULTI_TASK], stl=ends[SINGLE_TASK]) for text in budgets]
    INTERROGATE.check(study, budgets)
    return tuple(parsed)


def _heads(study: Study, make: HeadFactory) -> dict[str, nn.Module]:
    if not callable(make):
        raise UsageError(
            "heads must be a function without arguments that returns task -> module, found "
            f"{type(make).__name__}; write it as `lambda: {{...}}`"
        )
    heads = accept_heads(make())
    if heads.keys() != study.tasks.keys():
        raise UsageError(
            f"heads must be those of the study's tasks, {', '.join(study.tasks)}, found "
            f"{', '.join(heads)}"
        )
    return {task: heads[task] for task in study.tasks}


def _build(
    spec: NetworkSpec,
    study: Study,
    state: Mapping[str, Tensor] | None,
    heads: HeadFactory | None,
    *,
    pretrained: bool = True,
) -> nn.Module:
    """Build a network with its first weights.

    Args:
        spec: The network.
        study: The definition.
        state: State dict of the trained single-task networks that it starts from.
        heads: Makes heads; None for the study's.
        pretrained: False leaves out pretrained weights.
    """
    parts: Parts = parts_of(study, seed=spec.seed, stl=state, pretrained=pretrained)
    if heads is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed % 2**64)
            own = _heads(study, heads)
            if spec.method == SINGLE_TASK and len({*map(id, own.values())}) < len(own):
                # Single-task networks share nothing.
                own = {task: _heads(study, heads)[task] for task in own}
        graph = parts.graph
        specs = {
            task: OwnHead(head, graph.outputs, features_for(graph, head))
            for task, head in own.items()
        }
        parts = replace(parts, heads=specs)
    if spec.method == INTERROGATE.name:
        return InterroGate.of(parts, options_of(study, INTERROGATE))
    method = method_of(spec.method)
    return method.build(parts, options_of(study, method))


def _train(job: Job, study: Study, train: Train, heads: HeadFactory | None, emit: Emit) -> Result:
    """Have the function train a job's network; measure its cost, and keep it."""
    spec, start = job.spec, job.start
    state = None if start is None else network_state(start, out=job.out)
    network = _build(spec, study, state, heads)
    folder = job.folder / "training"
    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(spec, study, network, folder=folder, options=options_of(study, INTERROGATE))
    torch.manual_seed(spec.seed % 2**64)
    began = time.perf_counter()
    try:
        metrics = _metrics(study, train(trial))
    except (TrainingError, torch.OutOfMemoryError) as error:
        return failed(spec, str(error))
    seconds = time.perf_counter() - began
    final = trial.final
    module = final.module.eval()
    cost = count_macs(module, input_shape(study))
    for line in cost.disagreements:
        emit(Warned(f"{spec.label}: {line}"))
    reused = 0.0 if start is None else start.train_seconds
    return Result(
        method=spec.method,
        seed=spec.seed,
        trial=spec.trial,
        weighting=spec.weighting,
        budget=spec.budget,
        params=dict(spec.params),
        metrics={"validation": metrics},
        gflops=cost.gflops,
        backbone_gflops=cost.backbone_gflops,
        params_m=cost.params_m,
        uncounted=dict(cost.uncounted),
        train_seconds=seconds + reused,
        reused_seconds=reused,
        layers=final.layers,
        sharing=final.sharing or {},
        environment={"training": "function of the user"} | ({} if heads is None else {HEADS: OWN}),
        files=keep_network(module, job.folder),
    )


def _metrics(study: Study, returned: object) -> dict[str, float]:
    """Convert what the function returned.

    Raises:
        UsageError: It is no dict of numbers, one for each task.
    """
    if isinstance(returned, Mapping) and returned.keys() == study.tasks.keys():
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return {task: float(returned[task]) for task in study.tasks}
    raise UsageError(
        "a training function must return the metric of each task on the validation part, "
        f"{{{', '.join(f'{task!r}: number' for task in study.tasks)}}}, found {returned!r:.200}"
    )


def _data(study: Study, heads: HeadFactory | None) -> dict[str, object]:
    """Describe the data, so that no other kind of search goes on with the store."""
    pack = "data of the user's training function" + (
        "" if heads is None else ", heads of the user's"
    )
    return {
        "pack": pack,
        "sha256": hashlib.sha256(pack.encode()).hexdigest(),
        "validation": study.data.validation,
        "notes": ["trained by a function of the user's (gs.search)"],
    }


def _keep_data(store: Store, context: _Context) -> None:
    """Note in the store whose data it is made on; refuse that of another kind of search.

    Raises:
        StudyRefusedError: It holds results of another kind.
    """
    stored = store.attribute("data")
    if stored and stored["sha256"] != context.data["sha256"]:
        if store.methods() or store.numbers:
            raise StudyRefusedError(
                f"{store.folder} was made on other data: {stored['pack']}, now "
                f"{context.data['pack']}; name another folder with out=..."
            )
        begin_anew(store, context.study, task_infos(context.study))
    store.keep("data", context.data)
    store.keep("runtime", {})
