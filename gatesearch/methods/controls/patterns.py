"""Gate patterns of the same cost as a given one, which share other channels.

Every pattern starts as gates in some order, and `gatesearch.cost.project` opens or closes gates in
that order until the network takes between 0.98 and all of the given network's multiply-adds.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gatesearch.cost import Budget, PatternCost, channel_price, equalize_layer_shares, project
from gatesearch.models.channel_units import per_channel, per_unit, unit_index

Gates = Mapping[str, Tensor]
# (the trial's pattern, cost of patterns, source of random numbers) -> logits (T, C) by gated node.
Order = Callable[[Gates, PatternCost, torch.Generator], dict[str, Tensor]]


def random(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Open as many gates of each task and layer as the trial does, at places drawn."""
    shuffled = {}
    for name, is_open in gates.items():
        index = unit_index(cost.units, name)
        units = per_unit(is_open.float(), index)
        rows = [row[torch.randperm(len(row), generator=draw)] for row in units]
        shuffled[name] = per_channel(torch.stack(rows), index) > 0.5
    return _drawn(shuffled, cost, draw)


def even(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Open the trial's share of each task's gates, the same in every layer, at places drawn."""
    return equalize_layer_shares(random(gates, cost, draw), cost, cost.units)


def swapped(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Give each task the gates that the trial gives the one before it, the first the last's."""
    return _drawn({name: is_open.roll(1, 0) for name, is_open in gates.items()}, cost, draw)


def fresh(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Keep the trial's own gates."""
    return _drawn(gates, cost, draw)


def branch(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Share up to a layer, and open every gate behind it; of that layer, the last channels.

    Of a channel all tasks open their gates together.
    """
    logits = {}
    for depth, (name, is_open) in enumerate(gates.items(), start=1):
        tasks, channels = is_open.shape
        within = torch.arange(channels, dtype=torch.float64) / channels
        order = per_channel(per_unit(within[None], index := unit_index(cost.units, name)), index)
        logits[name] = (depth + order).repeat(tasks, 1) * channel_price(cost, name)
    return logits


def shares(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Open a share of the gates of each task and stage that is drawn, at places drawn.

    Shares are exponentials of normal numbers, and projection raises or lowers all by one factor.
    """
    tasks = len(next(iter(gates.values())))
    stages = {node.name: node.stage for node in cost.graph}
    drawn = torch.randn(tasks, max(stages.values()) + 1, generator=draw).exp()
    logits = {}
    for name, is_open in gates.items():
        index = unit_index(cost.units, name)
        shape = per_unit(is_open.float(), index).shape
        place = per_channel(torch.rand(shape, generator=draw), index)
        logits[name] = (1 - place / drawn[:, stages[name], None]) * channel_price(cost, name)
    return logits


def of_cost(
    order: Order, gates: Gates, cost: PatternCost, macs: int, *, seed: int
) -> dict[str, Tensor]:
    """Make a pattern of an order that costs as much as a trial's network.

    Args:
        order: One of the functions above.
        gates: The trial's pattern: gated node -> (T, C) bool.
        cost: Cost of patterns.
        macs: Multiply-adds of the trial's network.
        seed: Of places that are drawn.

    Returns:
        Gated node -> (T, C) bool.
    """
    logits = order(gates, cost, torch.Generator().manual_seed(seed % 2**63))
    return project(logits, cost, [Budget(f"{2e-9 * macs:.4g}G", "macs", macs)])


def _drawn(gates: Gates, cost: PatternCost, draw: torch.Generator) -> dict[str, Tensor]:
    """Logits of a pattern; projection takes gates in an order drawn over all layers and tasks."""
    logits = {}
    for name, is_open in gates.items():
        index = unit_index(cost.units, name)
        shape = per_unit(is_open.float(), index).shape
        size = per_channel(torch.rand(shape, generator=draw) + 1e-6, index)
        logits[name] = torch.where(is_open, size, -size) * channel_price(cost, name)
    return logits
