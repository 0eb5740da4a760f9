"""Turn learned gates into a gate pattern whose measured latency uses up a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget
from gatesearch.cost.pattern import PatternCost
from gatesearch.cost.projection import project
from gatesearch.errors import UsageError

# A measured latency of at least this share of the budget is good enough.
LEAST_MEASURED = 0.9
# Share of the budget that is aimed at; the rest is room for noise of the measurement.
_AIM = 0.96
# Largest number of patterns that are measured.
_ROUNDS = 8
# Number of times that all gates closed are measured before the budget is refused: other load on the
# machine for a moment must not waste a whole training.
_TRIES = 3


@dataclass(frozen=True)
class _Measured:
    """A measured pattern.

    Attributes:
        gates: Gated node -> (T, C) bool.
        table: Its latency as estimated by the latency table, seconds.
        seconds: Its measured latency, seconds.
    """

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
    """Project gates to a pattern whose measured latency is at least `LEAST_MEASURED` of the budget.

    `project` finds patterns within a bound on the latency of the table, and this function searches
    for the bound at which the measured latency meets the budget. The first bound is the budget,
    corrected by table / measured latency of all gates closed. Each next bound is where the line
    through two measurements meets the limit, or the middle between them.

    The largest pattern that was measured within the limit is returned. Noise or another budget can
    leave more of this budget unused. Noise can also make the same network exceed it in a later
    measurement.

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: Cost of the supernet's patterns, with measured layers.
        budgets: Upper bounds, all of which hold; without one of latency this is `project`.
        measure: Gates -> measured seconds of the compact network that they give.
        multiple: Numbers of channels are rounded to multiples of this; see `project`.

    Returns:
        Gated node -> (T, C) bool: a pattern that was measured within the limit.

    Raises:
        UsageError: Even with all gates closed the latency exceeds its budget, or the cost another.
    """
    timed = [budget for budget in budgets if budget.measure == "latency"]
    if not timed:
        return project(alpha, cost, budgets, multiple=multiple)
    tightest = min(timed, key=lambda budget: budget.limit)
    other_budgets = [budget for budget in budgets if budget.measure != "latency"]
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
        gates = project(alpha, cost, [*other_budgets, table], multiple=multiple)
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
    """Return the latency of the table at which a measurement should give `aim`, seconds.

    Args:
        least: All gates closed.
        inside: Largest pattern measured within the limit.
        outside: Latest pattern measured above the limit; None before there is one.
        aim: Latency to measure next, seconds.
        halve: Take the middle between `inside` and `outside` instead of the line through them.
    """
    lower, upper = (least, inside) if outside is None else (inside, outside)
    table_step, measured_step = upper.table - lower.table, upper.seconds - lower.seconds
    if outside is not None and halve:
        return lower.table + table_step / 2
    if table_step > 0 and measured_step > 0:
        return lower.table + (aim - lower.seconds) * table_step / measured_step
    return inside.table * aim / inside.seconds


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
