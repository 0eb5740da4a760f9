"""From learned gates to a gate pattern whose measured latency uses up a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget
from gatesearch.cost.pattern import PatternCost
from gatesearch.cost.projection import project
from gatesearch.errors import UsageError

# A measured latency of at least this share of the budget is good enough; `_AIM` leaves room for
# noise.
LEAST_MEASURED = 0.9
_AIM = 0.96
_ROUNDS = 8
_TRIES = 3  # measurements of all gates closed: a moment's load must not waste a whole training


@dataclass(frozen=True)
class _Measured:
    """A pattern with its latency by the table and as measured, seconds."""

    gates: dict[str, Tensor]
    table: float
    seconds: float


def fit_latency(
    alpha: Mapping[str, Tensor],
    cost: PatternCost,
    budgets: Sequence[Budget],
    *,
    measure: Callable[[dict[str, Tensor]], float],
    multiple: int = 1,
) -> dict[str, Tensor]:
    """Project gates until the measured latency is between `LEAST_MEASURED` and all of its budget.

    The table orders patterns, and measurements show which of them reach the limit. The first bound
    on the table's seconds is corrected by measured / table of all gates closed; each next bound is
    where the line through the measurements around the limit meets it, or the middle between them.
    The largest pattern that was measured inside the limit is returned, so that noise, or another
    budget, can leave a part of this budget unused. (Noise can also make the same network take
    longer another time.)

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: Cost of the supernet's patterns, with measured layers.
        budgets: All of them hold; without one of latency this is `project`.
        measure: Gates -> seconds of the compact network under them.
        multiple: As for `project`.

    Returns:
        Gated node -> (T, C) bool: a pattern that was measured inside the limit.

    Raises:
        UsageError: Even all gates closed take longer, or exceed another budget.
    """
    timed = [budget for budget in budgets if budget.measure == "latency"]
    if not timed:
        return project(alpha, cost, budgets, multiple=multiple)
    tightest = min(timed, key=lambda budget: budget.limit)
    others = [budget for budget in budgets if budget.measure != "latency"]
    limit, aim = tightest.limit, _AIM * tightest.limit

    def measured(gates: dict[str, Tensor]) -> _Measured:
        return _Measured(gates, float(cost.seconds(gates)), measure(gates))

    closed, opened = (
        {name: torch.full(a.shape, is_open) for name, a in alpha.items()}
        for is_open in (False, True)
    )
    for _ in range(_TRIES):
        least = measured(closed)
        if least.seconds <= limit:
            break
    else:
        raise UsageError(
            f"budget {tightest.text} must leave room for all gates closed; found networks from "
            f"{1e3 * least.seconds:.4g} ms (all closed) to {1e3 * measure(opened):.4g} ms (all "
            "open); raise the budget"
        )
    inside, outside = least, None
    bound = least.table * aim / least.seconds
    for turn in range(_ROUNDS):
        # No pattern takes less than all gates closed, up to rounding of the sums.
        bound = max(bound, least.table * (1 + 1e-9))
        table = Budget(tightest.text, "latency", bound)
        gates = project(alpha, cost, [*others, table], multiple=multiple)
        if _same(gates, inside.gates):
            break
        latest = measured(gates)
        if latest.seconds > limit:
            outside = latest
        else:
            inside = max(inside, latest, key=lambda pattern: pattern.table)
        enough = LEAST_MEASURED * limit <= latest.seconds <= limit
        if enough or (outside is not None and outside.table <= inside.table):
            break
        bound = _next_bound(least, inside, outside, aim, halve=turn % 3 == 2)
    return inside.gates


def _next_bound(
    least: _Measured, inside: _Measured, outside: _Measured | None, aim: float, *, halve: bool
) -> float:
    """Return the seconds by the table at which `aim` should be measured."""
    lower, upper = (least, inside) if outside is None else (inside, outside)
    across, rise = upper.table - lower.table, upper.seconds - lower.seconds
    if outside is not None and halve:
        return lower.table + across / 2
    if across > 0 and rise > 0:
        return lower.table + (aim - lower.seconds) * across / rise
    return inside.table * aim / inside.seconds


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
