"""From learned gates to a gate pattern that uses up a budget and never exceeds it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget, name_of
from gatesearch.cost.pattern import PatternCost
from gatesearch.cost.rounding import allowed_counts, rounded
from gatesearch.errors import UsageError
from gatesearch.models.channel_units import (
    PER_CHANNEL,
    Units,
    per_channel,
    per_unit,
    unit_index,
    unit_sizes,
)
from gatesearch.models.graph import Graph

# A pattern that takes at least this share of the budget is good enough.
LEAST = 0.98
_AT_ONCE = 32  # patterns whose costs are computed together


def project(
    alpha: Mapping[str, Tensor],
    cost: PatternCost,
    budgets: Sequence[Budget],
    *,
    multiple: int = 1,
) -> dict[str, Tensor]:
    """Close, or open, gates until a pattern takes between `LEAST` and all of its budgets.

    Gates are ordered by α / c, the logit of a gate over the multiply-adds c of its channels. The
    first gates of this order, opened, are the patterns {α > μ c} that a Lagrange multiplier μ of
    the cost would give. The learned pattern has μ = 0; the search goes from there along the order
    to the nearest pattern inside the budgets. Liveness makes costs jump, for example where one gate
    makes a whole stream live; a gate that would jump over the budget stays closed and the next ones
    are tried. Budgets of one task are kept to, but only those of the whole network are used up.

    With a multiple the resulting pattern is rounded. Then whole groups of channels are closed,
    lowest α / c first, until the pattern is inside the budgets, and opened, highest α / c first,
    while it stays inside. `LEAST` can be missed then: one group of a narrow network can cost more
    than 1 - `LEAST` of the budget, and groups are tried in order, not in combination. So can one
    gate that several channels share, such as that of an attention head (`PatternCost.units`).

    Args:
        alpha: Gated node -> (T, C) logits; those of a shared gate are averaged.
        cost: Cost of the supernet's patterns.
        budgets: Budgets that hold together.
        multiple: Channels of each task, and shared ones, come in multiples of it (`rounded`).

    Returns:
        Gated node -> (T, C) bool.

    Raises:
        UsageError: A budget is less than the cost of all gates closed.
    """
    closed = {name: torch.zeros(a.shape, dtype=torch.bool) for name, a in alpha.items()}
    least = float(cost.share(closed, budgets))
    if least > 1:
        raise UsageError(
            f"budgets must be at least what all gates closed cost; found {name_of(budgets)}, of "
            f"which they take {least:.4g}; raise the budget"
        )
    logits = {name: a.detach().cpu().double() for name, a in alpha.items()}
    gates = _projected(logits, cost, budgets)
    return gates if multiple == 1 else _in_groups(gates, logits, cost, budgets, multiple)


def align_tasks(
    alpha: Mapping[str, Tensor], graph: Graph, units: Units = PER_CHANNEL
) -> dict[str, Tensor]:
    """Reorder logits so that tasks open the same channels, each task as many in a node as before.

    In every node all tasks open their gates in one order, so that the open channels of one task
    contain those of every task with fewer; and nodes whose channels meet in a residual sum share
    one order. With independent orders each channel of a sum combines other task and shared
    features, and a channel that is open for all tasks is rare. With one order the compact network
    computes and copies fewer channels for the same shares; at equal FLOPs it was a little less
    accurate on real frames (docs/explanation/recipe-figures.md). The order is by the expected
    number of open gates, Σ σ(α) over tasks and nodes. Where channels share a gate, whole units
    change places, and nodes whose units differ have orders of their own. The paper has no such
    step.

    Args:
        alpha: Gated node -> (T, C) logits.
        graph: The encoder.
        units: Gated node -> (C,) number of the gate of each channel.

    Returns:
        Gated node -> (T, C) logits, each row reordered.
    """
    ordered = {}
    for group in graph.coupled_channel_groups():
        alike: dict[tuple[int, ...], list[str]] = {}
        for name in alpha:
            if name in group:
                alike.setdefault(units.get(name, ()), []).append(name)
        for names in alike.values():
            index = unit_index(units, names[0])
            logits = {name: per_unit(alpha[name].detach(), index) for name in names}
            expected = [a.sigmoid().sum(0) for a in logits.values()]
            rank = (-torch.stack(expected).sum(0)).argsort(stable=True).argsort()
            for name, a in logits.items():
                in_order = a.sort(dim=1, descending=True).values[:, rank]
                ordered[name] = per_channel(in_order, index)
    return {name: ordered[name] for name in alpha}


def equalize_layer_shares(
    alpha: Mapping[str, Tensor], cost: PatternCost | None, units: Units = PER_CHANNEL
) -> dict[str, Tensor]:
    """Shift logits so that a task has the same share of open gates in every layer.

    That share is the share of open gates among all gates of the task. In every layer the gates of
    highest α open, and `project` then raises or lowers the shares of all tasks by one factor. So a
    task's channels form a thin stream through the whole network instead of a thick one through the
    layers where gates are expensive. The paper has no such step.

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: The cost that will be given to `project`; None where there is no budget.
        units: Gated node -> (C,) number of the gate of each channel.

    Returns:
        Gated node -> (T, C) logits, in the order of α within each row.
    """
    whole = torch.cat(list(alpha.values()), 1)
    share = (whole > 0).double().mean(1).clamp(min=1e-6)[:, None].cpu()
    spread = {}
    for name, a in alpha.items():
        index = unit_index(units, name)
        sizes = unit_sizes(a.shape[1], index)
        order = (-per_unit(a.detach().cpu(), index)).argsort(dim=1, stable=True)
        # Channels before a unit in its row, and half of the unit.
        middle = sizes[order].cumsum(1) - sizes[order] / 2
        quantile = (middle.double() / a.shape[1]).gather(1, order.argsort(dim=1))
        price = 1 if cost is None else channel_price(cost, name)
        spread[name] = per_channel((1 - quantile / share) * price, index)
    return spread


def _projected(
    alpha: Mapping[str, Tensor], cost: PatternCost, budgets: Sequence[Budget]
) -> dict[str, Tensor]:
    names = list(alpha)
    whole = [budget for budget in budgets if not budget.task]
    indices = {name: unit_index(cost.units, name) for name in names}
    values = {name: per_unit(alpha[name], indices[name]) for name in names}
    logits = torch.cat([values[name].flatten() for name in names])
    prices = [_unit_prices(cost, name, alpha[name].shape[1]) for name in names]
    rows = [
        torch.tensor(p).float().repeat(len(alpha[n])) for n, p in zip(names, prices, strict=True)
    ]
    order = (logits / torch.cat(rows)).argsort(descending=True, stable=True)

    def gates_of(opened: Tensor) -> dict[str, Tensor]:
        """(..., gates) bool -> gated node -> (..., T, C)."""
        parts = opened.split([values[name].numel() for name in names], dim=-1)
        return {
            n: per_channel(part.unflatten(-1, values[n].shape), indices[n])
            for n, part in zip(names, parts, strict=True)
        }

    def shares(opened: Tensor) -> Tensor:
        """(n, gates) bool -> (n,) largest share of any budget."""
        return cost.share(gates_of(opened.float()), budgets)

    def taken(count: int, share: float) -> float:
        """Share of the budgets of the whole network that the first `count` gates take.

        Args:
            count: Number of gates.
            share: Largest share of any budget that they take.
        """
        if len(whole) == len(budgets):
            return share
        return float(cost.share(gates_of(pattern(count)[None].float()), whole)) if whole else 1.0

    def pattern(count: int) -> Tensor:
        """Return the pattern whose first `count` gates of the order are open."""
        opened = torch.zeros(len(logits), dtype=torch.bool)
        opened[order[:count]] = True
        return opened

    learned = int((logits > 0).sum())
    share = float(shares(pattern(learned)[None]))
    inside, outside = (learned, len(order)) if share <= 1 else (0, learned)
    filled = taken(learned, share)
    if share <= 1 and filled < LEAST and float(shares(pattern(outside)[None])) <= 1:
        inside = outside
    # Elsewhere jumps are few, and patterns stay those of results that are stored already.
    many_jumps = any(n.whole_groups for n in cost.graph) or len(whole) < len(budgets)
    refused = 0
    while not (share <= 1 and filled >= LEAST) and inside < outside:
        # Bisect between a pattern inside the budgets and one outside, down to neighbours.
        while outside - inside > 1:
            tries = torch.linspace(inside, outside, _AT_ONCE + 2).round().long().unique()[1:-1]
            exceeds = shares(torch.stack([pattern(int(n)) for n in tries])) > 1
            first = int(exceeds.float().argmax()) if bool(exceeds.any()) else len(tries)
            outside = int(tries[first]) if first < len(tries) else outside
            inside = int(tries[first - 1]) if first > 0 else inside
        share = float(shares(pattern(inside)[None]))
        filled = taken(inside, share)
        if filled < LEAST:
            # The next gate jumps over the budget: it stays closed.
            order = torch.cat([order[:inside], order[inside + 1 :]])
            refused += 1
            if many_jumps and refused % 8 == 0:
                order = _without_jumps(order, inside, pattern(inside), shares)
            outside = len(order)
            if float(shares(pattern(outside)[None])) <= 1:
                inside = outside
    return gates_of(pattern(inside))


def _without_jumps(
    order: Tensor, inside: int, opened: Tensor, shares: Callable[[Tensor], Tensor]
) -> Tensor:
    """Drop the gates from an order that alone jump over the budget, of those that come next.

    Where one gate makes whole heads or all inputs of a norm live, many do, and finding them one by
    one takes long.

    Args:
        order: (gates,) in which gates open.
        inside: Number of gates that are open.
        opened: (gates,) the pattern of these.
        shares: (n, gates) patterns -> (n,) largest share of any budget.
    """
    following = order[inside : inside + 8 * _AT_ONCE]
    alone = opened.repeat(len(following), 1)
    alone[torch.arange(len(following)), following] = True
    kept = following[shares(alone) <= 1]
    return torch.cat([order[:inside], kept, order[inside + len(following) :]])


def _in_groups(
    gates: Mapping[str, Tensor],
    alpha: Mapping[str, Tensor],
    cost: PatternCost,
    budgets: Sequence[Budget],
    multiple: int,
) -> dict[str, Tensor]:
    """Round a pattern, then close or open whole groups to bring it inside and up to the budgets."""

    def share(pattern: Mapping[str, Tensor]) -> float:
        return float(cost.share(pattern, budgets))

    def taken(pattern: Mapping[str, Tensor], share: float) -> float:
        """Share of the budgets of the whole network, of a pattern that takes `share` of any."""
        if len(whole) == len(budgets):
            return share
        return float(cost.share(pattern, whole)) if whole else 1.0

    whole = [budget for budget in budgets if not budget.task]
    start = rounded(gates, alpha, multiple=multiple, units=cost.units)
    groups = _groups(start, alpha, cost, multiple, opened=True)[::-1]

    def without(count: int) -> dict[str, Tensor]:
        """Return the rounded pattern with the first `count` groups closed."""
        fewer = {name: gate.clone() for name, gate in start.items()}
        for group in groups[:count]:
            fewer[group.node][group.task, group.channels] = False
        return rounded(fewer, alpha, multiple=multiple, units=cost.units)

    outside, inside = -1, 0 if share(start) <= 1 else len(groups)
    while inside - outside > 1:
        middle = (outside + inside) // 2
        outside, inside = (outside, middle) if share(without(middle)) <= 1 else (middle, inside)
    best = without(inside)
    best_share, refused = taken(best, share(best)), set()
    for group in _groups(best, alpha, cost, multiple, opened=False):
        if best_share >= LEAST:
            break
        if (group.node, group.task) in refused:
            continue
        node_gates = best[group.node].clone()
        node_gates[group.task, group.channels] = True
        more = best | rounded({group.node: node_gates}, alpha, multiple=multiple, units=cost.units)
        more_share = share(more)
        if more_share <= 1 and best_share < (filled := taken(more, more_share)):
            best, best_share = more, filled
        else:  # the next group costs as much
            refused.add((group.node, group.task))
    return best


@dataclass(frozen=True)
class _Group:
    """Channels of a task at a gated node that open or close together.

    Attributes:
        worth: Their mean α over the multiply-adds of a gate.
    """

    node: str
    task: int
    channels: Tensor
    worth: float


def _groups(
    gates: Mapping[str, Tensor],
    alpha: Mapping[str, Tensor],
    cost: PatternCost,
    multiple: int,
    *,
    opened: bool,
) -> list[_Group]:
    """Open, or closed, channels from one allowed count to the next, sorted by falling worth."""
    groups = []
    for name, node_gates in gates.items():
        index = unit_index(cost.units, name)
        prices = _unit_prices(cost, name, node_gates.shape[1])
        for task, row in enumerate(node_gates):
            if index is None:
                order = alpha[name][task].argsort(descending=True, stable=True)
                parts = _between_counts(order[row[order] == opened], len(row), multiple, opened)
            else:
                units = [(index == unit).nonzero()[:, 0] for unit in range(len(prices))]
                parts = [unit for unit in units if row[unit[0]] == opened]
            for channels in parts:
                price = prices[0 if index is None else int(index[channels[0]])]
                worth = float(alpha[name][task, channels].mean()) / price
                groups.append(_Group(name, task, channels, worth))
    return sorted(groups, key=lambda group: -group.worth)


def _between_counts(order: Tensor, width: int, multiple: int, opened: bool) -> list[Tensor]:
    """Cut the open, or closed, channels of a row where their number is allowed.

    Args:
        order: The channels, by falling α.
        width: All channels of the row.
        multiple: See `rounded`.
        opened: Whether they are the open ones.
    """
    first = 0 if opened else width - len(order)
    cuts = [count - first for count in allowed_counts(width, multiple)]
    cuts = [cut for cut in cuts if 0 <= cut <= len(order)]
    return [order[start:stop] for start, stop in pairwise(cuts)]


def _unit_prices(cost: PatternCost, name: str, channels: int) -> list[int]:
    """Multiply-adds of one task's channels of each gate, whatever else is live; at least 1."""
    price = channel_price(cost, name)
    return [price * size for size in unit_sizes(channels, unit_index(cost.units, name)).tolist()]


def channel_price(cost: PatternCost, name: str) -> int:
    """Multiply-adds of one task channel of a gated node, whatever else is live; at least 1.

    A node that costs nothing itself, such as a norm, an activation or a sum, costs what the nodes
    cost that it reads; if one of them costs nothing and is read by it alone, what that one reads.
    """
    nodes = {node.name: node for node in cost.graph}
    readers = Counter(source for node in cost.graph for source in set(node.sources))

    def price(name: str) -> int:
        macs = cost.macs_per_channel.get(name, 0)
        if macs or not nodes[name].channelwise:
            return macs
        return sum(
            cost.macs_per_channel.get(source, 0) if readers[source] > 1 else price(source)
            for source in nodes[name].sources
            if source in nodes
        )

    return price(name) or 1
