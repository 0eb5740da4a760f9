"""Trials that lag behind are stopped: a rule on validation Δ_MTL that minds what trials cost.

Optuna's pruners know one objective. Here a trial is measured against earlier ones of its search at
the same epoch that cost no more than it does at that moment, so that cheap networks are never
stopped for being worse than dear ones; under a budget all cost alike, and it is the plain rule.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import nn

from gatesearch.measures import delta_mtl
from gatesearch.methods.context import Context
from gatesearch.results import Result
from gatesearch.study import SearchSpec
from gatesearch.training import evaluate

GAIN, COST = "delta_mtl", "gflops"
Rival = tuple[int, float, float]  # epoch, GFLOPs, Δ_MTL

# A judgement gains nothing from more, and every job carries them.
_RECENT = 100


class Stopper:
    """Judges one trial while it trains.

    Args:
        bench: Validation part, tasks, rule.
        stl: Validation metrics of the single-task networks.
        rivals: Of earlier trials.

    Attributes:
        verdict: Why the trial is to end; empty while it may go on.
    """

    def __init__(self, bench: Context, stl: Mapping[str, float], rivals: Sequence[Rival]) -> None:
        self.bench, self.stl, self.rivals = bench, stl, rivals
        self.verdict = ""

    def look(self, epoch: int, network: nn.Module, gflops: float) -> dict[str, float]:
        """Measure the network if this epoch is one of judgement, and judge it.

        Args:
            epoch: Epochs done.
            network: As it is now; it is left in evaluation mode where it was measured.
            gflops: What it costs now.

        Returns:
            `delta_mtl` and `gflops` for the curves; NaN where it was not measured.
        """
        spec = self.bench.study.search
        if spec.stop == "none" or not judged(epoch, spec):
            return {GAIN: math.nan, COST: math.nan} if spec.stop != "none" else {}
        runtime, size = self.bench.runtime, self.bench.study.training.batch_size
        found = evaluate(
            network, self.bench.validation, self.bench.tasks, runtime=runtime, batch_size=size
        )
        directions = {name: task.higher_is_better for name, task in self.bench.tasks.items()}
        gain = delta_mtl(found, self.stl, directions)
        others = [g for e, cost, g in self.rivals if e == epoch and cost <= gflops * (1 + 1e-9)]
        if lags(gain, others, after=spec.stop_after):
            self.verdict = (
                f"stopped after epoch {epoch}: Δ_MTL {gain:+.2f} % is below {median(others):+.2f}, "
                f"the median of {len(others)} earlier trials that cost no more"
            )
        return {GAIN: gain, COST: gflops}


def judged(epoch: int, spec: SearchSpec) -> bool:
    """Whether trials are judged after this epoch.

    >>> [e for e in range(1, 50) if judged(e, SearchSpec(stop="halving", stop_every=5))]
    [5, 10, 20, 40]
    >>> [e for e in range(1, 20) if judged(e, SearchSpec(stop="median", stop_every=5))]
    [5, 10, 15]
    """
    rung, rest = divmod(epoch, spec.stop_every)
    return rest == 0 and (spec.stop == "median" or rung & (rung - 1) == 0)


def lags(gain: float, others: Sequence[float], *, after: int) -> bool:
    """Whether a trial is below the median of so many others; one without a number is.

    >>> lags(1.0, [0.0, 2.0, 3.0], after=3), lags(2.0, [0.0, 2.0, 3.0], after=3)
    (True, False)
    >>> lags(-9.0, [0.0, 2.0], after=3)
    False
    """
    return len(others) >= after and not gain >= median(others)


def rivals_of(results: Sequence[Result]) -> list[Rival]:
    """What later trials are measured against, from the trials that ended last."""
    found: list[Rival] = []
    for result in results[-_RECENT:]:
        gains: Any = result.curves.get(GAIN, ())
        costs = result.curves.get(COST, ())
        found += [
            (epoch, cost, gain)
            for epoch, (gain, cost) in enumerate(zip(gains, costs, strict=True), start=1)
            if math.isfinite(gain)
        ]
    return found
