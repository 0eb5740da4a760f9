"""Questions that several pages ask of a record: names, groups of seeds, the split shown."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gatesearch.comparisons import REPEAT, controlled_trials
from gatesearch.results import SINGLE_TASK, Result, Split, StudyRecord, TaskInfo

T = TypeVar("T")

# Method -> how papers spell it, where that is not its capitalised name. The order is that of
# networks on the pages of predictions.
NAMES = {
    "stl": "STL",
    "mtl": "MTL",
    "cross_stitch": "Cross-stitch",
    "mtan": "MTAN",
    "nddr": "NDDR-CNN",
    "adashare": "AdaShare",
    "gradsplit": "GradSplit",
    "lomt": "LOMT",
    "den": "DEN",
    "ecmt": "ECMT",
    "dymu": "DYMU",
    "interrogate": "InterroGate",
    "one_shot": "One-shot",
}

# Methods whose trials need no name on the page.
GATED = ("interrogate", "one_shot")


@dataclass(frozen=True)
class SeedGroup:
    """A row of a table or a point of a chart: a trial, or a baseline with all its seeds.

    Attributes:
        label: Its name on the page.
        style_key: What its colour and marker depend on: the method's name for a method with
            uniform weighting, at any width, else the label.
        results: One result per seed.
    """

    label: str
    style_key: str
    results: tuple[Result, ...]

    @property
    def is_uniform(self) -> bool:
        """Whether losses are weighted as the study says, by no method of balancing."""
        return all(map(is_uniform, self.results))

    def values(self, measure: Callable[[Result], float]) -> list[float]:
        """Measure every seed; values that are not finite are left out."""
        return [value for value in map(measure, self.results) if math.isfinite(value)]

    def mean(self, measure: Callable[[Result], float]) -> float:
        """Average over seeds; NaN where no value is finite."""
        values = self.values(measure)
        return statistics.fmean(values) if values else math.nan

    def deviation(self, measure: Callable[[Result], float]) -> float:
        """Sample standard deviation over seeds; NaN below two values."""
        values = self.values(measure)
        return statistics.stdev(values) if len(values) > 1 else math.nan


def network_label(result: Result) -> str:
    """Name a network as every page of the report does."""
    if result.trial is not None:
        of = "" if result.method in GATED else f" · {display_name(result.method)}"
        return f"Trial {result.trial}{of}"
    name = display_name(result.method, "" if is_uniform(result) else result.weighting)
    return name if result.width == 1 else f"{name} · x{result.width:g}"


def display_name(method: str, weighting: str = "") -> str:
    """Spell a baseline's name for readers.

    >>> display_name("cross_stitch", "dwa"), display_name("my_method")
    ('Cross-stitch · dwa', 'My method')
    """
    name = NAMES.get(method, method.replace("_", " ").capitalize())
    return f"{name} · {weighting}" if weighting else name


def is_uniform(result: Result) -> bool:
    """Tell whether losses were weighted as the study says, by no method of balancing."""
    return result.weighting == "uniform"


def baseline_groups(record: StudyRecord) -> list[SeedGroup]:
    """Group the complete baselines by label, in the record's order."""
    by_label: dict[str, list[Result]] = {}
    for result in record.baselines:
        if result.state == "complete":
            by_label.setdefault(network_label(result), []).append(result)
    return [
        SeedGroup(label, results[0].method if is_uniform(results[0]) else label, tuple(results))
        for label, results in by_label.items()
    ]


def front_trials(record: StudyRecord) -> list[Result]:
    """List the networks of every searched method's own front, each ascending in GFLOPs."""
    return [trial for trials in record.fronts.values() for trial in trials]


def front_groups(record: StudyRecord) -> list[SeedGroup]:
    """List the networks of every searched method's own front, each with its other seeds."""
    return [trial_group(record, trial) for trial in front_trials(record)]


def trial_group(record: StudyRecord, trial: Result) -> SeedGroup:
    """Group a trial with its complete repetitions."""
    return SeedGroup(network_label(trial), trial.method, (trial, *repeats_of(record, trial)))


def repeats_of(record: StudyRecord, trial: Result) -> list[Result]:
    """List the complete repetitions of a trial's training with other seeds."""
    return [
        c
        for c in record.controls
        if (c.of, c.control, c.state) == (trial.trial, REPEAT, "complete")
    ]


def control_groups(record: StudyRecord) -> list[SeedGroup]:
    """List the controls of the front's networks, a group for each kind and trial."""
    on_front = {trial.trial for trial in front_trials(record)}
    return [
        SeedGroup(kind, kind, tuple(by_seed.values()))
        for controlled in controlled_trials(record)
        if controlled.trial.trial in on_front
        for kind, by_seed in controlled.controls.items()
    ]


def width_curves(record: StudyRecord) -> list[list[SeedGroup]]:
    """List the baselines that were trained at several widths, each ascending in GFLOPs."""
    by_method: dict[str, list[SeedGroup]] = {}
    for group in baseline_groups(record):
        if group.is_uniform:
            by_method.setdefault(group.style_key, []).append(group)
    curves = [groups for groups in by_method.values() if len(groups) > 1]
    return [sorted(groups, key=lambda g: g.mean(lambda r: r.gflops)) for groups in curves]


def group_of_method(groups: Sequence[SeedGroup], method: str) -> SeedGroup | None:
    """Find a method's baseline with uniform weighting."""
    return next((group for group in groups if group.label == display_name(method)), None)


def has_weightings(record: StudyRecord) -> bool:
    """Tell whether any network's losses or gradients were balanced by a method."""
    return not all(map(is_uniform, (*record.baselines, *record.trials)))


def training_ratio(record: StudyRecord, result: Result) -> float:
    """Divide training FLOPs by those of the same method and seed with uniform weighting.

    Returns:
        The ratio; NaN for single-task networks, which have nothing to balance, and where there is
        no such network.
    """
    if result.method == SINGLE_TASK:
        return math.nan
    for other in record.baselines:
        same = (other.method, other.seed, other.width) == (result.method, result.seed, result.width)
        if is_uniform(other) and same:
            return result.train_pflops / other.train_pflops if other.train_pflops else math.nan
    return math.nan


def complete_trials(record: StudyRecord) -> list[Result]:
    """List the complete trials, in order."""
    return [trial for trial in record.trials if trial.state == "complete"]


def count_trials(count: int) -> str:
    """Write a number of trials, as `1 trial` or `5 trials`."""
    return f"{count} trial" if count == 1 else f"{count} trials"


def is_crowded(points: Sequence[object]) -> bool:
    """Tell whether so many points are drawn as pixels, which a PDF reader opens faster."""
    return len(points) > 1000


def output_names(task: TaskInfo) -> tuple[str, ...]:
    """Names of the classes, attributes, values or points of a task; empty where it has none."""
    return task.class_names or tuple(map(str, task.options.get("names", ())))


def partly_labelled(record: StudyRecord) -> dict[str, dict[str, tuple[int, int]]]:
    """Find the tasks of which some frames have no labels.

    Returns:
        Task -> part of the data -> (labelled frames, all frames), of all parts; empty where all
        frames have labels of all tasks, and in stores of earlier versions, which did not count.
    """
    labelled: Mapping[str, Mapping[str, int]] = record.data.get("labelled", {})
    counts = {
        task.name: {
            part: (by_task.get(task.name, 0), int(record.data.get(part, 0)))
            for part, by_task in labelled.items()
        }
        for task in record.tasks
    }
    return {
        task: parts
        for task, parts in counts.items()
        if any(known < frames for known, frames in parts.values())
    }


def shown_split(record: StudyRecord) -> Split:
    """Choose the split of all pages: `test` where every baseline and the front have test figures.

    One split throughout: figures of two splits are never compared.
    """
    networks = [*front_trials(record), *(r for r in record.baselines if r.state == "complete")]
    return "test" if networks and all(r.split == "test" for r in networks) else "validation"


def pick_evenly(items: Sequence[T], count: int) -> list[T]:
    """Pick at most `count` items, spread evenly, the first and the last among them.

    >>> pick_evenly("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def split_pages(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Split items into as few pages of at most `count` as they need, of about equal length.

    >>> split_pages("abcde", 4)
    ['abc', 'de']
    """
    size = -(-len(items) // max(-(-len(items) // count), 1))
    return [items[i : i + size] for i in range(0, len(items), max(size, 1))]
