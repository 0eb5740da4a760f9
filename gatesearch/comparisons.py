"""Paired differences between trials and their controls over seeds. Needs no torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatesearch.results import Result, Split, StudyRecord, control_name, delta

# Kinds of controls; see `gatesearch.methods.controls`. `REPEAT` is a trial's own training with
# another seed, kept beside them; behind `DRAWN` stands a pattern's number.
REPEAT, FRESH, WIDENED, DRAWN = "repeat", "fresh", "mtl@B", "pattern"
# Kinds that `fresh` is compared with too: they too were trained as plain networks from the start.
_TRAINED_ALIKE = (WIDENED, "random", "even", "swapped", "branch")
# Quantiles t of Student's distribution for a two-sided interval of 95 %, by degrees of freedom;
# https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Differences of Δ_MTL between two networks that were trained with the same seeds.

    Attributes:
        a: Name of the network that the other one is subtracted from.
        b: Name of the other network.
        n: Number of seeds, a pair each.
        mean: Mean difference, percent; positive where `a` is better.
        sd: Sample standard deviation of the differences; None below two pairs.
        metric: What is compared.
    """

    a: str
    b: str
    n: int
    mean: float
    sd: float | None
    metric: str = "delta_mtl"

    @property
    def margin(self) -> float | None:
        """Half the width of the 95 % interval of the mean, t·sd/√n; None below two pairs."""
        if self.sd is None:
            return None
        return _T[min(self.n - 1, len(_T)) - 1] * self.sd / math.sqrt(self.n)

    @property
    def verdict(self) -> str:
        """Name of the better network; empty where the interval has 0, or there is none."""
        margin = self.margin
        if margin is None or abs(self.mean) <= margin:
            return ""
        return self.a if self.mean > 0 else self.b

    def to_json(self) -> dict[str, Any]:
        """Convert it to plain JSON values."""
        interval = None
        if self.margin is not None:
            interval = [self.mean - self.margin, self.mean + self.margin]
        return {
            "a": self.a, "b": self.b, "metric": self.metric, "n": self.n, "mean": self.mean,
            "sd": self.sd, "interval": interval,
        }  # fmt: skip


@dataclass(frozen=True)
class Controlled:
    """A trial with its controls.

    Attributes:
        trial: The trial.
        learned: Seed -> the trial, or its repetition with that seed.
        controls: Kind -> seed -> control.
    """

    trial: Result
    learned: Mapping[int, Result]
    controls: Mapping[str, Mapping[int, Result]]


def controlled_trials(record: StudyRecord) -> list[Controlled]:
    """List the trials that have complete controls, by number."""
    found = []
    for trial in record.trials:
        own = [c for c in record.controls if c.of == trial.trial and c.state == "complete"]
        kinds = dict.fromkeys(c.control for c in own if c.control != REPEAT)
        if kinds and trial.state == "complete":
            by_kind = {kind: {c.seed: c for c in own if c.control == kind} for kind in kinds}
            repeats = {c.seed: c for c in own if c.control == REPEAT}
            found.append(Controlled(trial, {trial.seed: trial, **repeats}, by_kind))
    return found


def compared_split(controlled: Controlled) -> Split:
    """Return the split on which a trial is compared: `test` where all its networks have figures."""
    networks = [
        *controlled.learned.values(),
        *(c for by_seed in controlled.controls.values() for c in by_seed.values()),
    ]
    return "test" if all(r.split == "test" for r in networks) else "validation"


def comparisons(record: StudyRecord) -> list[Comparison]:
    """Compare each trial with its controls, and the control `fresh` with all others.

    Pairs whose Δ_MTL is undefined are left out.
    """
    rows = []
    for controlled in controlled_trials(record):
        trial, controls = controlled.trial, controlled.controls
        split = compared_split(controlled)
        pairs = [
            (trial.name, kind, controlled.learned, by_seed) for kind, by_seed in controls.items()
        ]
        pairs += [
            (control_name(FRESH, trial.trial or 0), kind, controls[FRESH], controls[kind])
            for kind in controls
            if FRESH in controls and (kind in _TRAINED_ALIKE or kind.startswith(DRAWN))
        ]
        for a, kind, ours, theirs in pairs:
            differences = [
                delta(record, ours[seed], split) - delta(record, theirs[seed], split)
                for seed in ours
                if seed in theirs
            ]
            row = compare(a, control_name(kind, trial.trial or 0), differences)
            if row is not None:
                rows.append(row)
    return rows


def compare(a: str, b: str, differences: Sequence[float]) -> Comparison | None:
    """Compare two networks by differences of Δ_MTL, one per seed; None where none is defined."""
    known = [d for d in differences if math.isfinite(d)]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Comparison(a, b, len(known), statistics.fmean(known), sd)


def spread_of_patterns(record: StudyRecord, controlled: Controlled) -> tuple[float, float] | None:
    """Measure how far drawn patterns of one cost differ, and how far seeds do.

    Returns:
        (standard deviation of the patterns' means over seeds, standard deviation over seeds within
        a pattern, pooled), of Δ_MTL, percent; None with less than two patterns or two seeds.
    """
    split = compared_split(controlled)
    drawn = [
        [delta(record, r, split) for r in by_seed.values()]
        for kind, by_seed in controlled.controls.items()
        if kind.startswith(DRAWN)
    ]
    drawn = [values for values in drawn if all(map(math.isfinite, values)) and len(values) > 1]
    if len(drawn) < 2:
        return None
    within = statistics.fmean(statistics.variance(values) for values in drawn)
    return statistics.stdev(map(statistics.fmean, drawn)), math.sqrt(within)
