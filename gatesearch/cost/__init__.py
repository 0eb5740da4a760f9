"""What a network costs: counted on shapes alone or measured, for gate patterns, and bounded.

Its modules are imported on use: budgets and kept figures need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatesearch.cost.budget import Budget, measure_of, name_of, parse_budget
    from gatesearch.cost.cost import Cost
    from gatesearch.cost.fit import fit_latency
    from gatesearch.cost.latency import LatencyTable, median_latency
    from gatesearch.cost.layers import measure_layers
    from gatesearch.cost.macs import count_macs
    from gatesearch.cost.pattern import PatternCost
    from gatesearch.cost.projection import align_tasks, equalize_layer_shares, project
    from gatesearch.cost.rounding import rounded

_HOMES = {
    "Budget": "budget",
    "Cost": "cost",
    "LatencyTable": "latency",
    "PatternCost": "pattern",
    "align_tasks": "projection",
    "count_macs": "macs",
    "equalize_layer_shares": "projection",
    "fit_latency": "fit",
    "measure_layers": "layers",
    "measure_of": "budget",
    "median_latency": "latency",
    "name_of": "budget",
    "parse_budget": "budget",
    "project": "projection",
    "rounded": "rounding",
}

__all__ = [
    "Budget",
    "Cost",
    "LatencyTable",
    "PatternCost",
    "align_tasks",
    "count_macs",
    "equalize_layer_shares",
    "fit_latency",
    "measure_layers",
    "measure_of",
    "median_latency",
    "name_of",
    "parse_budget",
    "project",
    "rounded",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
