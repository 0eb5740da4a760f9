"""Trials that lag behind are stopped: a rule on validation Δ_MTL that minds what trials cost.

Optuna's pruners know one objective. Here a trial is measured against earlier ones of its search at
the same epoch that cost no more than it does at that moment, so that cheap networks are never
stopped for being worse than dear ones; under a budget all cost alike, and it is the plain rule.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from torch import nn

from gatesearch.measures import delta_mtl
from gatesearch.methods import Context
from gatesearch.results import Result
from gatesearch.study import SearchSpec
from gatesearch.training import evaluate

GAIN, COST = "delta_mtl", "gflops"
Rival = tuple[int, float, float]  # epoch, GFLOPs, Δ_MTL

# The reduction factor of successive halving: one of so many goes on, epochs grow as much.
_FACTOR = 2
# More rivals add nothing to a judgement, and every job carries them.
_MOST_RIVALS = 100


class Stopper:
    """Judges one trial while it trains.

    Args:
        context: Validation part, tasks, rule.
        single_task: Validation metrics of the single-task networks.
        rivals: Judged epochs of earlier trials.

    Attributes:
        verdict: Why the trial is to end; empty while it may go on.
    """

    def __init__(
        self, context: Context, single_task: Mapping[str, float], rivals: Sequence[Rival]
    ) -> None:
        self.context, self.single_task, self.rivals = context, single_task, rivals
        self.verdict = ""

    def judge(self, epoch: int, network: nn.Module, gflops: float) -> dict[str, float]:
        """Measure the network if it is judged after this epoch, and judge it.

        Args:
            epoch: Epochs done.
            network: As it is now; it is left in evaluation mode where it was measured.
            gflops: What it costs now.

        Returns:
            `delta_mtl` and `gflops` for the curves; NaN where it was not measured.
        """
        spec = self.context.study.search
        if not judged(epoch, spec):
            return {GAIN: math.nan, COST: math.nan}
        runtime, size = self.context.runtime, self.context.study.training.batch_size
        metrics = evaluate(
            network, self.context.validation, self.context.tasks, runtime=runtime, batch_size=size
        )
        directions = {name: task.higher_is_better for name, task in self.context.tasks.items()}
        gain = delta_mtl(metrics, self.single_task, directions)
        others = [g for e, cost, g in self.rivals if e == epoch and cost <= gflops * (1 + 1e-9)]
        if len(others) >= spec.stop_after:
            why = _falls_behind(gain, others, spec)
            self.verdict = f"stopped after epoch {epoch}: Δ_MTL {gain:+.2f} % {why}" if why else ""
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


def halving_bar(values: Sequence[float]) -> float:
    """The least value with which successive halving lets a trial go on beyond a rung.

    The rule of asynchronous successive halving (Li et al., MLSys 2020, algorithm 2) as Optuna's
    `SuccessiveHalvingPruner` has it: of the n values at the rung so far, the trial's own among
    them, the best max(1, n // 2) go on.

    >>> halving_bar([2.0, 1.0, 3.0, 0.0]), halving_bar([1.0, 2.0, 3.0]), halving_bar([1.0])
    (2.0, 3.0, 1.0)
    """
    ranked = sorted(values, key=lambda value: -math.inf if math.isnan(value) else value)
    return ranked[-max(1, len(ranked) // _FACTOR)]


def _falls_behind(gain: float, others: Sequence[float], spec: SearchSpec) -> str:
    """Why a trial is to end; empty where it may go on. One without a number ends."""
    halving = spec.stop == "halving"
    bar = halving_bar([*others, gain]) if halving else median(others)
    if gain >= bar:
        return ""
    rule = "the bar of successive halving over" if halving else "the median of"
    return f"is below {bar:+.2f}, {rule} {len(others)} earlier trials that cost no more"


def rivals_of(results: Sequence[Result]) -> list[Rival]:
    """What later trials are measured against: judged epochs of the trials that ended last."""
    return [
        (epoch, cost, gain)
        for result in results[-_MOST_RIVALS:]
        for epoch, (gain, cost) in enumerate(
            zip(result.curves.get(GAIN, ()), result.curves.get(COST, ()), strict=True), start=1
        )
        if math.isfinite(gain)
    ]
