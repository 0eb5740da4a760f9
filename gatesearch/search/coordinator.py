"""The run of a study: baselines first, then trials, then the test part once."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gatesearch.cost import Budget, measure_layers, measure_of, name_of, parse_budget
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.models import InterroGate, build_model, method_of, needs_stl
from gatesearch.results import Result, StudyRecord, TaskInfo, delta_mtl, front
from gatesearch.search.bench import (
    Bench,
    Emit,
    Stopwatch,
    check_dataset,
    open_bench,
    progress,
)
from gatesearch.search.candidate import (
    Candidate,
    measure_on_test,
    starts_from,
    train_candidate,
)
from gatesearch.search.gallery import draw_gallery
from gatesearch.search.method_costs import costs
from gatesearch.search.one_shot import Chooser, chooser
from gatesearch.search.space import directions, draw, draw_shares, sampler, search_of
from gatesearch.search.store import Store, explained, locked, open_store
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import TrainingError, resolve_runtime


def run(
    study: Study,
    *,
    n_trials: int,
    out: Path,
    data: Path,
    emit: Emit,
    budgets: Sequence[str] = (),
    prefer: Mapping[str, float] | None = None,
    device: str = "",
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
        device: Where latency is measured, for budgets of it; the one trained on by default.
        prefer: Task -> how much it matters (`delta_mtl`) in the choice of one-shot networks.

    Raises:
        UsageError: A definition that cannot be built, or a budget that cannot be reached.
        DataError: Data missing or damaged, or a folder that cannot be written.
        StudyRefusedError: The store belongs to another definition or process.
        TrainingError: The single-task networks, which everything is measured against, failed.
    """
    baselines = _checked(study)
    stopwatch = start_stopwatch(study, device) if timed(budgets) else None
    bounds = parse_budgets(study, budgets, stopwatch)
    one_shot = study.search.mode == "one_shot"
    search = search_of(name_of(bounds), one_shot=one_shot)
    with explained(out), locked(out):
        store = open_store(study, folder=out, tasks=task_infos(study))
        stale = store.close_running()
        if stale:
            emit({"event": "log", "message": f"{stale} interrupted trial(s) will be run anew"})
        bench = replace(_bench(study, store, data=data, emit=emit), stopwatch=stopwatch)
        _train_baselines(baselines, bench, store, emit)
        stl = _known(Candidate("stl", study.seed), store)
        assert stl is not None
        choose: Chooser | None = None
        if store.finished(search) < n_trials:
            first = Candidate("interrogate", study.seed, 0, one_shot=one_shot)
            _train_start(first, bench, store, emit)
            if one_shot:
                choose = chooser(bench, store, stl, budgets=bounds, prefer=prefer or {}, emit=emit)
        while (finished := store.finished(search)) < n_trials:
            progress(emit, "search", finished, n_trials, "trials")
            _one_trial(search, finished, bounds, choose, bench, store, stl, emit)
        progress(emit, "search", store.finished(search), n_trials, "trials")
        _measure_chosen(bench, store, emit)
        return store.record()


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
    assert isinstance(supernet, InterroGate)
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
        progress(emit, "baselines", done, len(missing), "networks")
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
    progress(emit, "baselines", len(missing), len(missing), "networks")


def _train_start(candidate: Candidate, bench: Bench, store: Store, emit: Emit) -> None:
    """What trials start from, and what that starts from, once a seed."""
    start = starts_from(candidate, bench.study)
    if start is not None and start.role != "network" and _known(start, store) is None:
        _train_start(start, bench, store, emit)
        store.keep_start(_trained(start, bench, store, emit))


def _trained(candidate: Candidate, bench: Bench, store: Store, emit: Emit) -> Result:
    begin = starts_from(candidate, bench.study)
    start = None if begin is None else _known(begin, store)
    return train_candidate(candidate, bench, out=store.folder, start=start, emit=emit)


def _known(candidate: Candidate, store: Store) -> Result | None:
    """The stored result of a baseline, or of what trials start from."""
    record = store.record()
    wanted = (candidate.method, candidate.seed, candidate.role)
    for result in (*record.baselines, *record.starts):
        if (result.method, result.seed, result.role) == wanted:
            return result
    return None


def _one_trial(
    search: str,
    finished: int,
    budgets: tuple[Budget, ...],
    choose: Chooser | None,
    bench: Bench,
    store: Store,
    stl: Result,
    emit: Emit,
) -> None:
    study = bench.study
    own = sampler(study.search, seed=study.seed, finished=finished)
    trial, number = store.ask(search, own, None if choose is None else choose(finished))
    try:
        if choose is None:
            params = draw(trial, study.search, study.task_names)
        else:
            params = draw_shares(trial, study.task_names)
        candidate = Candidate(
            "interrogate", study.seed, number, params, budgets, one_shot=choose is not None
        )
        drawn = " ".join(
            f"{name}={value if isinstance(value, str) else format(value, '.3g')}"
            for name, value in params.items()
        )
        emit({"event": "log", "message": f"trial {number}: {drawn}", "params": params})
        try:
            result = _trained(candidate, bench, store, emit)
            gain = _gain(result, stl, bench)
            values = [gain, result.gflops][: len(directions(search))]
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
        progress(emit, "test part", done, len(missing), "networks")
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
