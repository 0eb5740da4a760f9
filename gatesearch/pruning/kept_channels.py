"""The compact network of encoders whose heads read any node and whose layers read some channels.

Aliveness is propagated backwards from the heads: a live output of a dense convolution needs the
channels that the convolution reads, that of any other node those that the node names. Nothing else
is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.graph import Graph
from gatesearch.models.layer import Layer, LayerSlice
from gatesearch.models.model_factory import HeadSpec
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node, Step
from gatesearch.pruning.compact import CompactNet
from gatesearch.pruning.description import (
    AnyStep,
    Description,
    HeadDescription,
)
from gatesearch.pruning.extract import source_of

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class HeadAt:
    """A head at a node of an encoder.

    Attributes:
        node: Name of the node whose channels it reads, all of them.
        spec: The head as plain numbers.
        module: The head.
    """

    node: str
    spec: HeadSpec
    module: nn.Module


@dataclass(frozen=True)
class Stream:
    """An encoder and the heads that read it.

    Attributes:
        encoder: Its weights.
        heads: Task -> head.
        read: Dense convolution -> (n,) input channels that it reads, ascending; one that is not
            named reads all.
    """

    encoder: Encoder
    heads: Mapping[str, HeadAt]
    read: Mapping[str, Ids] = field(default_factory=dict)


def compact_streams(streams: Sequence[Stream]) -> CompactNet:
    """Build the compact network of some encoders, in evaluation mode, on the processor.

    It computes what the encoders and heads do, if all weights of the input channels that are left
    out are zero, up to rounding. Its heads are the given modules. Nothing is drawn from torch's
    generator.
    """
    steps: list[Step] = []
    slices: dict[str, LayerSlice] = {}
    described: dict[str, HeadDescription] = {}
    for number, stream in enumerate(streams):
        suffix = f"_{number}" if len(streams) > 1 else ""
        sources = _add_steps(stream, suffix, steps, slices)
        for task, head in stream.heads.items():
            source = sources.of(head.node, np.arange(stream.encoder.graph.channels(head.node)))
            described[task] = HeadDescription.of(head.spec, [source])
    description = Description(steps=cast(tuple[AnyStep, ...], tuple(steps)), heads=described)
    modules = {task: head.module for stream in streams for task, head in stream.heads.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        compact = CompactNet(description, modules)
        for name, part in slices.items():
            cast(Layer, compact.convs[name]).copy_channels([part])
    return compact.cpu().eval()


def live_channels(
    graph: Graph, heads: Sequence[str], read: Mapping[str, Ids]
) -> dict[str, NDArray[np.bool_]]:
    """Return node -> (C,) which of its channels some head needs.

    Args:
        graph: The encoder.
        heads: Nodes that heads read whole.
        read: See `Stream`.
    """
    live = {node.name: np.full(node.outputs, node.name in heads) for node in graph}
    live[INPUT] = np.zeros(IMAGE_CHANNELS, dtype=bool)
    for node in reversed(graph.nodes):
        computed = node.computed(torch.from_numpy(live[node.name]).float())
        live[node.name] = computed.numpy() > 0
        if node.name in read and live[node.name].any():
            live[node.sources[0]][read[node.name]] = True
            continue
        for source, needed in zip(node.sources, node.needed_inputs(computed), strict=True):
            live[source] |= needed.numpy() > 0
    return live


class _Sources:
    """Where the live channels of a stream's nodes are stored."""

    def __init__(self) -> None:
        # Node -> (C, 2) tensor and channel of each of its channels; -1 where it is not computed.
        self._positions: dict[str, Ids] = {}
        self.store(INPUT, np.arange(IMAGE_CHANNELS), 0, IMAGE_CHANNELS)

    def store(self, name: str, outputs: Ids, tensor: int, channels: int) -> None:
        """Note that some of a node's channels are those of a tensor."""
        positions = np.full((channels, 2), -1)
        positions[outputs, 0], positions[outputs, 1] = tensor, np.arange(len(outputs))
        self._positions[name] = positions

    def route(self, node: Node) -> None:
        """Note that a node's channels are channels of its sources."""
        assert node.routes is not None
        read = [self._positions[source] for source in node.sources]
        self._positions[node.name] = np.array([read[i][c] for i, c in node.routes])

    def of(self, name: str, channels: Ids) -> ChannelSource:
        """Return where some channels of a node are."""
        return source_of(self._positions[name][channels])


def _add_steps(
    stream: Stream, suffix: str, steps: list[Step], slices: dict[str, LayerSlice]
) -> _Sources:
    """Add a step for every node with live channels.

    Args:
        stream: The encoder.
        suffix: Of the names of its steps.
        steps: The network's so far.
        slices: Step -> what its weights are.
    """
    graph = stream.encoder.graph
    live = live_channels(graph, [head.node for head in stream.heads.values()], stream.read)
    sources = _Sources()
    for node in graph:
        outputs = np.flatnonzero(live[node.name])
        if not len(outputs):
            sources.store(node.name, outputs, 0, node.outputs)
            continue
        if node.routes is not None:
            sources.route(node)
            continue
        needed = node.needed_inputs(torch.from_numpy(live[node.name]).float())
        inputs = [np.flatnonzero(channels.numpy()) for channels in needed]
        if node.name in stream.read:
            inputs = [stream.read[node.name]]
        name = module_key(node.name) + suffix
        steps.append(
            node.step(
                name=name,
                sources=[sources.of(s, ids) for s, ids in zip(node.sources, inputs, strict=True)],
                outputs=len(outputs),
            )
        )
        if node.has_weights:
            # A filter of a group has that group's inputs.
            within = np.arange(node.input_channels[0] // node.groups)
            columns = inputs[0] if node.name in stream.read else within
            slices[name] = LayerSlice(stream.encoder.layer(node.name), outputs, columns)
        sources.store(node.name, outputs, len(steps), node.outputs)
    return sources
