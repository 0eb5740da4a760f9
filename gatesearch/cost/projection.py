"""From learned gates to a gate pattern that takes a budget up and never exceeds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget, name_of
from gatesearch.cost.pattern import PatternCost
from gatesearch.cost.rounding import allowed_counts, rounded
from gatesearch.errors import UsageError
from gatesearch.models.graph import Graph

# A pattern is good enough from this share of the budget on.
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

    Gates are ordered by α / c, what opening one brings (its logit) over what it costs (the
    multiply-adds of its channel): {α > μ c} for a falling μ, the patterns that a Lagrangian μ of
    the cost would give. The learned pattern is μ = 0, and the search goes from there along this
    order to the nearest pattern inside. Liveness makes costs jump, as where a gate brings a whole
    stream to life; a gate that would jump over the budget stays closed and the next ones are tried.

    With a multiple the pattern found is rounded, and then whole groups of channels are closed,
    those of the least α / c first, until it is inside, and opened, those of the highest first,
    while it stays inside. `LEAST` can be missed then: one group of a narrow network can cost more
    than 1 - `LEAST` of the budget, and groups are tried in order, not in combination.

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: Of the supernet's patterns.
        budgets: All of them hold.
        multiple: Of the channels that each task owns and shares in a gated node (`rounded`).

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


def align_tasks(alpha: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Logits by which tasks own the same channels, each task as many of a node as before.

    In every node tasks open their gates in one order, so that what one owns is part of what
    another does that owns more; and nodes whose channels meet in a residual sum have one order. Of
    independent orders each channel of a sum is another combination of own and shared features, and
    a channel that all tasks own is rare: with this the compact network computes fewer channels
    for the same shares, and moves fewer; at equal FLOPs it was a little less accurate on real
    frames (docs/recipe.md). The order is that of the expected number of open gates,
    Σ σ(α) over tasks and nodes. The paper has nothing like it.

    Args:
        alpha: Gated node -> (T, C) logits.
        graph: The encoder.

    Returns:
        Gated node -> (T, C) logits, those of each row in another order.
    """
    ordered = {}
    for group in graph.coupled_channel_groups():
        names = [name for name in alpha if name in group]
        if names:
            wanted = torch.stack([alpha[name].detach().sigmoid().sum(0) for name in names]).sum(0)
            rank = (-wanted).argsort(stable=True).argsort()
            for name in names:
                ordered[name] = alpha[name].detach().sort(dim=1, descending=True).values[:, rank]
    return {name: ordered[name] for name in alpha}


def equalize_layer_shares(
    alpha: Mapping[str, Tensor], cost: PatternCost | None
) -> dict[str, Tensor]:
    """Logits that give every task the same share of open gates in each layer.

    A task's share is that of all its gates that are open. In every layer those of its highest α
    open, and `project` then raises or lowers the shares of all tasks by one factor. So a task's own
    channels are a thin stream through the whole network instead of a thick one through the layers
    where gates are dear. The paper has nothing like it.

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: Whose prices `project` will divide by; None where there is no budget.

    Returns:
        Gated node -> (T, C) logits, in the order of α within each row.
    """
    whole = torch.cat(list(alpha.values()), 1)
    share = (whole > 0).double().mean(1).clamp(min=1e-6)[:, None].cpu()
    spread = {}
    for name, a in alpha.items():
        rank = (-a.detach().cpu()).argsort(dim=1, stable=True).argsort(dim=1)
        quantile = (rank.double() + 0.5) / a.shape[1]
        spread[name] = (1 - quantile / share) * (1 if cost is None else _price(cost, name))
    return spread


def _projected(
    alpha: Mapping[str, Tensor], cost: PatternCost, budgets: Sequence[Budget]
) -> dict[str, Tensor]:
    names = list(alpha)
    logits = torch.cat([alpha[name].flatten() for name in names])
    sizes = torch.cat([torch.full((alpha[n].numel(),), float(_price(cost, n))) for n in names])
    order = (logits / sizes).argsort(descending=True, stable=True)
    shapes = [tuple(alpha[name].shape) for name in names]

    def shares(opened: Tensor) -> Tensor:
        """(n, gates) bool -> (n,) the largest share of any budget."""
        parts = opened.float().split([t * c for t, c in shapes], dim=1)
        gates = {n: p.reshape(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cost.share(gates, budgets)

    def pattern(count: int) -> Tensor:
        """The first so many of the order, opened."""
        opened = torch.zeros(len(logits), dtype=torch.bool)
        opened[order[:count]] = True
        return opened

    learned = int((logits > 0).sum())
    share = float(shares(pattern(learned)[None]))
    inside, outside = (learned, len(order)) if share <= 1 else (0, learned)
    if share <= 1 and share < LEAST and float(shares(pattern(outside)[None])) <= 1:
        inside = outside
    while not (share <= 1 and share >= LEAST) and inside < outside:
        # Between a pattern inside and one outside, down to neighbours.
        while outside - inside > 1:
            tries = torch.linspace(inside, outside, _AT_ONCE + 2).round().long().unique()[1:-1]
            found = shares(torch.stack([pattern(int(n)) for n in tries])) > 1
            first = int(found.float().argmax()) if bool(found.any()) else len(tries)
            outside = int(tries[first]) if first < len(tries) else outside
            inside = int(tries[first - 1]) if first > 0 else inside
        share = float(shares(pattern(inside)[None]))
        if share < LEAST:
            # The next gate jumps over the budget: it stays closed.
            order = torch.cat([order[:inside], order[inside + 1 :]])
            outside = len(order)
            if float(shares(pattern(outside)[None])) <= 1:
                inside = outside
    parts = pattern(inside).split([t * c for t, c in shapes])
    return {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}


def _in_groups(
    gates: Mapping[str, Tensor],
    alpha: Mapping[str, Tensor],
    cost: PatternCost,
    budgets: Sequence[Budget],
    multiple: int,
) -> dict[str, Tensor]:
    """The rounded pattern, brought inside the budgets and up to them by whole groups."""

    def share(pattern: Mapping[str, Tensor]) -> float:
        return float(cost.share(pattern, budgets))

    start = rounded(gates, alpha, multiple=multiple)
    groups = _groups(start, alpha, cost, multiple, opened=True)[::-1]

    def without(count: int) -> dict[str, Tensor]:
        """The rounded pattern less the first so many groups."""
        own = {name: gate.clone() for name, gate in start.items()}
        for group in groups[:count]:
            own[group.node][group.task, group.channels] = False
        return rounded(own, alpha, multiple=multiple)

    outside, inside = -1, 0 if share(start) <= 1 else len(groups)
    while inside - outside > 1:
        middle = (outside + inside) // 2
        outside, inside = (outside, middle) if share(without(middle)) <= 1 else (middle, inside)
    found = without(inside)
    taken, refused = share(found), set()
    for group in _groups(found, alpha, cost, multiple, opened=False):
        if taken >= LEAST:
            break
        if (group.node, group.task) in refused:
            continue
        own = found[group.node].clone()
        own[group.task, group.channels] = True
        more = found | rounded({group.node: own}, alpha, multiple=multiple)
        if taken < (now := share(more)) <= 1:
            found, taken = more, now
        else:  # the next group costs as much
            refused.add((group.node, group.task))
    return found


@dataclass(frozen=True)
class _Group:
    """Channels of a task at a gated node that open or close together.

    Attributes:
        worth: Their mean α over the multiply-adds of a channel.
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
    """Open, or closed, channels from one allowed count to the next, the most worth first."""
    groups = []
    for name, own in gates.items():
        counts, price = allowed_counts(own.shape[1], multiple), _price(cost, name)
        for task, row in enumerate(own):
            order = alpha[name][task].argsort(descending=True, stable=True)
            order = order[row[order] == opened]
            first = 0 if opened else len(row) - len(order)
            cuts = [count - first for count in counts]
            for start, stop in pairwise(cut for cut in cuts if 0 <= cut <= len(order)):
                channels = order[start:stop]
                worth = float(alpha[name][task, channels].mean()) / price
                groups.append(_Group(name, task, channels, worth))
    return sorted(groups, key=lambda group: -group.worth)


def _price(cost: PatternCost, name: str) -> int:
    """Multiply-adds of one task channel of a gated node, whatever else is live; at least 1.

    A node without weights costs what the nodes cost that it reads.
    """
    node = next(node for node in cost.graph if node.name == name)
    names = [name] if node.has_weights else node.sources
    return sum(cost.macs_per_channel.get(source, 0) for source in names) or 1
