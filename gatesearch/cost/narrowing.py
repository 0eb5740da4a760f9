"""Which coupled channel groups a multi-task network keeps, so that it fits into a budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from gatesearch.cost.budget import Budget
from gatesearch.cost.cost import Cost
from gatesearch.cost.heads import macs_of_heads
from gatesearch.cost.sizes import node_sizes
from gatesearch.models.coupling import ChannelGroups, Kept
from gatesearch.models.heads import Heads
from gatesearch.models.model_factory import Parts
from gatesearch.models.narrowing import groups_of, narrowed_graph, narrowed_heads
from gatesearch.models.nodes import INPUT, Size
from gatesearch.models.nodes.step import Ids

# A layer keeps at least one in so many of its groups, and at least so many groups: a ranking over
# all layers else leaves single channels, through which nothing passes.
ONE_IN, FEWEST = 8, 2
# How many of the groups that come next are tried, each alone, where the first of them does not fit.
_TRIED = 64

Worth = NDArray[np.float64]


class NarrowCost:
    """Cost of the multi-task networks of an encoder without some coupled channel groups.

    Args:
        parts: Of the whole network.
        size: (height, width) of the image, pixels.

    Attributes:
        groups: Its coupled channel groups.
    """

    def __init__(self, parts: Parts, size: tuple[int, int]) -> None:
        self.parts, self.size = parts, size
        self.groups: ChannelGroups = groups_of(parts)

    def of(self, kept: Kept) -> Cost:
        """Count the cost of the network with the groups that are kept.

        Args:
            kept: (G,) bool, so that every node keeps a channel.
        """
        (macs, params), (head_macs, head_params) = self._parts_of(kept)
        return Cost(macs=macs + head_macs, backbone_macs=macs, params=params + head_params)

    def share(self, kept: Kept, budgets: Sequence[Budget], *, encoder: float = 1.0) -> float:
        """Return the largest share of any budget that the network takes.

        Args:
            kept: As for `of`.
            budgets: Of FLOPs and parameters.
            encoder: Share of what a budget leaves beside the heads that the encoder may take; at
                most 1 is returned where it keeps to that.
        """
        (macs, params), (head_macs, head_params) = self._parts_of(kept)
        whole = {
            "macs": head_macs + macs / encoder,
            "params": head_params + params / encoder,
        }
        return max(whole[budget.measure] / budget.limit for budget in budgets)

    def _parts_of(self, kept: Kept) -> tuple[tuple[int, int], tuple[int, int]]:
        """Count (multiply-adds, parameters) of the encoder, and of the heads."""
        channels = self.groups.channels(kept)
        narrow = narrowed_graph(self.parts.graph, channels)
        macs = sum(len(channels[node.name]) * node.macs_per_channel(self._sizes) for node in narrow)
        params = sum(node.params for node in narrow.weighted_nodes)
        return (int(macs), params), self._heads_of(channels)

    @cached_property
    def _sizes(self) -> dict[str, Size]:
        return node_sizes(self.parts.graph, self.size)

    def _heads_of(self, channels: Mapping[str, Ids]) -> tuple[int, int]:
        """Return (multiply-adds, parameters) of all heads, by their slopes where they have any."""
        widths = [len(channels[name]) for name in self.parts.graph.features]
        at_whole, slopes = self._slopes
        if slopes is None:
            return self._counted_heads(widths)
        fewer = [n - whole for n, whole in zip(widths, self._whole_widths, strict=True)]
        macs, params = (
            total + sum(slope[i] * n for slope, n in zip(slopes, fewer, strict=True))
            for i, total in enumerate(at_whole)
        )
        return macs, params

    @cached_property
    def _whole_widths(self) -> list[int]:
        return [self.parts.graph.channels(name) for name in self.parts.graph.features]

    @cached_property
    def _slopes(self) -> tuple[tuple[int, int], list[tuple[int, int]] | None]:
        """Cost of the heads of the whole network, and what one more channel of a feature adds.

        Heads read features by linear layers and convolutions, whose cost is linear in channels. If
        it is not, as half of all channels show, there are no slopes.
        """
        whole = self._whole_widths
        numbers = [self.groups.numbers[name] for name in self.parts.graph.features]
        free = [len(ids) > 1 and bool(self.groups.removable[ids].any()) for ids in numbers]
        at_whole = self._counted_heads(whole)
        slopes = []
        for i in range(len(whole)):
            one_less = [n - (i == k and free[k]) for k, n in enumerate(whole)]
            fewer = self._counted_heads(one_less)
            slopes.append((at_whole[0] - fewer[0], at_whole[1] - fewer[1]))
        half = [-(-n // 2) if is_free else n for n, is_free in zip(whole, free, strict=True)]
        linear = tuple(
            total + sum(s[i] * (n - w) for s, n, w in zip(slopes, half, whole, strict=True))
            for i, total in enumerate(at_whole)
        )
        return at_whole, slopes if linear == self._counted_heads(half) else None

    def _counted_heads(self, widths: Sequence[int]) -> tuple[int, int]:
        """Count (multiply-adds, parameters) of all heads for so many channels of each feature."""
        graph = self.parts.graph
        channels = {name: np.arange(n) for name, n in zip(graph.features, widths, strict=True)}
        specs = narrowed_heads(self.parts.heads, graph, channels)
        shapes = {
            name: (n, *self._sizes[name]) for name, n in zip(graph.features, widths, strict=True)
        }
        with torch.device("meta"):
            heads = Heads({task: spec.build() for task, spec in specs.items()})
        macs = macs_of_heads(heads, [shapes[name] for name in heads.nodes(graph)], self.size)
        return macs, sum(parameter.numel() for parameter in heads.parameters())


@dataclass(frozen=True)
class KeepOrder:
    """The order in which a network keeps coupled channel groups.

    Attributes:
        order: (G,) groups; a narrower network keeps fewer of the first.
        always: How many of the first every network keeps: those that cannot be removed, and the
            least of every layer.
    """

    order: Ids
    always: int

    def kept(self, count: int) -> Kept:
        """(G,) whether each group is among the first so many."""
        kept = np.zeros(len(self.order), dtype=bool)
        kept[self.order[:count]] = True
        return kept

    @property
    def narrowest(self) -> Kept:
        """(G,) the groups that every network keeps."""
        return self.kept(self.always)


def uniform_order(groups: ChannelGroups, worth: Worth) -> KeepOrder:
    """Order groups so that all layers are narrowed by one factor, up to a channel.

    Of the groups that one layer is the first to make, the share that is kept is the same in every
    layer.

    Args:
        groups: The coupled channel groups.
        worth: (G,) of two groups of a layer the one of higher worth is kept.
    """
    shares = np.zeros(groups.count)
    for members in _layers(groups):
        ranked = members[np.argsort(-worth[members], kind="stable")]
        shares[ranked] = (np.arange(len(ranked)) + 0.5) / len(ranked)
    return _ordered(groups, worth, first=-shares)


def relative_order(groups: ChannelGroups, worth: Worth) -> KeepOrder:
    """Order groups by their worth over the mean worth of their layer.

    So all layers are narrowed, the more so where worth is spread evenly. Worth itself, or worth for
    each multiply-add, empties a few layers and leaves the others whole, which trains worse
    (docs/explanation/recipe-figures.md).

    Args:
        groups: The coupled channel groups.
        worth: (G,) at least 0.
    """
    relative = np.zeros(groups.count)
    for members in _layers(groups):
        relative[members] = worth[members] / max(worth[members].mean(), np.finfo(float).tiny)
    return _ordered(groups, worth, first=relative)


def widest(
    order: KeepOrder, share: Callable[[Kept], float], *, least: float = 0.98
) -> tuple[Kept, float]:
    """Find the network that keeps most within a bound.

    Args:
        order: Which groups go first.
        share: Kept groups -> share of the bound that the network takes, which does not fall where
            groups are added.
        least: Where the first groups of the order take less than this share, those that come next
            are added one by one as they fit.

    Returns:
        (G,) kept, and the share of the bound, which is above 1 where even the narrowest exceeds it.
    """
    inside, outside = order.always, len(order.order) + 1
    best = order.narrowest
    best_share = share(best)
    while outside - inside > 1 and best_share <= 1:
        middle = (inside + outside) // 2
        kept = order.kept(middle)
        if (taken := share(kept)) <= 1:
            inside, best, best_share = middle, kept, taken
        else:
            outside = middle
    for group in order.order[inside : inside + _TRIED].tolist():
        if best_share >= least:
            break
        more = best.copy()
        more[group] = True
        if (taken := share(more)) <= 1:
            best, best_share = more, taken
    return best, best_share


def rounded_down(groups: ChannelGroups, kept: Kept, order: KeepOrder, *, multiple: int) -> Kept:
    """Remove more groups, so that layers keep multiples of a number of them.

    Those of a layer that come last in the order go. A layer that then kept less than every network
    does stays as it is.

    Args:
        groups: The coupled channel groups.
        kept: (G,) bool.
        order: Which groups go first.
        multiple: The number; 1 changes nothing.
    """
    fewer, place = kept.copy(), np.argsort(order.order)
    for members in _layers(groups):
        last_first = members[kept[members]]
        last_first = last_first[np.argsort(-place[last_first])]
        going = last_first[: len(last_first) % multiple]
        if (place[going] >= order.always).all():
            fewer[going] = False
    return fewer


def _layers(groups: ChannelGroups) -> list[Ids]:
    """List the groups that each node is the first to make, but those that cannot be removed."""
    members: dict[str, list[int]] = {}
    for group, maker in enumerate(groups.makers):
        if groups.removable[group]:
            members.setdefault(maker, []).append(group)
    return [np.array(found) for found in members.values()]


def _ordered(groups: ChannelGroups, worth: Worth, *, first: Worth) -> KeepOrder:
    """Order groups by falling `first`, behind those that every network keeps."""
    always = ~groups.removable
    for members in _layers(groups):
        count = min(len(members), max(FEWEST, math.ceil(len(members) / ONE_IN)))
        always[members[np.argsort(-worth[members], kind="stable")[:count]]] = True
    for name, numbers in groups.numbers.items():
        if name != INPUT and not always[numbers].any():
            always[numbers[np.argmax(worth[numbers])]] = True
    others = np.flatnonzero(~always)
    others = others[np.argsort(-first[others], kind="stable")]
    return KeepOrder(np.concatenate([np.flatnonzero(always), others]), int(always.sum()))
