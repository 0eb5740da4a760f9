"""The compact network of encoders whose heads read any node and whose layers read some channels.

Aliveness is propagated backwards from the heads: a live output of a dense convolution needs the
channels that the convolution reads, that of any other node the same channel of each source. Nothing
else is computed.
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
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Step
from gatesearch.pruning.compact import CompactNet
from gatesearch.pruning.description import (
    AnyStep,
    Description,
    HeadDescription,
)
from gatesearch.pruning.extract import slices_of

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
            spec = head.spec
            source = sources.of(head.node, np.arange(stream.encoder.graph.channels(head.node)))
            described[task] = HeadDescription(
                source=source,
                kind=spec.kind,
                inputs=spec.inputs,
                channels=spec.channels,
                outputs=spec.outputs,
            )
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
        needed = live[node.name]
        if node.channelwise:
            for source in node.sources:
                live[source] |= needed
        elif needed.any():
            for source, width in zip(node.sources, node.input_channels, strict=True):
                live[source][read.get(node.name, np.arange(width))] = True
    return live


class _Sources:
    """Where the live channels of a stream's nodes are stored."""

    def __init__(self, live: Mapping[str, NDArray[np.bool_]]) -> None:
        self._positions = {name: np.cumsum(on) - 1 for name, on in live.items()}
        self._tensors = {INPUT: 0}
        self._positions[INPUT] = np.arange(IMAGE_CHANNELS)

    def store(self, name: str, tensor: int) -> None:
        """Note that a node's live channels are a tensor."""
        self._tensors[name] = tensor

    def of(self, name: str, channels: Ids) -> ChannelSource:
        """Return where some channels of a node are."""
        return tuple(slices_of(self._tensors[name], self._positions[name][channels]))


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
    sources = _Sources(live)
    for node in graph:
        outputs = np.flatnonzero(live[node.name])
        if not len(outputs):
            continue
        inputs = [outputs for _ in node.sources]
        if not node.channelwise:
            inputs = [stream.read.get(node.name, np.arange(width)) for width in node.input_channels]
        name = module_key(node.name) + suffix
        steps.append(
            node.step(
                name=name,
                sources=[sources.of(s, ids) for s, ids in zip(node.sources, inputs, strict=True)],
                outputs=len(outputs),
            )
        )
        if node.has_weights:
            # A depthwise filter has one input, its own.
            columns = np.zeros(1, dtype=np.int64) if node.channelwise else inputs[0]
            slices[name] = LayerSlice(stream.encoder.layer(node.name), outputs, columns)
        sources.store(node.name, len(steps))
    return sources
