"""What a network costs: counted on shapes alone, for gate patterns by formula, and bounded."""

from gatesearch.cost.budget import Budget, name_of, parse_budget
from gatesearch.cost.macs import Cost, count_macs
from gatesearch.cost.pattern import PatternCost
from gatesearch.cost.projection import project

__all__ = [
    "Budget",
    "Cost",
    "PatternCost",
    "count_macs",
    "name_of",
    "parse_budget",
    "project",
]
