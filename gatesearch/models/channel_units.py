"""Channels that share a gate: a unit, such as the query of an attention head.

All that reads gates has a value for each channel; only gates themselves have one for each unit.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

# Gated node -> (C,) number of the unit of each channel, 0 to U - 1. A node that is not named has a
# gate for each channel.
Units = Mapping[str, tuple[int, ...]]

# A gate for each channel everywhere.
PER_CHANNEL: Units = MappingProxyType({})


def unit_index(units: Units, name: str) -> Tensor | None:
    """Return (C,) the unit of each channel; None where every channel is a unit of its own."""
    numbers = units.get(name, ())
    if len(set(numbers)) == len(numbers):
        return None
    return torch.tensor(numbers, device="cpu")


def unit_count(units: Units, name: str, channels: int) -> int:
    """Return the number of units U of a node with so many channels."""
    return len(set(units[name])) if name in units else channels


def per_unit(values: Tensor, index: Tensor | None) -> Tensor:
    """Average the values (T, C) over each unit, (T, U)."""
    if index is None:
        return values
    index = index.to(values.device)
    totals = values.new_zeros(len(values), int(index.max()) + 1).index_add(1, index, values)
    return totals / index.bincount()


def per_channel(values: Tensor, index: Tensor | None) -> Tensor:
    """Repeat the values (..., U) of units for each of their channels, (..., C)."""
    return values if index is None else values[..., index]


def unit_sizes(channels: int, index: Tensor | None) -> Tensor:
    """(U,) channels of each unit."""
    if index is None:
        return torch.ones(channels, dtype=torch.int64, device="cpu")
    return index.bincount()
