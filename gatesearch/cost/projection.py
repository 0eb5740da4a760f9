"""From learned gates to a gate pattern that uses up a budget and never exceeds it."""

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

    Gates are ordered by α / c, the logit of a gate over the multiply-adds c of its channel. The
    first gates of this order, opened, are the patterns {α > μ c} that a Lagrange multiplier μ of
    the cost would give. The learned pattern has μ = 0; the search goes from there along the order
    to the nearest pattern inside the budgets. Liveness makes costs jump, for example where one gate
    makes a whole stream live; a gate that would jump over the budget stays closed and the next ones
    are tried.

    With a multiple the resulting pattern is rounded. Then whole groups of channels are closed,
    lowest α / c first, until the pattern is inside the budgets, and opened, highest α / c first,
    while it stays inside. `LEAST` can be missed then: one group of a narrow network can cost more
    than 1 - `LEAST` of the budget, and groups are tried in order, not in combination.

    Args:
        alpha: Gated node -> (T, C) logits.
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


def align_tasks(alpha: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Reorder logits so that tasks open the same channels, each task as many in a node as before.

    In every node all tasks open their gates in one order, so that the open channels of one task
    contain those of every task with fewer; and nodes whose channels meet in a residual sum share
    one order. With independent orders each channel of a sum combines other task and shared
    features, and a channel that is open for all tasks is rare. With one order the compact network
    computes and copies fewer channels for the same shares; at equal FLOPs it was a little less
    accurate on real frames (docs/explanation/recipe.md). The order is by the expected number of
    open gates, Σ σ(α) over tasks and nodes. The paper has no such step.

    Args:
        alpha: Gated node -> (T, C) logits.
        graph: The encoder.

    Returns:
        Gated node -> (T, C) logits, each row reordered.
    """
    ordered = {}
    for group in graph.coupled_channel_groups():
        names = [name for name in alpha if name in group]
        if names:
            expected = [alpha[name].detach().sigmoid().sum(0) for name in names]
            rank = (-torch.stack(expected).sum(0)).argsort(stable=True).argsort()
            for name in names:
                ordered[name] = alpha[name].detach().sort(dim=1, descending=True).values[:, rank]
    return {name: ordered[name] for name in alpha}


def equalize_layer_shares(
    alpha: Mapping[str, Tensor], cost: PatternCost | None
) -> dict[str, Tensor]:
    """Shift logits so that a task has the same share of open gates in every layer.

    That share is the share of open gates among all gates of the task. In every layer the gates of
    highest α open, and `project` then raises or lowers the shares of all tasks by one factor. So a
    task's channels form a thin stream through the whole network instead of a thick one through the
    layers where gates are expensive. The paper has no such step.

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: The cost that will be given to `project`; None where there is no budget.

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
        """(n, gates) bool -> (n,) largest share of any budget."""
        parts = opened.float().split([t * c for t, c in shapes], dim=1)
        gates = {n: p.reshape(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cost.share(gates, budgets)

    def pattern(count: int) -> Tensor:
        """Return the pattern whose first `count` gates of the order are open."""
        opened = torch.zeros(len(logits), dtype=torch.bool)
        opened[order[:count]] = True
        return opened

    learned = int((logits > 0).sum())
    share = float(shares(pattern(learned)[None]))
    inside, outside = (learned, len(order)) if share <= 1 else (0, learned)
    if share <= 1 and share < LEAST and float(shares(pattern(outside)[None])) <= 1:
        inside = outside
    while not (share <= 1 and share >= LEAST) and inside < outside:
        # Bisect between a pattern inside the budgets and one outside, down to neighbours.
        while outside - inside > 1:
            tries = torch.linspace(inside, outside, _AT_ONCE + 2).round().long().unique()[1:-1]
            exceeds = shares(torch.stack([pattern(int(n)) for n in tries])) > 1
            first = int(exceeds.float().argmax()) if bool(exceeds.any()) else len(tries)
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
    """Round a pattern, then close or open whole groups to bring it inside and up to the budgets."""

    def share(pattern: Mapping[str, Tensor]) -> float:
        return float(cost.share(pattern, budgets))

    start = rounded(gates, alpha, multiple=multiple)
    groups = _groups(start, alpha, cost, multiple, opened=True)[::-1]

    def without(count: int) -> dict[str, Tensor]:
        """Return the rounded pattern with the first `count` groups closed."""
        fewer = {name: gate.clone() for name, gate in start.items()}
        for group in groups[:count]:
            fewer[group.node][group.task, group.channels] = False
        return rounded(fewer, alpha, multiple=multiple)

    outside, inside = -1, 0 if share(start) <= 1 else len(groups)
    while inside - outside > 1:
        middle = (outside + inside) // 2
        outside, inside = (outside, middle) if share(without(middle)) <= 1 else (middle, inside)
    best = without(inside)
    best_share, refused = share(best), set()
    for group in _groups(best, alpha, cost, multiple, opened=False):
        if best_share >= LEAST:
            break
        if (group.node, group.task) in refused:
            continue
        node_gates = best[group.node].clone()
        node_gates[group.task, group.channels] = True
        more = best | rounded({group.node: node_gates}, alpha, multiple=multiple)
        if best_share < (more_share := share(more)) <= 1:
            best, best_share = more, more_share
        else:  # the next group costs as much
            refused.add((group.node, group.task))
    return best


@dataclass(frozen=True)
class _Group:
    """Channels of a task at a gated node that open or close together.

    Attributes:
        worth: Their mean α over the multiply-adds per channel.
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
        counts, price = allowed_counts(node_gates.shape[1], multiple), _price(cost, name)
        for task, row in enumerate(node_gates):
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
