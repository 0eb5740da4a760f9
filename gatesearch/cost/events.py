"""Which channels one event decides, where channels share gates.

The expected cost multiplies probabilities of independent events (`gatesearch.cost.live`). Channels
of one attention head are needed together, and differ from the shared stream together, for a single
gate decides about all of them: in "whether any channel of a group is" they count once. So do all
inputs of a dense layer, which needs either all or none.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from gatesearch.models.channel_units import Units, unit_index
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node

# Number of the event that decides about each channel.
Events = list[int]


@dataclass(frozen=True)
class Firsts:
    """Masks that keep the first channel of each event in a group, 1 or 0 for each channel.

    A node or source whose channels all have events of their own is left out, and counted as it is.

    Attributes:
        needed: Node -> (outputs,) for whether any output of a group is needed.
        computed: Node that computes whole groups -> (outputs,) for whether it needs its inputs.
        differing: Node without weights -> for each source (C,), or None, for whether any input of
            a group differs from the shared stream's.
    """

    needed: Mapping[str, Tensor] = field(default_factory=dict)
    computed: Mapping[str, Tensor] = field(default_factory=dict)
    differing: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


# Every channel has an event of its own.
ALL = Firsts()


def first_of_events(graph: Graph, units: Units, heads: Sequence[Sequence[str]]) -> Firsts:
    """Find the channels that count once; none where no channels share a gate.

    Args:
        graph: The encoder.
        units: Gated node -> (C,) number of the gate of each channel.
        heads: For each task, the nodes that its head reads.
    """
    if all(unit_index(units, name) is None for name in units):
        return ALL
    found = _Events(units)
    needed, computed = _needed(graph, heads, found)
    return Firsts(needed, computed, _differing(graph, found))


class _Events:
    """Numbers events, equal ones alike."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._numbers: dict[Hashable, int] = {}
        self._next = count()

    def number(self, event: Hashable) -> int:
        """Return the number of an event."""
        if event not in self._numbers:
            self._numbers[event] = next(self._next)
        return self._numbers[event]

    def any_of(self, events: Iterable[int]) -> int:
        """Return the event that any of some happens."""
        different = frozenset(events)
        return next(iter(different)) if len(different) == 1 else self.number(different)

    def behind_gates(self, name: str, events: Events) -> Events:
        """Return the events of a node's channels together with those of its gates, if any."""
        if name not in self._units:
            return events
        pairs = zip(self._units[name], events, strict=True)
        return [self.number((name, unit, event)) for unit, event in pairs]


def _needed(
    graph: Graph, heads: Sequence[Sequence[str]], found: _Events
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Follow what needs each channel back from the heads."""
    needed: dict[str, Events] = {}
    for name in {name for names in heads for name in names}:
        readers = tuple(t for t, names in enumerate(heads) if name in names)
        needed[name] = [found.number(("heads", readers))] * graph.channels(name)
    first, computed = dict[str, Tensor](), dict[str, Tensor]()
    for node in reversed(graph.nodes):
        events = needed.pop(node.name, [found.number("nothing")] * node.outputs)
        events = found.behind_gates(node.name, events)
        if _in_groups(node):
            _note(first, node.name, _first(events, node.groups))
            if node.whole_groups:
                events = _by_group(events, node.groups, node.outputs, found)
                _note(computed, node.name, _first(events, node.groups))
        for source, before in zip(node.sources, _inputs(node, events, found), strict=True):
            old = needed.get(source, before)
            needed[source] = [found.any_of(pair) for pair in zip(old, before, strict=True)]
    return first, computed


def _inputs(node: Node, events: Events, found: _Events) -> list[Events]:
    """Return the events by which a node needs the channels of each source."""
    if node.channelwise:
        return [events] * len(node.sources)
    if node.routes is None:
        return [_by_group(events, node.groups, n, found) for n in node.input_channels]
    readers = [[set[int]() for _ in range(n)] for n in node.input_channels]
    for (source, channel), event in zip(node.routes, events, strict=True):
        readers[source][channel].add(event)
    return [[found.any_of(x) if x else found.number("nothing") for x in row] for row in readers]


def _differing(graph: Graph, found: _Events) -> dict[str, tuple[Tensor, ...]]:
    """Follow what makes each channel differ from the shared stream's forward from the image."""
    differs: dict[str, Events] = {INPUT: [found.number("never")] * IMAGE_CHANNELS}
    first: dict[str, tuple[Tensor, ...]] = {}
    for node in graph:
        inputs = [differs[source] for source in node.sources]
        if node.has_weights:
            events = [found.number("always")] * node.outputs
        elif node.routes is not None:
            events = [inputs[source][channel] for source, channel in node.routes]
        elif node.channelwise:
            events = [found.any_of(column) for column in zip(*inputs, strict=True)]
        else:
            groups = [
                [event for row in inputs for event in _group(row, j, node.groups)]
                for j in range(node.groups)
            ]
            size = node.outputs // node.groups
            events = [found.any_of(group) for group in groups for _ in range(size)]
            first[node.name] = tuple(_first_over_sources(inputs, node.groups))
        differs[node.name] = found.behind_gates(node.name, events)
    return first


def _in_groups(node: Node) -> bool:
    """Whether outputs are asked about by groups of several channels."""
    return not node.channelwise and node.routes is None


def _group(events: Events, j: int, groups: int) -> Events:
    size = len(events) // groups
    return events[j * size : (j + 1) * size]


def _by_group(events: Events, groups: int, channels: int, found: _Events) -> Events:
    """Return the event that any of a group happens, for each of so many channels."""
    each = [found.any_of(_group(events, j, groups)) for j in range(groups)]
    return [event for event in each for _ in range(channels // groups)]


def _first(events: Events, groups: int) -> Tensor:
    (mask,) = _first_over_sources([events], groups)
    return mask


def _first_over_sources(inputs: Sequence[Events], groups: int) -> list[Tensor]:
    """Mark the first channel of each event in a group, which has channels of every source."""
    seen: list[set[int]] = [set() for _ in range(groups)]
    masks = []
    for events in inputs:
        size, mask = len(events) // groups, torch.zeros(len(events), device="cpu")
        for channel, event in enumerate(events):
            known = seen[channel // size]
            mask[channel] = event not in known
            known.add(event)
        masks.append(mask)
    return masks


def _note(masks: dict[str, Tensor], name: str, mask: Tensor) -> None:
    if not mask.all():
        masks[name] = mask
