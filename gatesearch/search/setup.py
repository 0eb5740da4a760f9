"""Everything that can be refused before a store is made: methods, weightings, budgets, devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gatesearch.cost import Budget, measure_of, parse_budget
from gatesearch.errors import UsageError
from gatesearch.methods import (
    Method,
    Stopwatch,
    build_model,
    check_study,
    method_of,
    tuned_methods,
)
from gatesearch.methods.specification import SCALAR
from gatesearch.models import parts_of
from gatesearch.results import MULTI_TASK, SINGLE_TASK, TaskInfo
from gatesearch.store.lock import server_url
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import resolve_runtime
from gatesearch.training.weightings import build_weighting
from gatesearch.trials.context import check_dataset
from gatesearch.trials.costs import costs


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Where and by whom networks of a run are trained.

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


@dataclass(frozen=True)
class Setup:
    """A run's study and budgets, checked.

    Attributes:
        study: With its methods' options validated.
        baselines: Methods to train, in order.
        tuned: Methods to search.
        budgets: Upper bounds on every trial's cost.
        stopwatch: How latency is measured; None where no budget bounds it.
    """

    study: Study
    baselines: tuple[str, ...]
    tuned: Mapping[str, Method[Any]]
    budgets: tuple[Budget, ...]
    stopwatch: Stopwatch | None


def check_run(study: Study, budgets: Sequence[str], options: ExecutionOptions) -> Setup:
    """Check everything about a run that needs neither data nor store.

    Raises:
        UsageError: A definition that cannot be built, or a budget that cannot be reached.
    """
    study = check_study(study)
    tuned = tuned_methods(study)
    _check_weightings(study)
    check_dataset(study)
    parts_of(study)  # loads its weights, which may be missing
    with torch.device("meta"):
        for name in {*study.methods, *study.options, *tuned}:
            build_model(study, name, pretrained=False)
    for method in tuned.values():
        method.check(study, budgets)
        _check_bounds(method, budgets)
    stopwatch = None
    if bounds_latency(budgets):
        if (options.workers, options.devices, options.executor) != (1, 1, "process"):
            raise UsageError(
                "a budget of latency is measured while nothing else runs: it takes --workers 1, "
                f"--devices-per-trial 1 and no --executor, found {options.workers}, "
                f"{options.devices} and {options.executor}"
            )
        stopwatch = start_stopwatch(study, options.device)
    rest = [m for m in study.methods if m != SINGLE_TASK and method_of(m).baseline]
    parsed = parse_budgets(study, budgets, stopwatch)
    return Setup(study, (SINGLE_TASK, *rest), tuned, parsed, stopwatch)


def bounds_latency(budgets: Sequence[str]) -> bool:
    """Whether a budget bounds latency.

    Raises:
        UsageError: Not a budget.
    """
    return "latency" in [measure_of(text) for text in budgets]


def start_stopwatch(study: Study, device: str) -> Stopwatch:
    """Measure the layers of the networks that a study searches.

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
    measure = next(m.latency_table for m in tuned_methods(study).values() if m.latency_table)
    return Stopwatch(runtime, measure(study, runtime))


def parse_budgets(
    study: Study, budgets: Sequence[str], stopwatch: Stopwatch | None = None
) -> tuple[Budget, ...]:
    """Budgets of a study, checked against what its networks can cost.

    A budget of latency is named with its device, as `12ms@cpu`.

    Raises:
        UsageError: Not a budget, or out of reach.
    """
    if not budgets:
        return ()
    ends = costs(study, (MULTI_TASK, SINGLE_TASK))
    latency = None if stopwatch is None else stopwatch.table.ends
    parsed = [
        parse_budget(text, mtl=ends[MULTI_TASK], stl=ends[SINGLE_TASK], latency=latency)
        for text in budgets
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
            name=name,
            metric=task.metric,
            unit=task.unit,
            higher_is_better=task.higher_is_better,
            kind=study.tasks[name].kind,
            drawing=task.drawing,
            classes=study.tasks[name].classes,
        )
        for name, task in build_tasks(study.tasks).items()
    )


def _check_bounds(method: Method[Any], budgets: Sequence[str]) -> None:
    for text in budgets:
        measure = measure_of(text)
        if measure not in method.bounds:
            held = ", ".join(sorted(method.bounds)) or "nothing"
            raise UsageError(
                f"budget {text} bounds {measure}, and a network of '{method.name}' can be held to "
                f"{held}; leave --budget out, or tune another method"
            )


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
