"""What several pages ask of a record: names, groups of seeds, the split shown."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gatesearch.results import Result, Split, StudyRecord, front

T = TypeVar("T")

NAMES = {
    "stl": "STL",
    "mtl": "MTL",
    "cross_stitch": "Cross-stitch",
    "mtan": "MTAN",
    "nddr": "NDDR-CNN",
    "adashare": "AdaShare",
    "interrogate": "InterroGate",
}


@dataclass(frozen=True)
class Group:
    """One network in a table or chart: a trial, or a baseline over its seeds.

    Attributes:
        label: What it is called.
        look: What its colour and marker depend on: a plain method's name, else the label.
        results: One a seed.
    """

    label: str
    look: str
    results: tuple[Result, ...]

    @property
    def plain(self) -> bool:
        """Whether its losses have the study's own weights."""
        return all(map(_plain, self.results))

    def values(self, measure: Callable[[Result], float]) -> list[float]:
        """The measure of every seed where it is finite."""
        return [v for v in map(measure, self.results) if math.isfinite(v)]

    def mean(self, measure: Callable[[Result], float]) -> float:
        """Mean over seeds; NaN where there is none."""
        values = self.values(measure)
        return statistics.fmean(values) if values else math.nan

    def spread(self, measure: Callable[[Result], float]) -> float:
        """Sample standard deviation over seeds; NaN below two."""
        values = self.values(measure)
        return statistics.stdev(values) if len(values) > 1 else math.nan


def label(result: Result) -> str:
    """How a network is called on every page."""
    if result.trial is not None:
        return f"Trial {result.trial}"
    return called(result.method, "" if _plain(result) else result.weighting)


def called(method: str, weighting: str = "") -> str:
    """A baseline's name for people.

    >>> called("cross_stitch", "dwa")
    'Cross-stitch · dwa'
    """
    name = NAMES.get(method, method.replace("_", " ").capitalize())
    return f"{name} · {weighting}" if weighting else name


def _plain(result: Result) -> bool:
    return result.weighting == "uniform"


def baselines(record: StudyRecord) -> list[Group]:
    """Complete baselines, the seeds of one kept together, in the record's order."""
    found: dict[str, list[Result]] = {}
    for result in record.baselines:
        if result.state == "complete":
            found.setdefault(label(result), []).append(result)
    return [
        Group(name, results[0].method if _plain(results[0]) else name, tuple(results))
        for name, results in found.items()
    ]


def weighed(record: StudyRecord) -> bool:
    """Whether anything is balanced otherwise than by the study's own weights."""
    return not all(map(_plain, (*record.baselines, *record.trials)))


def training_ratio(record: StudyRecord, result: Result) -> float:
    """Training FLOPs over those of the same method and seed, uniformly weighted; NaN without."""
    if result.method == "stl":  # has nothing to balance
        return math.nan
    for other in record.baselines:
        if _plain(other) and (other.method, other.seed) == (result.method, result.seed):
            return result.train_pflops / other.train_pflops if other.train_pflops else math.nan
    return math.nan


def find(groups: Sequence[Group], name: str) -> Group | None:
    """The group of that label."""
    return next((group for group in groups if group.label == name), None)


def front_groups(record: StudyRecord) -> list[Group]:
    """The front's networks, ascending in GFLOPs."""
    return [Group(label(trial), trial.method, (trial,)) for trial in front(record)]


def complete(record: StudyRecord) -> list[Result]:
    """Complete trials, in order."""
    return [trial for trial in record.trials if trial.state == "complete"]


def shown_split(record: StudyRecord) -> Split:
    """`test` where every network that is named has test figures, else `validation`.

    One split throughout: figures of two splits are never compared.
    """
    named = [*front(record), *(r for r in record.baselines if r.state == "complete")]
    return "test" if named and all(r.split == "test" for r in named) else "validation"


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, first and last among them, spread evenly.

    >>> evenly("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def paged(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """The items in as few pages of at most `count` as they need, filled alike.

    >>> paged("abcde", 4)
    ['abc', 'de']
    """
    size = -(-len(items) // max(-(-len(items) // count), 1))
    return [items[i : i + size] for i in range(0, len(items), max(size, 1))]
