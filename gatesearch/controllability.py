"""How well a method obeys a preference among tasks and a budget at run time, with numpy alone.

Papers on controllable networks measure two things over networks for many preferences: the
hypervolume of their losses and uniformity, which says how well the losses agree with the
preferences (Navon et al., "Learning the Pareto Front with Hypernetworks", ICLR 2021, and its public
code; Raychaudhuri et al., "Controllable Dynamic Multi-Task Architectures", CVPR 2022; Aich et al.,
"Efficient Controllable Multi-Task Architectures", ICCV 2023). The formulas of the last two are not
public; those here are the forms of the first. That losses are ratios to single-task networks, the
reference, and the share of budgets that are hit are ours.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from gatesearch.errors import UsageError
from gatesearch.pareto import hypervolume, pareto_front

# A network twice as bad as the single-task ones in every task.
REFERENCE = 2.0
# A budget is hit by a network that takes at least this share of it.
NEAR = 0.9
# Bound of the slabs that a hypervolume is cut into: (points on the front)^(tasks - 2).
_MOST_SLABS = 50_000


def relative_losses(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
) -> list[float]:
    """Compute l_t = M_t / B_t where lower is better, and B_t / M_t where higher is.

    Args:
        metrics: Task -> value M_t of the network.
        baseline: Task -> value B_t of the single-task network.
        higher_is_better: Task -> direction of its metric; gives the order of the result.

    Returns:
        A ratio per task: 1 as good as the single-task network, lower is better; infinite where it
        divides by 0, NaN where a value is missing, negative or no number.

    >>> relative_losses({"seg": 20.0, "depth": 0.5}, {"seg": 40.0, "depth": 1.0},
    ...                 {"seg": True, "depth": False})
    [2.0, 0.5]
    """
    losses = []
    for task, higher in higher_is_better.items():
        value, base = metrics.get(task, math.nan), baseline.get(task, math.nan)
        above, below = (base, value) if higher else (value, base)
        if not (0 <= above < math.inf and 0 <= below < math.inf):
            losses.append(math.nan)
        else:
            losses.append(above / below if below else math.inf)
    return losses


def preference_hypervolume(losses: ArrayLike, reference: float = REFERENCE) -> float:
    """Compute the hypervolume of losses over preferences.

        HV = volume of the union over networks i of the boxes [l_i1, r] x ... x [l_iT, r]

    with l_it the relative loss of task t, and r the reference. Single-task networks alone have
    (r - 1)^T, so 1 at the default reference; higher is better.

    Args:
        losses: (n, T), one row per network, each for one preference.
        reference: r, the same in every task.

    Returns:
        The volume, without unit; NaN where it would take too long, for many tasks and networks.

    >>> preference_hypervolume([[1.0, 1.0]])
    1.0
    >>> preference_hypervolume([[0.5, 1.5], [1.5, 0.5]])  # 1.5 x 0.5 each, and 0.5 x 0.5 in both
    1.25
    """
    rows = np.array(losses, dtype=np.float64)
    if rows.size == 0:
        return 0.0
    rows = rows[np.isfinite(rows).all(axis=1)]
    rows = rows[(rows < reference).all(axis=1)]
    if len(rows) == 0:
        return 0.0
    tasks = rows.shape[1]
    rows = np.unique(rows[pareto_front(rows, [False] * tasks)], axis=0)
    if tasks > 2 and (tasks - 2) * math.log(len(rows)) > math.log(_MOST_SLABS):
        return math.nan
    return hypervolume(rows, [reference] * tasks, [False] * tasks)


def uniformity(losses: Sequence[float], preferences: Sequence[float]) -> float:
    """Compute how well a network's losses agree with the preferences (1 = perfectly).

        u = 1 - sum_t p_t log(T p_t),    p_t = r_t l_t / sum_s r_s l_s

    with r the preferences and l the losses: 1 less the divergence of p from (1/T, ..., 1/T). A task
    that is preferred twice as much should have half the loss. Between 1 - log T and 1.

    Args:
        losses: (T,) relative losses, at least 0.
        preferences: (T,) preferences, at least 0; all 0 means all alike.

    Returns:
        u, without unit; NaN where a loss is not finite, or every product is 0.

    Raises:
        UsageError: Numbers of losses and preferences differ, or one is negative.

    >>> uniformity([1.0, 2.0], [0.5, 0.25])
    1.0
    >>> uniformity([1.0, 1.0], [1.0, 0.0]) == 1 - math.log(2)
    True
    """
    values, weights = np.asarray(losses, np.float64), np.asarray(preferences, np.float64)
    if values.shape != weights.shape or (weights < 0).any() or (values < 0).any():
        raise UsageError(
            "uniformity takes a loss and a preference of at least 0 for every task, found "
            f"{list(losses)} and {list(preferences)}"
        )
    if not weights.any():
        weights = np.ones_like(weights)
    products = values * weights
    total = products.sum()
    if not math.isfinite(total) or total <= 0:
        return math.nan
    shares = products[products > 0] / total
    return float(1 - (shares * np.log(len(values) * shares)).sum())


def budgets_hit(shares: Sequence[float], near: float = NEAR) -> float:
    """Compute the share of requests under a budget whose network keeps to it and nearly fills it.

    Args:
        shares: Per request, cost of its network / budget; the largest where there are several.
        near: Least share of the budget that the network must take.

    Returns:
        In [0, 1]; NaN without requests.

    >>> budgets_hit([1.0, 0.95, 0.5, 1.01])
    0.5
    """
    if not shares:
        return math.nan
    return sum(near <= share <= 1 for share in shares) / len(shares)


def even_requests(costs: Sequence[float], count: int = 10) -> list[float]:
    """Ask networks for budgets evenly from the cheapest to the dearest, for `budgets_hit`.

    Each request is answered by the dearest network that keeps to its budget.

    Args:
        costs: Costs of the networks, positive.
        count: Number of budgets, at least 2.

    Returns:
        Per budget, cost of the answer / budget; empty without networks.

    >>> even_requests([1.0, 4.0], count=4)  # budgets of 1, 2, 3 and 4
    [1.0, 0.5, 0.3333333333333333, 1.0]
    """
    if not costs:
        return []
    least, most = min(costs), max(costs)
    budgets = [least + i / (count - 1) * (most - least) for i in range(count - 1)] + [most]
    return [max(cost for cost in costs if cost <= budget) / budget for budget in budgets]
