"""Budgets: upper bounds on the cost of a network, in the forms that a user writes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gatesearch.cost.cost import Cost
from gatesearch.errors import UsageError, unknown

Measure = Literal["macs", "params", "latency"]

FORMS = (
    "892G (FLOPs, 2 per multiply-add), 446GMAC, 20M (parameters), 12ms (for one image on this "
    "device), 1.3xMTL, 0.8xSTL; with a task before them, depth:20G or depth:0.6xSTL bound what it "
    "costs alone"
)
_AMOUNT_AND_UNIT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)
_UNITS: dict[str, tuple[Measure, float]] = {
    "g": ("macs", 0.5e9),
    "gflop": ("macs", 0.5e9),
    "gflops": ("macs", 0.5e9),
    "gmac": ("macs", 1e9),
    "gmacs": ("macs", 1e9),
    "m": ("params", 1e6),
    "ms": ("latency", 1e-3),
    "s": ("latency", 1.0),
}


@dataclass(frozen=True)
class Budget:
    """An upper bound on the cost of a network.

    Attributes:
        text: The budget as the user wrote it, without spaces.
        measure: The bounded measure: `macs` or `params` of `Cost`, or latency.
        limit: Highest value of that measure; seconds for latency.
        task: Task whose outputs alone are bounded, which is what a network of it alone would cost;
            empty for a bound on the whole network.
    """

    text: str
    measure: Measure
    limit: float
    task: str = ""

    def share(self, cost: Cost, *, seconds: float | None = None) -> float:
        """Return the share of the budget that a network takes; at most 1 inside it.

        Args:
            cost: Cost of the network.
            seconds: Its latency; needed for a budget of latency.

        Raises:
            ValueError: The budget bounds latency, and `seconds` is None; or it bounds what one task
                costs, and `cost` does not say.
        """
        if self.task:
            if self.task not in cost.task_macs:
                raise ValueError(
                    f"budget {self.text} bounds what {self.task} costs alone; found no such "
                    "figure: count it with `macs_of_tasks`"
                )
            return cost.task_macs[self.task] / self.limit
        if self.measure != "latency":
            return float(getattr(cost, self.measure)) / self.limit
        if seconds is None:
            raise ValueError(f"budget {self.text} bounds latency; found none: pass `seconds`")
        return seconds / self.limit


def measure_of(text: str) -> Measure:
    """Return the measure that a budget bounds, which its text tells before anything is measured.

    Raises:
        UsageError: The text has none of the `FORMS`.

    >>> measure_of("12 ms")
    'latency'
    """
    _, _, unit = _read(text)
    return _UNITS[unit][0] if unit in _UNITS else "macs"


def task_of(text: str) -> str:
    """Return the task of which a budget bounds what it costs alone; empty for the whole network.

    Raises:
        UsageError: The text has none of the `FORMS`.

    >>> task_of("depth:0.6xSTL"), task_of("1.3xMTL")
    ('depth', '')
    """
    return _read(text)[0]


def reference_of(text: str) -> str:
    """Return the method whose cost a budget is a multiple of, `mtl` or `stl`; empty for none.

    Raises:
        UsageError: The text has none of the `FORMS`.

    >>> reference_of("1.3xMTL"), reference_of("892G")
    ('mtl', '')
    """
    _, _, unit = _read(text)
    return "" if unit in _UNITS else unit[1:]


def read_budget(text: str, *, mtl: Cost | None, stl: Cost | None) -> Budget:
    """Read a budget, whether or not networks can keep to it.

    Args:
        text: One of `FORMS`.
        mtl: Cost of the multi-task network; needed where `reference_of` is `mtl`.
        stl: Cost of the single-task networks; needed where `reference_of` is `stl`.

    Raises:
        UsageError: The text has none of the `FORMS`.
    """
    task, amount, unit = _read(text)
    prefix = f"{task}:" if task else ""
    if unit in _UNITS:
        measure, scale = _UNITS[unit]
        bound = text.rpartition(":")[2].strip().replace(" ", "")
        return Budget(prefix + bound, measure, amount * scale, task)
    reference = mtl if unit == "xmtl" else stl
    assert reference is not None
    name = f"{prefix}{amount:g}x{unit[1:].upper()}"
    return Budget(name, "macs", amount * reference.macs, task)


def parse_budget(
    text: str,
    *,
    mtl: Cost,
    stl: Cost,
    latency: tuple[float, float] | None = None,
    cheapest: Mapping[str, Cost] | None = None,
    alone: Mapping[str, float] | None = None,
) -> Budget:
    """Read a budget and refuse one outside the range of a study's networks.

    Args:
        text: One of `FORMS`.
        mtl: Cost of the multi-task network, all gates closed: the lowest possible.
        stl: Cost of the single-task networks, all gates open.
        latency: Measured seconds of these two networks; needed for a budget of latency.
        cheapest: Method -> cost of the cheapest network that its search can find, for the methods
            that are searched; a budget must be in reach of all. The multi-task network when None.
        alone: Task -> multiply-adds of what its outputs alone need of the multi-task network: the
            lowest possible of a budget of this task. None where networks can be held to budgets of
            all tasks only.

    Raises:
        UsageError: The text has none of the `FORMS`, or the budget is out of the networks' range,
            which the error states.
    """
    budget = read_budget(text, mtl=mtl, stl=stl)
    bounds, name = latency, "mtl"
    if budget.task:
        if alone is None:
            raise UsageError(
                f"budget {budget.text} bounds what one task costs, and networks can be held to "
                "budgets of all tasks here; leave the task out, as 1.3xMTL"
            )
        if budget.task not in alone:
            raise unknown("task", budget.task, alone)
        bounds, name = (alone[budget.task], stl.macs), f"mtl, {budget.task} alone"
    elif budget.measure != "latency":
        lowest = {
            method: float(getattr(cost, budget.measure))
            for method, cost in (cheapest or {name: mtl}).items()
        }
        name = max(lowest, key=lambda method: lowest[method])
        bounds = (lowest[name], float(getattr(stl, budget.measure)))
    if bounds is None:
        raise UsageError(
            f"a budget of latency needs networks measured on their device; found '{text}' where "
            "nothing is measured; bound FLOPs or parameters instead, such as 892G or 20M"
        )
    least, most = bounds
    if not least <= budget.limit <= most:
        shown = [_shown(budget.measure, value) for value in (budget.limit, least, most)]
        raise UsageError(
            f"budget {budget.text} is {shown[0]}, out of reach: this study's networks go from "
            f"{shown[1]} ({name}) to {shown[2]} (stl)"
        )
    return budget


def name_of(budgets: Sequence[Budget]) -> str:
    """Name a set of budgets: their texts in sorted order, joined by `+`; empty without any."""
    return "+".join(sorted({budget.text for budget in budgets}))


def _read(text: str) -> tuple[str, float, str]:
    """Split a budget's text into (task or empty, amount, unit in lower case)."""
    task, colon, bound = text.rpartition(":")
    task = task.strip()
    match = _AMOUNT_AND_UNIT.fullmatch(bound.strip())
    amount, unit = (float(match[1]), match[2].lower()) if match else (0.0, "")
    if unit not in (*_UNITS, "xmtl", "xstl") or (colon and not task):
        raise UsageError(f"a budget must be a number with a unit, such as {FORMS}; found '{text}'")
    if task and unit in _UNITS and _UNITS[unit][0] != "macs":
        raise UsageError(
            f"a budget of one task bounds its FLOPs, such as {task}:20G or {task}:0.6xSTL, found "
            f"'{text}'; leave the task out to bound parameters or latency of the whole network"
        )
    return task, amount, unit


def _shown(measure: Measure, value: float) -> str:
    if measure == "macs":
        return f"{2e-9 * value:.4g} GFLOPs"
    return f"{1e-6 * value:.4g} M parameters" if measure == "params" else f"{1e3 * value:.4g} ms"
