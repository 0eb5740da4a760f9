"""Measure the seconds of a supernet's layers on a device."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from gatesearch.cost.latency import LatencyTable, Points, median_latency, median_seconds, noise
from gatesearch.cost.sizes import node_sizes
from gatesearch.models import GatedSupernet
from gatesearch.models.channel_ops import Read
from gatesearch.models.channel_source import ChannelSlice
from gatesearch.models.heads import Heads
from gatesearch.models.model_factory import HeadSpec, OwnHead, nodes_read
from gatesearch.models.nodes import Node, Size
from gatesearch.pruning import extract
from gatesearch.pruning.mix import MixStep, Term
from gatesearch.training import Runtime

# Shares of a layer's outputs at which it is measured.
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
# Minimum number of runs and seconds per layer; fewer than for a network, because the errors of
# layers average out in their sum.
_RUNS, _SPAN = 15, 0.05


def measure_layers(
    supernet: GatedSupernet, input_shape: tuple[int, int, int, int], runtime: Runtime
) -> LatencyTable:
    """Measure the layers of a supernet, and its compact networks with all gates closed and open.

    Layers of equal shapes are measured once. `scale` is chosen so that the table gives the sum of
    the measured seconds of these two networks.

    Args:
        supernet: The supernet, which is not changed; its weights do not matter.
        input_shape: (1, 3, H, W) of the image.
        runtime: Device and memory format.
    """
    graph, tasks = supernet.graph, len(supernet.tasks)
    size = (input_shape[2], input_shape[3])
    sizes, read = node_sizes(graph, size), nodes_read(graph, supernet.head_specs)
    with torch.random.fork_rng(devices=[]):
        layers = _Layers(runtime)
        convs = {
            node.name: layers.points(node.anonymous(), tuple(sizes[s] for s in node.sources))
            for node in graph.weighted_nodes
        }
        elements = {
            node.name: layers.element(node.anonymous(), tuple(sizes[s] for s in node.sources))
            for node in graph
            if not node.has_weights and node.routes is None
        }
        mixes = {
            node.name: layers.mix(tasks, node.outputs, sizes[node.name])
            for node in graph
            if node.name in supernet.mixed
        }
        heads = sum(
            layers.head(spec, tuple(sizes[name] for name in names), size)
            for spec, names in zip(supernet.head_specs.values(), read, strict=True)
        )
        ends = _ends(supernet, input_shape, runtime)
    outputs = {node.name: node.outputs for node in graph}
    stream = sum(points[-1][1] for points in convs.values())
    stream += sum(seconds * outputs[name] for name, seconds in elements.items())
    return LatencyTable(
        convs=convs,
        elements=elements,
        mixes=mixes,
        heads=heads,
        ends=ends,
        scale=sum(ends) / (2 * heads + (1 + tasks) * stream),
    )


class _Layers:
    """Measures seconds of layers, and keeps them by shape, so that each is measured once."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.points, self.element = cache(self._points), cache(self._element)
        self.mix, self.head = cache(self._mix), cache(self._head)

    def _points(self, node: Node, sizes: tuple[Size, ...]) -> Points:
        """Measure a node with weights at several numbers of outputs, whole groups of them."""
        least = node.outputs // node.groups if node.whole_groups else 1
        counts = sorted({least * max(1, round(share * node.outputs / least)) for share in _SHARES})
        return tuple((count, self._node(node.narrowed(count), sizes)) for count in counts)

    def _element(self, node: Node, sizes: tuple[Size, ...]) -> float:
        """Measure the seconds per channel of a node without weights."""
        return self._node(node, sizes) / node.outputs

    def _node(self, node: Node, sizes: tuple[Size, ...]) -> float:
        layer = node.build()
        if layer is not None:
            layer = self.runtime.place(layer).eval()
        inputs = [self._noise(n, s) for n, s in zip(node.input_channels, sizes, strict=True)]
        return self._seconds(node.run, inputs, layer)

    def _mix(self, tasks: int, channels: int, size: Size) -> float:
        """Measure the seconds per channel of a mix to which every task adds all channels."""
        terms = [
            Term(task=t, source=(ChannelSlice(tensor=t, stop=channels),), start=0, stop=channels)
            for t in range(tasks)
        ]
        step = MixStep(name="mix", terms=tuple(terms), tasks=tasks, channels=channels)
        features = [self._noise(channels, size) for _ in range(tasks)]
        readers = [Read(term.source, [channels] * tasks) for term in terms]
        weights = torch.ones(tasks, channels, device=features[0].device)
        return self._seconds(step.mixed, readers, features, weights) / channels

    def _head(self, spec: HeadSpec | OwnHead, sizes: tuple[Size, ...], image: Size) -> float:
        head = spec.build()
        if isinstance(spec, OwnHead):
            head = copy.deepcopy(head)
        heads = Heads({"head": self.runtime.place(head).eval()})
        channels = [feature.channels for feature in spec.features] or [spec.inputs]
        maps = [self._noise(c, size) for c, size in zip(channels, sizes, strict=True)]
        return self._seconds(heads.call_head, "head", maps, image)

    def _noise(self, channels: int, size: Size) -> Tensor:
        return noise((1, channels, *size), self.runtime)

    def _seconds(self, layer: Callable[..., Tensor], *inputs: object) -> float:
        return median_seconds(lambda: layer(*inputs), self.runtime, runs=_RUNS, span=_SPAN)


def _ends(
    supernet: GatedSupernet, shape: tuple[int, int, int, int], runtime: Runtime
) -> tuple[float, float]:
    """Measure the seconds of the compact networks with (all gates closed, all gates open)."""
    model = copy.deepcopy(supernet)
    seconds = []
    for is_open in (False, True):
        model.set_gates({name: torch.full_like(a, is_open) for name, a in model.logits().items()})
        seconds.append(median_latency(extract(model), shape, runtime))
    return seconds[0], seconds[1]
