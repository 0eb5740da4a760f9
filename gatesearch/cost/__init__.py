"""What a network costs: multiply-adds and parameters, counted on shapes alone."""

from gatesearch.cost.macs import Cost, count_macs

__all__ = ["Cost", "count_macs"]
