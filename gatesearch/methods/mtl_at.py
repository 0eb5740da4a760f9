"""Multi-task networks of a chosen cost: all layers narrowed, or widened, by one factor.

The control for any other way of spending a budget: a plain multi-task network of the same cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from gatesearch.cost import Budget, Cost
from gatesearch.cost.narrowing import NarrowCost, Worth, uniform_order, widest
from gatesearch.errors import UsageError
from gatesearch.models import Parts, parts_of
from gatesearch.models.coupling import ChannelGroups
from gatesearch.models.filters import filters_of
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import HeadSpec, OwnHead, features_of
from gatesearch.models.narrowing import narrowed_parts
from gatesearch.study import Study

# The widest network that is looked for, as a multiple of the study's width.
MOST_WIDTH = 16.0


@dataclass(frozen=True)
class MultiTaskParts:
    """The parts of a multi-task network that costs at most a budget.

    Attributes:
        parts: Encoder and heads.
        cost: Cost of the network.
        share: Of the budget that it takes, at most 1 and as near as one more group of channels
            allows.
        width: Its coupled channel groups, those of the study's multi-task network being 1.
    """

    parts: Parts
    cost: Cost
    share: float
    width: float


def mtl_parts_at(
    study: Study,
    budget: Budget,
    *,
    seed: int | None = None,
    stl: Mapping[str, Tensor] | None = None,
) -> MultiTaskParts:
    """Return the parts of the study's multi-task network, as wide as a budget allows.

    Below the study's width the encoder keeps the same share of the coupled channel groups of every
    layer. Where it starts from trained weights, those of the largest weights stay, with these;
    random weights are drawn for its own width. Above that width the encoder is built anew, which
    trained weights, and networks of others that split or join channels, do not allow.

    Args:
        study: The definition.
        budget: Of FLOPs or parameters.
        seed: Seed of the initial weights; the study's if None.
        stl: State of the trained single-task networks, to start from.

    Raises:
        UsageError: The budget bounds latency, is below the narrowest network, or asks for a wider
            network where there is none.
    """
    if budget.measure == "latency":
        raise UsageError(
            f"a multi-task network is made as wide as FLOPs or parameters allow, found "
            f"{budget.text}; bound these instead, such as 0.5xMTL or 20M"
        )
    parts, size = parts_of(study, seed=seed, stl=stl), study.protocol.size
    full = NarrowCost(parts, size)
    whole = full.of(np.ones(full.groups.count, dtype=bool))
    if budget.share(whole) > 1:
        return _narrowed(full, budget, full.groups.count)
    if budget.share(whole) == 1:
        return MultiTaskParts(parts, whole, 1.0, 1.0)
    if stl is not None or study.model.init != "scratch":
        raise UsageError(
            f"a multi-task network wider than the study's has no trained weights to start from, "
            f"found {budget.text}, of which that of the study takes {budget.share(whole):.3g}; ask "
            "for less, or train from scratch (model.init)"
        )
    return _widened(replace(parts, pretrained=None), size, budget)


def _widened(parts: Parts, size: tuple[int, int], budget: Budget) -> MultiTaskParts:
    """Narrow the least of the wider networks that takes more than the budget."""
    graph, heads = parts.graph, parts.heads

    def cost(width: float) -> NarrowCost:
        wide = graph.scaled(width)
        specs = {task: _widened_head(spec, wide) for task, spec in heads.items()}
        return NarrowCost(replace(parts, graph=wide, heads=specs), size)

    def exceeds(width: float) -> bool:
        found = cost(width)
        return budget.share(found.of(np.ones(found.groups.count, dtype=bool))) > 1

    low, high = 1.0, 2.0
    while not exceeds(high):
        low, high = high, 2 * high
        if high > MOST_WIDTH:
            raise UsageError(
                f"a multi-task network must be at most {MOST_WIDTH:g} times as wide as the "
                f"study's, found {budget.text}; ask for less"
            )
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    count = NarrowCost(parts, size).groups.count
    return _narrowed(cost(high), budget, count)


def _widened_head(spec: HeadSpec | OwnHead, graph: Graph) -> HeadSpec:
    if isinstance(spec, OwnHead):
        raise UsageError(
            "a head of a user's own reads the encoder at the width that it has, found one of a "
            "wider network; ask for a narrower one"
        )
    features = features_of(graph) if spec.features else ()
    return replace(spec, inputs=graph.outputs, features=features)


def _narrowed(cost: NarrowCost, budget: Budget, whole: int) -> MultiTaskParts:
    """Narrow a network until it fits.

    Args:
        cost: Of the networks that are narrower than one that exceeds the budget.
        budget: The budget.
        whole: Number of coupled channel groups of the study's multi-task network.
    """
    groups = cost.groups
    order = uniform_order(groups, magnitudes(cost.parts, groups))
    kept, share = widest(order, lambda kept: budget.share(cost.of(kept)), least=1.0)
    if share > 1:
        raise UsageError(
            f"budget {budget.text} must be at least what the narrowest multi-task network costs, "
            f"found {share:.3g} of it taken where every layer keeps least; raise the budget"
        )
    return MultiTaskParts(
        narrowed_parts(cost.parts, groups, kept), cost.of(kept), share, kept.sum() / whole
    )


def magnitudes(parts: Parts, groups: ChannelGroups) -> Worth:
    """(G,) sum of the squares of the filters that make each group; 0 where weights are drawn anew.

    Args:
        parts: With the weights that networks start from.
        groups: Its coupled channel groups.
    """
    found = np.zeros(groups.count)
    if parts.pretrained is None and parts.stl is None:
        return found
    encoder = parts.encoder()
    for node in parts.graph.weighted_nodes:
        filters = filters_of(encoder.layer(node.name))
        if filters is not None:
            squares = filters.weight.detach().double().flatten(1).square().sum(1).cpu().numpy()
            np.add.at(found, groups.numbers[node.name], squares)
    return found
