"""From learned gates to a gate pattern that takes a budget up and never exceeds it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget
from gatesearch.cost.pattern import PatternCost
from gatesearch.models.graph import Add, Conv

# A pattern is good enough from this share of the budget on.
LEAST = 0.98
_AT_ONCE = 32  # patterns whose costs are computed together


def project(
    alpha: Mapping[str, Tensor], cost: PatternCost, budgets: Sequence[Budget]
) -> dict[str, Tensor]:
    """Close, or open, gates until a pattern takes between `LEAST` and all of its budgets.

    Gates are ordered by α / c, what opening one brings (its logit) over what it costs (the
    multiply-adds of its channel): {α > μ c} for a falling μ, the patterns that a Lagrangian μ of
    the cost would give. The learned pattern is μ = 0, and the search goes from there along this
    order to the nearest pattern inside. Liveness makes costs jump, as where a gate brings a whole
    stream to life; a gate that would jump over the budget stays closed and the next ones are tried.

    Args:
        alpha: Gated node -> (T, C) logits.
        cost: Of the supernet's patterns.
        budgets: All of them hold; every one is at least the cost of all gates closed.

    Returns:
        Gated node -> (T, C) bool.
    """
    names = list(alpha)
    logits = torch.cat([alpha[name].detach().cpu().double().flatten() for name in names])
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


def _price(cost: PatternCost, name: str) -> int:
    """Multiply-adds that one own channel behind a gate costs, whatever else is live."""
    node = next(node for node in cost.graph if node.name == name)
    if isinstance(node, Conv):
        return cost.macs_a_channel[name]
    sources = node.sources if isinstance(node, Add) else ()
    return sum(cost.macs_a_channel.get(source, 0) for source in sources) or 1
