"""Compare a network with single-task networks (Δ_MTL) and others (mean rank); write its cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gatesearch.errors import UsageError


def delta_mtl(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float] | None = None,
) -> float:
    """Compute Δ_MTL, the mean relative gain over single-task networks.

        Δ = 100 / Σ_t w_t · Σ_t w_t (-1)^{l_t} (M_t - B_t) / B_t

    with M the metrics, B the baseline, and l_t = 1 for metrics where lower is better, else 0
    (Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, where all w_t = 1).

    Args:
        metrics: task -> value of the network.
        baseline: task -> value of the single-task network; positive.
        higher_is_better: task -> direction of its metric. Only these tasks count.
        weights: task -> weight w_t of its gain; 1 for tasks that are not named.

    Returns:
        Percent; positive if the network is better than the baseline, NaN if a value is NaN.

    Raises:
        UsageError: No tasks, a task missing, or a baseline that is not positive.

    >>> round(delta_mtl({"seg": 44.0, "depth": 0.45}, {"seg": 40.0, "depth": 0.5},
    ...                 {"seg": True, "depth": False}), 6)
    10.0
    """
    _check_complete(higher_is_better, {"metrics": metrics, "baseline": baseline})
    gains, total = [], 0.0
    for task, higher in higher_is_better.items():
        if baseline[task] <= 0:
            raise UsageError(
                f"Δ_MTL divides by the baseline, which must be positive; found {baseline[task]} "
                f"for {task}: train the single-task network longer"
            )
        gain = (metrics[task] - baseline[task]) / baseline[task]
        weight = (weights or {}).get(task, 1.0)
        gains.append(weight * (gain if higher else -gain))
        total += weight
    return 100.0 * math.fsum(gains) / total


@dataclass(frozen=True)
class Gain:
    """Δ_MTL of a network, or the reason why it is undefined.

    Attributes:
        percent: Δ_MTL; NaN if it is undefined.
        fault: Why it is undefined, as the rest of a sentence; empty if it is defined.
    """

    percent: float
    fault: str = ""


def gain(
    metrics: Mapping[str, float] | None,
    baseline: Mapping[str, float] | None,
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float] | None = None,
) -> Gain:
    """Compute Δ_MTL of a network of a study, where `delta_mtl` may be undefined.

    It is undefined if a metric of the network is missing or not finite, or one of the single-task
    networks is missing, not finite or not positive. A mIoU of 0 after one epoch is such a one.

    Args:
        metrics: Task -> value of the network; None where it was not measured.
        baseline: Task -> value of the single-task networks; None where there are none.
        higher_is_better: Task -> direction of its metric. Only these tasks count.
        weights: Task -> weight of its gain; 1 for tasks that are not named.

    >>> gain({"seg": 0.5}, {"seg": 0.0}, {"seg": True})
    Gain(percent=nan, fault='the single-task network of seg has 0, and the gain divides by it')
    """
    for task in higher_is_better:
        base = (baseline or {}).get(task)
        if base is None:
            return Gain(math.nan, f"there is no single-task network of {task} to compare with")
        if not math.isfinite(base):
            return Gain(math.nan, f"the metric of the single-task network of {task} is {base}")
        if base <= 0:
            return Gain(
                math.nan,
                f"the single-task network of {task} has {base:g}, and the gain divides by it",
            )
    for task in higher_is_better:
        value = (metrics or {}).get(task)
        if value is None:
            return Gain(math.nan, f"{task} was not measured")
        if not math.isfinite(value):
            return Gain(math.nan, f"the metric of {task} is {value}")
    assert metrics is not None
    assert baseline is not None
    try:
        percent = delta_mtl(metrics, baseline, higher_is_better, weights)
    except (OverflowError, ValueError):  # of `math.fsum`, for infinite terms
        percent = math.nan
    if not math.isfinite(percent):
        return Gain(math.nan, "the metrics differ by more than a floating-point number can hold")
    return Gain(percent)


def mean_rank(
    rows: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """Compute each method's rank, averaged over tasks; 1 is best, and equal values rank equally.

    Args:
        rows: method -> task -> value; NaN ranks last.
        higher_is_better: task -> direction of its metric. Only these tasks count.

    Returns:
        method -> mean rank.

    Raises:
        UsageError: No tasks, or a method without a value for one.

    >>> mean_rank({"a": {"seg": 2.0}, "b": {"seg": 2.0}, "c": {"seg": 1.0}}, {"seg": True})
    {'a': 1.0, 'b': 1.0, 'c': 3.0}
    """
    _check_complete(higher_is_better, rows)
    costs = {
        method: [_cost(row[task], higher) for task, higher in higher_is_better.items()]
        for method, row in rows.items()
    }
    return {
        method: math.fsum(
            1 + sum(other[i] < cost for other in costs.values())
            for i, cost in enumerate(method_costs)
        )
        / len(method_costs)
        for method, method_costs in costs.items()
    }


def _check_complete(tasks: Mapping[str, bool], rows: Mapping[str, Mapping[str, float]]) -> None:
    if not tasks:
        raise UsageError("higher_is_better must name at least one task, found none")
    for name, row in rows.items():
        missing = [task for task in tasks if task not in row]
        if missing:
            raise UsageError(f"every task needs a value; {name} has none for {', '.join(missing)}")


def _cost(value: float, higher: bool) -> float:
    if math.isnan(value):
        return math.inf
    return -value if higher else value


def shown_gflops(value: float) -> str:
    """Write GFLOPs with three decimals, and with three digits where these would say little.

    >>> shown_gflops(1150.0), shown_gflops(0.379), shown_gflops(0.0000824)
    ('1,150.000', '0.379', '0.0000824')
    """
    if not 0 < value < 0.01:
        return f"{value:,.3f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"
