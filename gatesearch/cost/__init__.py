"""What a network costs: counted on shapes alone, and for gate patterns by formula."""

from gatesearch.cost.macs import Cost, count_macs
from gatesearch.cost.pattern import PatternCost

__all__ = ["Cost", "PatternCost", "count_macs"]
