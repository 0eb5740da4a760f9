"""Whole encoders as steps of a compact network: one stream per encoder, cut at no channel."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from gatesearch.models.channel_source import ChannelSlice, ChannelSource, channel_positions
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.model_factory import HeadSpec, OwnHead, nodes_read
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node, Step
from gatesearch.pruning.compact import CompactNet
from gatesearch.pruning.description import AnyStep, Description, HeadDescription
from gatesearch.pruning.extract import source_of


def routed(routes: Sequence[tuple[int, int]], sources: Sequence[ChannelSource]) -> ChannelSource:
    """Return where the channels that a node renumbers are stored.

    Args:
        routes: (source, channel) that each output is.
        sources: Where the channels of each source are stored.
    """
    read = [np.array(channel_positions(source)) for source in sources]
    return source_of(np.array([read[source][channel] for source, channel in routes]))


class StreamWriter:
    """Writes the steps of several streams in the order in which they are computed.

    Attributes:
        values: Stream -> node -> where its value is stored; `INPUT` is the image.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        self._encoders = encoders
        self._steps: list[Step] = []
        self._layers: dict[str, nn.Module] = {}
        image = (ChannelSlice(tensor=0, stop=IMAGE_CHANNELS),)
        self.values: dict[str, dict[str, ChannelSource]] = {s: {INPUT: image} for s in encoders}

    def add_node(self, stream: str, node: Node) -> None:
        """Add a step that computes all channels of a node in a stream."""
        values = self.values[stream]
        if node.routes is not None:
            values[node.name] = routed(node.routes, [values[source] for source in node.sources])
            return
        name = f"{module_key(node.name)}_{stream}"
        layer = self._encoders[stream].layer(node.name) if node.has_weights else None
        sources = [values[source] for source in node.sources]
        step = node.step(name=name, sources=sources, outputs=node.outputs)
        values[node.name] = self.add_step(step, name, cast(nn.Module | None, layer))

    def add_step(self, step: Step, name: str, layer: nn.Module | None) -> ChannelSource:
        """Add a step, whose weights under `name` are those of `layer`; return where its value is.

        Args:
            step: The step.
            name: Its name.
            layer: A module with the state dict of the step's own; None for a step without weights.
        """
        self._steps.append(step)
        if layer is not None:
            self._layers[name] = layer
        return (ChannelSlice(tensor=len(self._steps), stop=step.width),)

    def finish(self, specs: Mapping[str, HeadSpec | OwnHead], heads: nn.ModuleDict) -> CompactNet:
        """Build the compact network, whose head of a task reads the features of its stream.

        Args:
            specs: Task -> how its head is built; a task's stream has its name.
            heads: Task -> head whose weights are taken.
        """
        described = {
            task: HeadDescription.of(spec, self._read(task, spec)) for task, spec in specs.items()
        }
        steps = cast(tuple[AnyStep, ...], tuple(self._steps))
        compact = CompactNet(Description(steps=steps, heads=described))
        with torch.no_grad():
            for name, layer in self._layers.items():
                compact.convs[name].load_state_dict(layer.state_dict())
            compact.heads.load_state_dict(heads.state_dict())
        return compact.eval()

    def _read(self, stream: str, spec: HeadSpec | OwnHead) -> list[ChannelSource]:
        (names,) = nodes_read(self._encoders[stream].graph, {stream: spec})
        return [self.values[stream][name] for name in names]
