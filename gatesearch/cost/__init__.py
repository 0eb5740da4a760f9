"""Costs of networks and of gate patterns, counted or measured, and budgets that bound them.

Modules are imported on first use: budgets and stored costs need no torch.
"""

from typing import TYPE_CHECKING

from gatesearch.lazy import lazy_attributes

if TYPE_CHECKING:
    from gatesearch.cost.budget import Budget, measure_of, name_of, parse_budget
    from gatesearch.cost.cost import Cost
    from gatesearch.cost.fit import fit_latency
    from gatesearch.cost.latency import LatencyTable, median_latency
    from gatesearch.cost.layers import measure_layers
    from gatesearch.cost.macs import count_macs
    from gatesearch.cost.of_tasks import macs_of_tasks
    from gatesearch.cost.pattern import PatternCost
    from gatesearch.cost.projection import (
        align_tasks,
        channel_price,
        equalize_layer_shares,
        project,
    )
    from gatesearch.cost.rounding import rounded

_HOMES = {
    "Budget": "gatesearch.cost.budget",
    "Cost": "gatesearch.cost.cost",
    "LatencyTable": "gatesearch.cost.latency",
    "PatternCost": "gatesearch.cost.pattern",
    "align_tasks": "gatesearch.cost.projection",
    "channel_price": "gatesearch.cost.projection",
    "count_macs": "gatesearch.cost.macs",
    "equalize_layer_shares": "gatesearch.cost.projection",
    "fit_latency": "gatesearch.cost.fit",
    "macs_of_tasks": "gatesearch.cost.of_tasks",
    "measure_layers": "gatesearch.cost.layers",
    "measure_of": "gatesearch.cost.budget",
    "median_latency": "gatesearch.cost.latency",
    "name_of": "gatesearch.cost.budget",
    "parse_budget": "gatesearch.cost.budget",
    "project": "gatesearch.cost.projection",
    "rounded": "gatesearch.cost.rounding",
}

__all__ = [
    "Budget",
    "Cost",
    "LatencyTable",
    "PatternCost",
    "align_tasks",
    "channel_price",
    "count_macs",
    "equalize_layer_shares",
    "fit_latency",
    "macs_of_tasks",
    "measure_layers",
    "measure_of",
    "median_latency",
    "name_of",
    "parse_budget",
    "project",
    "rounded",
]

__getattr__ = lazy_attributes(__name__, _HOMES)
