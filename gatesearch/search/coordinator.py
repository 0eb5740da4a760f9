"""The run of a study: baselines first, then trials, then the test part once."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from gatesearch.cost import Budget, name_of, parse_budget
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.models import build_model, method_of, needs_stl
from gatesearch.results import Result, StudyRecord, TaskInfo, delta_mtl, front
from gatesearch.search.bench import Bench, Emit, check_dataset, open_bench
from gatesearch.search.candidate import (
    Candidate,
    measure_on_test,
    starts_from,
    train_candidate,
)
from gatesearch.search.gallery import draw_gallery
from gatesearch.search.method_costs import costs
from gatesearch.search.space import draw, sampler
from gatesearch.search.store import Store, explained, locked, open_store
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import TrainingError


def run(
    study: Study,
    *,
    n_trials: int,
    out: Path,
    data: Path,
    emit: Emit,
    budgets: Sequence[str] = (),
) -> StudyRecord:
    """Bring a study to a total of `n_trials` trials, and measure its networks on the test part.

    What the store already has is never trained again: the same call continues where the last one
    ended, and with nothing left to do it only reads.

    Args:
        study: The definition; its `methods` are the baselines, trained first.
        n_trials: Total of the study; 0 trains the baselines and searches nothing.
        out: The store's folder.
        data: Folder of packs.
        emit: Receives events.
        budgets: Upper bounds on every trial's cost, as `parse_budget` reads them; `n_trials`
            then counts the trials under these bounds, which share baselines with all others.

    Raises:
        UsageError: A definition that cannot be built, or a budget that cannot be reached.
        DataError: Data missing or damaged, or a folder that cannot be written.
        StudyRefusedError: The store belongs to another definition or process.
        TrainingError: The single-task networks, which everything is measured against, failed.
    """
    baselines = _checked(study)
    bounds = parse_budgets(study, budgets)
    budget = name_of(bounds)
    with explained(out), locked(out):
        store = open_store(study, folder=out, tasks=task_infos(study))
        stale = store.close_running()
        if stale:
            emit({"event": "log", "message": f"{stale} interrupted trial(s) will be run anew"})
        bench = _bench(study, store, data=data, emit=emit)
        _train_baselines(baselines, bench, store, emit)
        stl = _known(Candidate("stl", study.seed), store)
        assert stl is not None
        if store.finished(budget) < n_trials:
            _train_warmup(bench, store, emit)
        while (finished := store.finished(budget)) < n_trials:
            _progress(emit, "search", finished, n_trials, "trials")
            _one_trial(finished, bounds, bench, store, stl, emit)
        _progress(emit, "search", store.finished(budget), n_trials, "trials")
        _measure_chosen(bench, store, emit)
        return store.record()


def parse_budgets(study: Study, budgets: Sequence[str]) -> tuple[Budget, ...]:
    """Budgets of a study, checked against what its networks can cost.

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
    return tuple(parse_budget(text, mtl=ends["mtl"], stl=ends["stl"]) for text in budgets)


def task_infos(study: Study) -> tuple[TaskInfo, ...]:
    """What a report must know of a study's tasks."""
    return tuple(
        TaskInfo(name, task.metric, task.unit, task.higher_is_better, study.tasks[name].classes)
        for name, task in build_tasks(study.tasks).items()
    )


def _checked(study: Study) -> tuple[str, ...]:
    """The baselines in order of training; everything that can be refused is refused here."""
    for method in (*study.methods, *study.options):
        method_of(method)
    check_dataset(study)
    with torch.device("meta"):
        for method in {*study.methods, *study.options, "interrogate"}:
            needs_stl(study, method)
            build_model(study, method, pretrained=False)
    rest = [method for method in study.methods if method not in ("stl", "interrogate")]
    return ("stl", *rest)


def _bench(study: Study, store: Store, *, data: Path, emit: Emit) -> Bench:
    bench = open_bench(study, data=data, stored=store.attribute("runtime"), emit=emit)
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


def _train_baselines(methods: tuple[str, ...], bench: Bench, store: Store, emit: Emit) -> None:
    seed = bench.study.seed
    known = {method: _known(Candidate(method, seed), store) for method in methods}
    missing = [
        name for name, result in known.items() if result is None or result.state != "complete"
    ]
    for done, method in enumerate(missing):
        _progress(emit, "baselines", done, len(missing), "networks")
        candidate = Candidate(method, seed)
        stl = _known(Candidate("stl", seed), store)
        try:
            result = _trained(candidate, bench, store, emit)
        except (TrainingError, torch.OutOfMemoryError) as error:
            if method == "stl":
                raise
            result = Result(method, seed, state="failed", reason=str(error))
            emit({"event": "warning", "message": f"{method} failed: {error}"})
        store.keep_baseline(result)
        emit({"event": "baseline", "message": _line(method, result, stl, bench)})
    _progress(emit, "baselines", len(missing), len(missing), "networks")


def _train_warmup(bench: Bench, store: Store, emit: Emit) -> None:
    """What the trials start from, once a seed."""
    warmup = starts_from(Candidate("interrogate", bench.study.seed, trial=0), bench.study)
    if warmup is not None and warmup.method == "interrogate" and _known(warmup, store) is None:
        store.keep_warmup(_trained(warmup, bench, store, emit))


def _trained(candidate: Candidate, bench: Bench, store: Store, emit: Emit) -> Result:
    begin = starts_from(candidate, bench.study)
    start = None if begin is None else _known(begin, store)
    return train_candidate(candidate, bench, out=store.folder, start=start, emit=emit)


def _known(candidate: Candidate, store: Store) -> Result | None:
    """The stored result of a baseline or a warm-up."""
    record = store.record()
    for result in (*record.baselines, *record.warmups):
        if (result.method, result.seed) == (candidate.method, candidate.seed):
            return result
    return None


def _one_trial(
    finished: int,
    budgets: tuple[Budget, ...],
    bench: Bench,
    store: Store,
    stl: Result,
    emit: Emit,
) -> None:
    study = bench.study
    chooser = sampler(study.search, seed=study.seed, finished=finished)
    trial, number = store.ask(name_of(budgets), chooser)
    try:
        params = draw(trial, study.search, study.task_names)
        candidate = Candidate("interrogate", study.seed, number, params, budgets)
        drawn = " ".join(
            f"{name}={value if isinstance(value, str) else format(value, '.3g')}"
            for name, value in params.items()
        )
        emit({"event": "log", "message": f"trial {number}: {drawn}", "params": params})
        try:
            result = _trained(candidate, bench, store, emit)
            gain = _gain(result, stl, bench)
            values = [gain] if budgets else [gain, result.gflops]
            if not math.isfinite(gain):
                raise TrainingError("Δ_MTL is undefined: a metric is not a number")
        except (TrainingError, torch.OutOfMemoryError) as error:
            values = None
            result = Result(
                "interrogate", study.seed, number, state="failed", reason=str(error),
                budget=name_of(budgets), params=params,
            )  # fmt: skip
            emit({"event": "warning", "message": f"trial {number} failed: {error}"})
        store.finish(trial, result, values)
    except BaseException:
        # On a full disk this fails too; the next start closes the trial then.
        with contextlib.suppress(Exception):
            store.close_running()
        raise
    emit({"event": "trial", "message": _line(candidate.label, result, stl, bench)})


def _measure_chosen(bench: Bench, store: Store, emit: Emit) -> None:
    """The official test part, once for each network of the front and each baseline."""
    record = store.record()
    shown = [*record.baselines, *front(record)]
    shown = [result for result in shown if result.state == "complete"]
    missing = [result for result in shown if "test" not in result.metrics]
    for done, result in enumerate(missing, start=1):
        store.keep_test(result, measure_on_test(result, bench, out=store.folder))
        _progress(emit, "test part", done, len(missing), "networks")
    own = [result for result in shown if result.seed == bench.study.seed]
    draw_gallery(own, bench, out=store.folder)


def _gain(result: Result, stl: Result, bench: Bench) -> float:
    directions = {name: task.higher_is_better for name, task in bench.tasks.items()}
    return delta_mtl(result.metrics["validation"], stl.metrics["validation"], directions)


def _line(label: str, result: Result, stl: Result | None, bench: Bench) -> str:
    if result.state != "complete":
        return f"{label}: {result.state}: {result.reason}"
    metrics = " ".join(f"{k} {v:.4g}" for k, v in result.metrics["validation"].items())
    gain = f"Δ_MTL {_gain(result, stl, bench):+.2f} %, " if stl is not None else ""
    return f"{label}: {gain}{result.gflops:.3f} GFLOPs, validation {metrics}"


def _progress(emit: Emit, stage: str, done: int, total: int, unit: str) -> None:
    if total:
        emit(
            {
                "event": "progress", "stage": stage, "done": min(done, total), "total": total,
                "unit": unit, "message": "",
            }
        )  # fmt: skip
