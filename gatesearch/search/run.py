"""Run a study: train baselines, then search, then measure once on the test part."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gatesearch.cost import name_of
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.events import Emit, Log, Progress, Warned
from gatesearch.execution.executors import JobExecutor, open_executor
from gatesearch.execution.pool import WorkerPool
from gatesearch.execution.worker import perform
from gatesearch.methods import Context, NetworkSpec, binding_methods, check_study
from gatesearch.plugins import keep_plugins
from gatesearch.results import SINGLE_TASK, Result, StudyRecord
from gatesearch.search.controls import train_controls
from gatesearch.search.networks import Networks
from gatesearch.search.plans import method_plan
from gatesearch.search.predictions import check_frames, draw_predictions
from gatesearch.search.reuse import check_reuse
from gatesearch.search.search import Search
from gatesearch.search.setup import ExecutionOptions, Setup, check_run, task_infos
from gatesearch.stopping import Stop, stoppable
from gatesearch.store.backup import Backups
from gatesearch.store.database import explained
from gatesearch.store.lock import advisory_lock, locked
from gatesearch.store.names import search_name
from gatesearch.store.opening import begin_anew, open_store
from gatesearch.store.status import StatusFile
from gatesearch.store.store import Store
from gatesearch.study import Study
from gatesearch.trials.context import make_context
from gatesearch.trials.data import OpenedData, open_data
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
    retry_failed: bool = False,
    seeds: Sequence[int] = (),
    controls: bool | None = None,
    headroom: int = 0,
) -> StudyRecord:
    """Train a study's baselines, bring its searches to `n_trials` trials each, and measure on test.

    Networks that the store already has are not trained again: the same call continues where the
    last one ended, and only reads the store if nothing is left to do.

    Args:
        study: The definition. Its baselines are trained first; then the methods that it tunes are
            searched, in its order where workers are fewer than trials.
        n_trials: Total number of trials of each search, earlier ones included; 0 searches nothing.
            When None, each method's `default_trials`.
        out: The store's folder.
        data: Folder of packs.
        emit: Receives events.
        budgets: Upper bounds on every trial's cost, in the forms that `parse_budget` reads. Each
            set of budgets has a search of its own; all searches share the baselines.
        prefer: Task -> weight of its gain (`delta_mtl`) when networks are chosen from a supernet.
        options: Workers, their executor, and the server of the store.
        reuse: Folder of another store. Its baselines are taken over if training them here would
            give the same networks.
        retry_failed: True to try the configurations of failed trials again, as new trials beyond
            `n_trials`. A configuration that was tried again with success is not tried once more.
        seeds: Seeds of the baselines; the searches have the first, and the best trial of each is
            trained again with the others. That of the study alone when empty.
        controls: Whether the best trial of each search gets controls; None decides by their cost,
            see `gatesearch.search.controls`.
        headroom: Number of drawn patterns that are trained beside these controls.

    Returns:
        Everything in the store.

    Raises:
        UsageError: The definition cannot be built, a budget cannot be reached, or `reuse` has no
            baselines.
        DataError: Data are missing or damaged, or a folder cannot be written.
        StudyRefusedError: The store belongs to another definition, or another process holds it.
        TrainingError: The single-task networks failed, against which everything is measured, or
            for every method the start network of its trials.
        KeyboardInterrupt: The run was asked to stop; checkpoints of all trainings are kept.
    """
    if seeds:
        study = study.model_copy(update={"seed": seeds[0]})
    setup = check_run(study, budgets, options)
    study = setup.study
    trials = _numbers_of_trials(setup, n_trials)
    if reuse is not None:
        check_reuse(reuse)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stoppable())
        # Before a folder or store is made: a definition that its data refuse leaves nothing behind.
        opened = open_data(study, data=data, emit=emit)
        check_frames(opened.test, opened.tasks, count=study.report_frames)
        stack.enter_context(explained(out, options.storage))
        stack.enter_context(locked(out))
        if options.storage:
            stack.enter_context(advisory_lock(options.storage, study.name))
        store = open_store(
            study, folder=out, tasks=task_infos(study, opened.tasks), storage=options.storage,
            complete=check_study, binding=binding_methods,
        )  # fmt: skip
        stack.callback(store.close)
        for warning in keep_plugins(out, study):
            emit(Warned(warning))
        context = _context(setup, store, opened, emit=emit)
        for line in opened.partial_labels:
            emit(Log(line))
        executor = _executor(context, options, stop)
        stack.callback(executor.shutdown)
        # A start that was refused leaves the status of the run before it.
        status = _status(
            setup, out, options, wanted=sum(trials.values()), n_trials=n_trials, seeds=seeds,
            controls=controls, headroom=headroom,
        )  # fmt: skip
        stack.callback(status.close)
        pool = WorkerPool(executor, options.workers, emit, stop, status)
        changed = stack.enter_context(backed_up(study, out, emit, on=not options.storage))
        networks = Networks(
            store, context, emit, data=data, changed=changed, devices=options.devices
        )
        search = Search(networks, pool, status, reuse=reuse, retry_failed=retry_failed)
        search.show_earlier(search_name(name, name_of(setup.budgets)) for name in setup.tuned)
        search.train_bases(setup.baselines, seeds=seeds or [study.seed])
        _run_searches(search, setup, context, trials, prefer or {})
        if controls or any(trials.values()):
            train_controls(
                search, list(setup.tuned), setup.budgets, seeds=seeds or [study.seed],
                wanted=controls, headroom=headroom,
            )  # fmt: skip
        return _measure_chosen(context, store, emit)


def _run_searches(
    search: Search,
    setup: Setup,
    context: Context,
    trials: Mapping[str, int],
    prefer: Mapping[str, float],
) -> None:
    """Bring the search of each method to its number of trials; a method fails alone.

    Raises:
        StartFailedError: For every method the start network of its trials failed.
    """
    networks = search.networks

    def single_task() -> Result:
        result = networks.known(NetworkSpec(SINGLE_TASK, setup.study.seed))
        assert result is not None
        return result

    plans = {
        name: method_plan(
            method, context, networks.store, single_task=single_task,
            budgets=setup.budgets, prefer=prefer, n_trials=trials[name], emit=networks.emit,
        )
        for name, method in setup.tuned.items()
    }  # fmt: skip
    if len(plans) > 1:
        plans = {n: replace(plan, stage=f"search {plan.name}") for n, plan in plans.items()}
    failures = search.run_trials(list(plans.values()))
    if failures and len(failures) == len(plans):
        raise next(iter(failures.values()))


def _numbers_of_trials(setup: Setup, n_trials: int | None) -> dict[str, int]:
    """Return the total number of trials of each search: name of the method -> number.

    Raises:
        UsageError: A search cannot have so many.
    """
    numbers = {}
    for name, method in setup.tuned.items():
        number = method.default_trials if n_trials is None else n_trials
        if method.most_trials is not None:
            most, option = method.most_trials(setup.study)
            if number > most:
                raise UsageError(
                    f"trials of '{name}' must be at most {option}, {most}, of which they are "
                    f"chosen; found {number}: ask for fewer, or raise it by --set {option}=N in a "
                    "store of its own (--out DIR)"
                )
        numbers[name] = number
    return numbers


def _status(
    setup: Setup,
    out: Path,
    options: ExecutionOptions,
    *,
    wanted: int,
    n_trials: int | None,
    seeds: Sequence[int],
    controls: bool | None,
    headroom: int,
) -> StatusFile:
    return StatusFile(
        out,
        study=setup.study.name,
        fingerprint=setup.study.fingerprint,
        tune=tuple(setup.tuned) if setup.study.tune else (),
        budget=name_of(setup.budgets),
        seeds=seeds,
        with_controls=controls,
        headroom=headroom,
        storage=options.shown_storage,
        wanted=wanted,
        n_trials=n_trials,
    )


def _executor(context: Context, options: ExecutionOptions, stop: Stop) -> JobExecutor:
    return open_executor(
        options.executor,
        options.workers,
        devices=options.devices,
        perform=lambda job, emit: perform(job, context, emit=emit, stop=stop),
    )


@contextlib.contextmanager
def backed_up(study: Study, out: Path, emit: Emit, *, on: bool) -> Iterator[Callable[[], None]]:
    """Make a function to call after every change of the store, which makes backups when due.

    Args:
        study: States the time between two backups.
        out: The store's folder.
        emit: Receives warnings.
        on: False for a database on a server, which is not backed up.
    """
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


def _context(setup: Setup, store: Store, opened: OpenedData, *, emit: Emit) -> Context:
    """Make the context of the opened data, which must be the store's, with the store's runtime."""
    stored = store.attribute("data")
    sha256 = str(opened.description["sha256"])
    if stored and stored["sha256"] != sha256:
        if store.methods() or store.numbers:
            raise StudyRefusedError(
                f"{store.folder} was made on other data: {stored['pack']} "
                f"{stored['sha256'][:12]}, now {sha256[:12]}; name another folder with --out, or "
                "the old --data"
            )
        begin_anew(store, setup.study, task_infos(setup.study, opened.tasks))
    context = make_context(setup.study, opened, stored=store.attribute("runtime"), emit=emit)
    store.keep("data", context.data)
    store.keep(
        "runtime",
        {
            "precision": context.runtime.precision,
            "memory_format": context.runtime.memory_format,
        },
    )
    return replace(context, stopwatch=setup.stopwatch)


def _measure_chosen(context: Context, store: Store, emit: Emit) -> StudyRecord:
    """Measure on the official test part, once: baselines, controls and the networks of fronts."""
    record = store.record()
    shown = [
        *record.baselines,
        *record.controls,
        *(t for trials in record.fronts.values() for t in trials),
    ]
    shown = [result for result in shown if result.state == "complete"]
    missing = [result for result in shown if "test" not in result.metrics]
    for done, result in enumerate(missing, start=1):
        figures = measure_on_test(result, context, out=store.folder)
        store.keep_test(result, figures.metrics, figures.details)
        emit(Progress("test part", done, len(missing), "networks"))
    of_this_seed = [r for r in shown if r.seed == context.study.seed and r.of is None]
    try:
        draw_predictions(of_this_seed, context, out=store.folder)
    # All results are kept, and all of them can be reported without pictures.
    except (OSError, RuntimeError, ValueError, LookupError, MemoryError) as error:
        emit(
            Warned(
                f"predictions on test frames were not drawn ({type(error).__name__}: {error}); the "
                "report has no page of them, and the next start tries again"
            )
        )
    # Test figures or the file of predictions were added, so the record is read again.
    complete = record.predictions is not None or context.study.report_frames == 0
    return record if complete and not missing else store.record()
