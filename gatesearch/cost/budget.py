"""Budgets: upper bounds on what a network costs, as a user writes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gatesearch.cost.macs import Cost
from gatesearch.errors import UsageError

FORMS = "892G (FLOPs, two a multiply-add), 446GMAC, 20M (parameters), 1.3xMTL, 0.8xSTL"
_SHAPE = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)
_UNITS: dict[str, tuple[Literal["macs", "params"], float]] = {
    "g": ("macs", 0.5e9),
    "gflop": ("macs", 0.5e9),
    "gflops": ("macs", 0.5e9),
    "gmac": ("macs", 1e9),
    "gmacs": ("macs", 1e9),
    "m": ("params", 1e6),
}


@dataclass(frozen=True)
class Budget:
    """An upper bound.

    Attributes:
        text: As the user wrote it, without spaces.
        measure: Attribute of `Cost` that is bounded.
        limit: Its highest value.
    """

    text: str
    measure: Literal["macs", "params"]
    limit: float

    def share(self, cost: Cost) -> float:
        """What part of the budget a network takes; at most 1 inside it."""
        return float(getattr(cost, self.measure)) / self.limit


def parse_budget(text: str, *, mtl: Cost, stl: Cost) -> Budget:
    """Read a budget and refuse one that no network of a study can reach.

    Args:
        text: One of `FORMS`.
        mtl: Cost of the multi-task network, all gates closed: the least there is.
        stl: Cost of the single-task networks, all gates open.

    Raises:
        UsageError: Another form, or out of reach; says what can be reached.
    """
    found = _SHAPE.fullmatch(text.strip())
    amount, unit = (float(found[1]), found[2].lower()) if found else (0.0, "")
    if unit in ("xmtl", "xstl"):
        whole = mtl if unit == "xmtl" else stl
        budget = Budget(f"{amount:g}x{unit[1:].upper()}", "macs", amount * whole.macs)
    elif unit in _UNITS:
        measure, scale = _UNITS[unit]
        budget = Budget(text.strip().replace(" ", ""), measure, amount * scale)
    else:
        raise UsageError(f"a budget must be a number with a unit, such as {FORMS}; found '{text}'")
    least, most = (float(getattr(cost, budget.measure)) for cost in (mtl, stl))
    if not least <= budget.limit <= most:
        shown = [_shown(budget.measure, value) for value in (budget.limit, least, most)]
        raise UsageError(
            f"budget {budget.text} is {shown[0]}, out of reach: this study's networks go from "
            f"{shown[1]} (mtl) to {shown[2]} (stl)"
        )
    return budget


def name_of(budgets: Sequence[Budget]) -> str:
    """Budgets that hold together, in one order whatever theirs; empty without any."""
    return "+".join(sorted({budget.text for budget in budgets}))


def _shown(measure: str, value: float) -> str:
    if measure == "macs":
        return f"{2e-9 * value:.4g} GFLOPs"
    return f"{1e-6 * value:.4g} M parameters"
