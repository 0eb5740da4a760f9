"""Stop trials that are worse than earlier ones, by a rule on validation Δ_MTL that regards cost.

Optuna's pruners know one objective. Here a trial is compared with earlier trials of its search at
the same epoch, but only with those that cost no more than it does then. So a cheap network is never
stopped because an expensive one is better. Under a budget all trials cost about the same, and the
rule is the usual one.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from torch import nn

from gatesearch.measures import Gain, gain
from gatesearch.methods import Context
from gatesearch.results import Result
from gatesearch.study import SearchSpec
from gatesearch.training import evaluate

GAIN, COST = "delta_mtl", "gflops"
Rival = tuple[int, float, float]  # epoch, GFLOPs, Δ_MTL

# Reduction factor of successive halving: 1 of 2 trials goes on at a rung, and the next rung is
# after 2 times as many epochs.
_FACTOR = 2
# Number of earlier trials that a trial is compared with: more would not change the judgement much,
# and every job carries their values.
_MOST_RIVALS = 100


class Stopper:
    """Judges one trial while it trains.

    Args:
        context: Validation part, tasks, and the study's rule.
        single_task: Task -> validation metric of the single-task networks.
        rivals: Judged epochs of earlier trials.

    Attributes:
        verdict: Reason to stop the trial; empty while it may go on.
    """

    def __init__(
        self, context: Context, single_task: Mapping[str, float], rivals: Sequence[Rival]
    ) -> None:
        self.context, self.single_task, self.rivals = context, single_task, rivals
        self.verdict = ""

    def judge(self, epoch: int, network: nn.Module, gflops: float) -> dict[str, float]:
        """Measure and judge the network if trials are judged after this epoch.

        Args:
            epoch: Epochs done.
            network: The network as it is now; measuring leaves it in evaluation mode.
            gflops: Its cost now.

        Returns:
            `delta_mtl` (percent) and `gflops` for the curves; NaN in epochs without judgement.
        """
        spec = self.context.study.search
        if not judged(epoch, spec):
            return {GAIN: math.nan, COST: math.nan}
        runtime, size = self.context.runtime, self.context.study.training.batch_size
        metrics = evaluate(
            network, self.context.validation, self.context.tasks, runtime=runtime, batch_size=size
        )
        directions = {name: task.higher_is_better for name, task in self.context.tasks.items()}
        now = gain(metrics, self.single_task, directions)
        others = [g for e, cost, g in self.rivals if e == epoch and cost <= gflops * (1 + 1e-9)]
        if len(others) >= spec.stop_after:
            reason = _reason_to_stop(now, others, spec)
            self.verdict = f"stopped after epoch {epoch}: Δ_MTL {reason}" if reason else ""
        return {GAIN: now.percent, COST: gflops}


def judged(epoch: int, spec: SearchSpec) -> bool:
    """Tell whether trials are judged after this epoch.

    >>> [e for e in range(1, 50) if judged(e, SearchSpec(stop="halving", stop_every=5))]
    [5, 10, 20, 40]
    >>> [e for e in range(1, 20) if judged(e, SearchSpec(stop="median", stop_every=5))]
    [5, 10, 15]
    """
    rung, rest = divmod(epoch, spec.stop_every)
    return rest == 0 and (spec.stop == "median" or rung & (rung - 1) == 0)


def halving_bar(values: Sequence[float]) -> float:
    """Return the lowest value with which successive halving lets a trial go on after a rung.

    This is asynchronous successive halving (Li et al., MLSys 2020, algorithm 2) as in Optuna's
    `SuccessiveHalvingPruner`: of the n values at the rung so far, including the trial's, the best
    max(1, n // 2) go on.

    >>> halving_bar([2.0, 1.0, 3.0, 0.0]), halving_bar([1.0, 2.0, 3.0]), halving_bar([1.0])
    (2.0, 3.0, 1.0)
    """
    ranked = sorted(values, key=lambda value: -math.inf if math.isnan(value) else value)
    return ranked[-max(1, len(ranked) // _FACTOR)]


def _reason_to_stop(now: Gain, others: Sequence[float], spec: SearchSpec) -> str:
    """Compare a trial with others; empty if it may go on. A trial of undefined gain is stopped."""
    halving = spec.stop == "halving"
    bar = halving_bar([*others, now.percent]) if halving else median(others)
    if now.percent >= bar:
        return ""
    rule = "the bar of successive halving over" if halving else "the median of"
    compared = f"{bar:+.2f}, {rule} {len(others)} earlier trials that cost no more"
    if now.fault:
        return f"is undefined ({now.fault}), and must not be below {compared}"
    return f"{now.percent:+.2f} % is below {compared}"


def rivals_of(results: Sequence[Result]) -> list[Rival]:
    """List the judged epochs of the trials that ended last, with which later ones are compared."""
    return [
        (epoch, cost, gain)
        for result in results[-_MOST_RIVALS:]
        for epoch, (gain, cost) in enumerate(
            zip(result.curves.get(GAIN, ()), result.curves.get(COST, ()), strict=True), start=1
        )
        if math.isfinite(gain)
    ]
