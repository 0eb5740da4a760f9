"""Coupled channel groups: channels of an encoder that can be removed only together.

A channel that is zero in every stream can leave the network, and with it all channels that meet it
one by one: those of a residual sum, of a depthwise convolution behind it, of the norms and
activations in between. The channels of an attention head go together in queries, keys, values and
result, those of a group in a grouped convolution or a group norm. Nodes say how (`Node.coupling`).

Routes only renumber, so a network that splits, joins or shuffles channels is no different. One that
repeats a channel, to meet each channel of another value, keeps it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gatesearch.models.graph import Graph
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node
from gatesearch.models.nodes.step import Ids

Kept = NDArray[np.bool_]

# Why the channels of the image cannot be removed.
IMAGE = "the image"


@dataclass(frozen=True)
class ChannelGroups:
    """The coupled channel groups of an encoder.

    Attributes:
        numbers: Node, or `INPUT` -> (C,) number of the group of each channel. Numbers count up in
            the order in which nodes make the first channel of a group.
        fixed: Why groups cannot be removed -> their numbers.
        count: Number of groups G.
    """

    numbers: Mapping[str, Ids]
    fixed: Mapping[str, Ids]
    count: int

    def channels(self, kept: Kept) -> dict[str, Ids]:
        """Return node, or `INPUT` -> (n,) its channels of the groups that are kept, ascending.

        Args:
            kept: (G,) whether each group is kept.
        """
        return {name: np.flatnonzero(kept[groups]) for name, groups in self.numbers.items()}

    @cached_property
    def removable(self) -> Kept:
        """(G,) whether each group can be removed."""
        removable = np.ones(self.count, dtype=bool)
        for groups in self.fixed.values():
            removable[groups] = False
        return removable

    @cached_property
    def makers(self) -> tuple[str, ...]:
        """(G,) name of the first node that has a channel of each group."""
        makers: dict[int, str] = {}
        for name, groups in self.numbers.items():
            for group in groups.tolist():
                makers.setdefault(group, name)
        return tuple(makers[group] for group in range(self.count))


def channel_groups(
    graph: Graph, fixed: Mapping[str, Collection[str]] | None = None
) -> ChannelGroups:
    """Find the coupled channel groups of an encoder.

    Args:
        graph: The encoder.
        fixed: Reason -> names of nodes all of whose channels must stay, such as features that a
            user's own head reads. The image, and what a module kept whole reads and makes, stay
            anyway.
    """
    unions = _Unions()
    found = {INPUT: unions.fresh(IMAGE_CHANNELS)}
    stay: dict[str, list[Ids]] = {IMAGE: [found[INPUT]]}
    for node in graph:
        inputs = [found[source] for source in node.sources]
        found[node.name] = _outputs(node, inputs, unions)
        if node.coupling == "fixed":
            stay[f"module kept whole, {node.name}"] = [*inputs, found[node.name]]
        if repeated := _repeated(node):
            ids = np.array([inputs[source][channel] for source, channel in repeated])
            stay[f"repeated by {node.name}"] = [ids]
    for reason, names in (fixed or {}).items():
        stay[reason] = [found[name] for name in names]
    numbers, count = unions.numbers()
    return ChannelGroups(
        {name: numbers[ids] for name, ids in found.items()},
        {reason: np.unique(numbers[np.concatenate(ids)]) for reason, ids in stay.items()},
        count,
    )


class _Unions:
    """Sets of channels that are joined as nodes couple them (union-find)."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def fresh(self, channels: int) -> Ids:
        """Return (C,) new channels, each a set of its own."""
        start = len(self._parents)
        self._parents += range(start, start + channels)
        return np.arange(start, start + channels)

    def join(self, one: Ids, other: Ids) -> None:
        """Join the sets of (n,) channels and of (n,) others, pair by pair."""
        for pair in zip(one.tolist(), other.tolist(), strict=True):
            first, second = sorted(map(self._root, pair))
            self._parents[second] = first

    def numbers(self) -> tuple[Ids, int]:
        """Return the number of the set of each channel, in order of their first, and how many."""
        roots = np.array([self._root(channel) for channel in range(len(self._parents))])
        firsts, numbers = np.unique(roots, return_inverse=True)
        return numbers, len(firsts)

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel


def _outputs(node: Node, inputs: Sequence[Ids], unions: _Unions) -> Ids:
    """Return (C,) channels of a node: those of a source where it is coupled with them."""
    coupling = node.coupling
    if coupling == "channel":
        for other in inputs[1:]:
            unions.join(inputs[0], other)
        return inputs[0]
    if coupling == "route":
        assert node.routes is not None
        repeated = set(_repeated(node))
        apart = unions.fresh(len(repeated) and node.outputs)
        return np.array(
            [
                apart[i] if route in repeated else inputs[route[0]][route[1]]
                for i, route in enumerate(node.routes)
            ],
            dtype=np.int64,
        )
    outputs = unions.fresh(node.outputs)
    if coupling == "group":
        for values in (*inputs, outputs):
            rows = values.reshape(node.groups, -1)
            first = outputs.reshape(node.groups, -1)[:, :1]
            unions.join(rows.ravel(), np.broadcast_to(first, rows.shape).ravel())
    return outputs


def _repeated(node: Node) -> list[tuple[int, int]]:
    """List the (source, channel) that a node routes to several of its outputs."""
    return [route for route, times in Counter(node.routes or ()).items() if times > 1]
