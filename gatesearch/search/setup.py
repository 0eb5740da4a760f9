"""Check a run before a store is made: methods, weightings, budgets and devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gatesearch.cost import Budget, Cost, measure_of, parse_budget
from gatesearch.cost.budget import task_of
from gatesearch.datasets import DATASETS
from gatesearch.errors import UsageError
from gatesearch.execution.executors import check_executor
from gatesearch.methods import (
    Method,
    Stopwatch,
    at_width,
    build_model,
    check_study,
    method_of,
    training_of,
    tuned_methods,
)
from gatesearch.methods.specification import SCALAR
from gatesearch.models import parts_of
from gatesearch.pruning.subnetwork import known_tasks
from gatesearch.results import MULTI_TASK, SINGLE_TASK, TaskInfo, without_classes
from gatesearch.store.server import shown
from gatesearch.study import Study
from gatesearch.tasks import Task, build_tasks
from gatesearch.training import resolve_runtime
from gatesearch.training.weightings import WEIGHTINGS, build_weighting
from gatesearch.trials.costs import costs
from gatesearch.trials.data import check_dataset


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Options of a run that do not change its results: workers, devices and storage.

    Attributes:
        workers: Number of networks that are trained at the same time.
        executor: `process`, `ray`, or `ray://ADDRESS` of a cluster.
        devices: Number of devices that train one network together.
        storage: `postgresql://...` of the store; empty for SQLite in its folder. It may hold a
            password, and so is left out of the text form of these options.
        device: Device on which latency is measured for budgets; empty for that of training.
    """

    workers: int = 1
    executor: str = "process"
    devices: int = 1
    storage: str = field(default="", repr=False)
    device: str = ""

    @property
    def shown_storage(self) -> str:
        """URL of the server without its secrets; empty without a server."""
        return shown(self.storage) if self.storage else ""


@dataclass(frozen=True)
class Setup:
    """A run that was checked.

    Attributes:
        study: The study, with valid options of its methods.
        baselines: Methods to train as baselines, in order.
        tuned: Name -> method whose hyperparameters are searched.
        budgets: Upper bounds on every trial's cost.
        stopwatch: Measured latency; None where no budget bounds latency.
    """

    study: Study
    baselines: tuple[str, ...]
    tuned: Mapping[str, Method[Any]]
    budgets: tuple[Budget, ...]
    stopwatch: Stopwatch | None


def check_run(study: Study, budgets: Sequence[str], options: ExecutionOptions) -> Setup:
    """Check everything about a run that can be checked without its data and store.

    Args:
        study: The definition.
        budgets: Upper bounds, in the forms that `parse_budget` reads.
        options: Workers, devices and storage.

    Raises:
        UsageError: The definition cannot be built, or a budget cannot be reached.
    """
    check_executor(options.executor, devices=options.devices)
    study = check_study(study)
    tuned = tuned_methods(study)
    _check_weightings(study)
    check_dataset(study)
    parts_of(study)  # loads pretrained weights, and so refuses a missing file
    with torch.device("meta"):
        for name in {*study.methods, *study.options, *tuned}:
            build_model(study, name, pretrained=False)
    _check_widths(study)
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
    _check_devices(study, [SINGLE_TASK, *study.methods, *tuned], devices=options.devices)
    _check_held_out(study, study.weightings, study.methods, devices=options.devices)
    _check_held_out(study, study.search.weighting, list(tuned), devices=options.devices)
    shared = [m for m in study.methods if m != SINGLE_TASK]
    parsed = parse_budgets(study, budgets, stopwatch)
    return Setup(study, (SINGLE_TASK, *shared), tuned, parsed, stopwatch)


def bounds_latency(budgets: Sequence[str]) -> bool:
    """Tell whether any budget bounds latency.

    Raises:
        UsageError: One is not a budget.
    """
    return "latency" in [measure_of(text) for text in budgets]


def start_stopwatch(study: Study, device: str) -> Stopwatch:
    """Measure the layers of the networks that a study searches.

    Args:
        study: The definition.
        device: `cpu`, `cuda` or `mps`; empty for that of training.

    Raises:
        UsageError: This machine does not have the device.
    """
    runtime = resolve_runtime("fp32", study.training.memory_format)
    available = {"cpu", runtime.device}
    if device and device not in available:
        raise UsageError(
            f"--device must be one that torch can use here ({', '.join(sorted(available))}), found "
            f"'{device}'; install its driver and a build of torch for it"
        )
    runtime = replace(runtime, device=device or runtime.device)
    tables = {method.latency_table for method in tuned_methods(study).values()}
    measure = tables.pop()
    if measure is None or tables:
        raise UsageError(
            "a budget of latency needs one kind of network whose layers are measured; found "
            f"{', '.join(tuned_methods(study))}: tune one method at a time, or bound FLOPs"
        )
    return Stopwatch(runtime, measure(study, runtime))


def parse_budgets(
    study: Study, budgets: Sequence[str], stopwatch: Stopwatch | None = None
) -> tuple[Budget, ...]:
    """Read budgets, and check each against the range of cost of the study's networks.

    The text of a budget of latency gets the device appended, as `12ms@cpu`.

    Args:
        study: The definition.
        budgets: Upper bounds, in the forms that `parse_budget` reads.
        stopwatch: Measured latency, for budgets that bound it.

    Raises:
        UsageError: One is not a budget, or out of reach.
    """
    if not budgets:
        return ()
    tasks = {task: text for text in budgets if (task := task_of(text))}
    for method in tuned_methods(study).values():
        if tasks and not method.bounds_tasks:
            raise UsageError(
                f"budget {next(iter(tasks.values()))} bounds what one task costs, and a network of "
                f"'{method.name}' can be held to budgets of all tasks alone; leave the task out, "
                "or tune another method, as interrogate"
            )
    alone = {
        task: costs(study, (MULTI_TASK,), tasks=(task,))[MULTI_TASK].macs
        for task in (known_tasks(tasks, study.tasks) if tasks else ())
    }
    ends = costs(study, (MULTI_TASK, SINGLE_TASK))
    latency = None if stopwatch is None else stopwatch.table.ends
    cheapest: dict[str, Cost] = {}
    for name, method in tuned_methods(study).items():
        own = method.least_cost
        cheapest |= {MULTI_TASK: ends[MULTI_TASK]} if own is None else {name: own(study)}
    parsed = [
        parse_budget(
            text,
            mtl=ends[MULTI_TASK],
            stl=ends[SINGLE_TASK],
            latency=latency,
            cheapest=cheapest,
            alone=alone,
        )
        for text in budgets
    ]
    return tuple(
        replace(budget, text=f"{budget.text}@{stopwatch.runtime.device}")
        if stopwatch is not None and budget.measure == "latency"
        else budget
        for budget in parsed
    )


def task_infos(study: Study, tasks: Mapping[str, Task] | None = None) -> tuple[TaskInfo, ...]:
    """Describe a study's tasks for reports.

    Args:
        study: The definition.
        tasks: The tasks, fitted to their labels; as the definition has them if None.
    """
    class_names: dict[tuple[str, int], tuple[str, ...]] = {}
    for spec in (study.data, *study.more_data):
        if spec.dataset in DATASETS:
            class_names |= DATASETS[spec.dataset].class_names
    return tuple(
        TaskInfo(
            name=name,
            metric=task.metric,
            unit=task.unit,
            higher_is_better=task.higher_is_better,
            kind=study.tasks[name].kind,
            drawing=task.drawing,
            classes=task.classes,
            class_names=study.tasks[name].class_names
            or class_names.get((study.tasks[name].label or name, task.classes), ()),
            options=without_classes(task.options),
        )
        for name, task in (tasks or build_tasks(study.tasks)).items()
    )


def _check_widths(study: Study) -> None:
    """Refuse baselines at other widths that cannot be built.

    Raises:
        UsageError: The weights or the backbone have one width, or a method needs a search.
    """
    spec = study.baselines
    widths = [width for width in spec.widths if width != 1]
    if widths and study.model.init == "pretrained":
        raise UsageError(
            f"baselines.widths must be empty with pretrained weights, which have one width, found "
            f"{widths}; leave it out, or set model.init to scratch"
        )
    for method in spec.methods:
        if not method_of(method).baseline:
            raise UsageError(
                f"baselines.methods must be those that are trained without a search, found "
                f"'{method}'; leave it out"
            )
    with torch.device("meta"):
        for width in widths:
            for method in (SINGLE_TASK, *spec.methods):
                build_model(at_width(study, width), method, pretrained=False)


def _check_bounds(method: Method[Any], budgets: Sequence[str]) -> None:
    for text in budgets:
        measure = measure_of(text)
        if measure not in method.bounds:
            possible = ", ".join(sorted(method.bounds)) or "nothing"
            raise UsageError(
                f"budget {text} bounds {measure}, and a network of '{method.name}' can be held to "
                f"{possible}; leave --budget out, or tune another method"
            )


def _check_devices(study: Study, methods: Sequence[str], *, devices: int) -> None:
    """Refuse a number of devices on which the batches of a method cannot be trained.

    Batch norm needs more than one value per channel. On features that are pooled to one value, as
    in DeepLabV3's head, or as small as that, these are as many as the frames of a device.

    Raises:
        UsageError: A batch does not divide among the devices, or leaves one frame to each where
            batch norm needs two.
    """
    for name in dict.fromkeys(methods):
        size = training_of(study, name).batch_size
        key = "training.batch_size"
        if size != study.training.batch_size:
            key = f"options.{name}.training.batch_size"
        if size % devices:
            raise UsageError(
                f"{key} must divide among the devices: {size} frames on {devices}; take "
                f"{size // devices * devices + devices}, or another --devices-per-trial"
            )
        if size == devices and not _trains_on_one_frame(study, name):
            raise UsageError(
                f"batch norm of '{name}' needs two frames per device at this image size, found 1: "
                f"{key} {size} on {devices} devices; take {2 * devices}, or fewer "
                "--devices-per-trial"
            )


def _check_held_out(
    study: Study, weightings: Sequence[str], methods: Sequence[str], *, devices: int
) -> None:
    """Refuse a validation part that is too small for weightings that look at batches of it.

    One that the data set brings is not known before the data are open.

    Raises:
        UsageError: It leaves no frame to a device, or one where batch norm needs two.
    """
    looking = [name for name in weightings if WEIGHTINGS[name].held_out]
    carved = [spec.carved for spec in (study.data, *study.more_data)]
    if not all(carved):
        return
    frames = sum(carved)
    for method in [name for name in methods if looking and name != SINGLE_TASK]:
        size = min(training_of(study, method).batch_size, frames) // devices
        if size == 0 or (size == 1 and not _trains_on_one_frame(study, method)):
            raise UsageError(
                f"the weighting '{looking[0]}' passes batches of the validation part through "
                f"'{method}', whose batch norm needs two frames per device at this image size; "
                f"found data.validation {frames} on {devices} device{'s' * (devices > 1)}; take "
                f"{2 * devices}, or leave the weighting out"
            )


def _trains_on_one_frame(study: Study, method: str) -> bool:
    """Tell whether a method's network can learn from one frame, by shapes alone."""
    with torch.device("meta"), torch.no_grad():
        network = build_model(study, method, pretrained=False).train()
        try:
            network(torch.empty(1, 3, *study.protocol.size))
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                return False
            raise
    return True


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
