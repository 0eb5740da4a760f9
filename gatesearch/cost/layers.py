"""The layers of a supernet, measured on this device."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from gatesearch.cost.latency import LatencyTable, Points, median_latency, median_seconds, noise
from gatesearch.cost.sizes import node_sizes
from gatesearch.models import GatedSupernet
from gatesearch.models.encoder import ConvNorm
from gatesearch.models.graph import Add, Conv, MaxPool, elementwise
from gatesearch.models.model_factory import HeadSpec
from gatesearch.pruning import extract
from gatesearch.training import Runtime

Size = tuple[int, int]  # height, width in pixels

_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a convolution's outputs
# Less than for a network: the errors of layers average out in their sum.
_RUNS, _SPAN = 15, 0.05


def measure_layers(
    supernet: GatedSupernet, input_shape: tuple[int, int, int, int], runtime: Runtime
) -> LatencyTable:
    """Measure the layers of a supernet, equal ones once, and both ends of its patterns.

    `scale` makes the table right for the sum of both ends.

    Args:
        supernet: Stays as it is; its weights do not matter.
        input_shape: (1, 3, H, W) of the image.
        runtime: Device and memory format.
    """
    graph, tasks = supernet.graph, len(supernet.tasks)
    size = (input_shape[2], input_shape[3])
    sizes = node_sizes(graph, size)
    features = sizes[graph.nodes[-1].name]
    with torch.random.fork_rng(devices=[]):
        layers = _Layers(runtime)
        convs = {
            node.name: layers.points(replace(node, name="", source="", stage=0), sizes[node.source])
            for node in graph.convs
        }
        elements = {
            node.name: layers.element(_nameless(node), sizes[node.sources[0]])
            for node in graph
            if not isinstance(node, Conv)
        }
        mixes = {
            node.name: layers.mix(tasks, node.outputs, sizes[node.name])
            for node in graph
            if node.name in supernet.mixed
        }
        heads = sum(layers.head(spec, features, size) for spec in supernet.head_specs.values())
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
    """Seconds of layers, each shape measured once."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.points, self.element = cache(self._points), cache(self._element)
        self.mix, self.head = cache(self._mix), cache(self._head)

    def _points(self, conv: Conv, size: Size) -> Points:
        counts = sorted({max(1, round(share * conv.outputs)) for share in _SHARES})
        seconds = []
        for count in counts:
            inputs = count if conv.depthwise else conv.inputs
            layer = ConvNorm.of(replace(conv, inputs=inputs, outputs=count))
            x = self._noise(inputs, size)
            seconds.append(self._seconds(self.runtime.place(layer).eval(), x))
        return tuple(zip(counts, seconds, strict=True))

    def _element(self, node: Add | MaxPool, size: Size) -> float:
        """Seconds a channel."""
        inputs = [self._noise(node.outputs, size) for _ in node.sources]
        return self._seconds(elementwise, node, inputs) / node.outputs

    def _mix(self, tasks: int, channels: int, size: Size) -> float:
        """Seconds a channel."""
        features = [self._noise(channels, size) for _ in range(tasks)]
        return self._seconds(_mixed, features, self._noise(channels, (1, 1))) / channels

    def _head(self, spec: HeadSpec, features: Size, image: Size) -> float:
        head = self.runtime.place(spec.build()).eval()
        return self._seconds(head, self._noise(spec.inputs, features), image)

    def _noise(self, channels: int, size: Size) -> Tensor:
        return noise((1, channels, *size), self.runtime)

    def _seconds(self, layer: Callable[..., Tensor], *inputs: object) -> float:
        return median_seconds(lambda: layer(*inputs), self.runtime, runs=_RUNS, span=_SPAN)


def _nameless(node: Add | MaxPool) -> Add | MaxPool:
    """What of a node decides its time."""
    plain = replace(node, name="", source="", stage=0)
    return replace(plain, skip="") if isinstance(plain, Add) else plain


def _mixed(features: list[Tensor], weights: Tensor) -> Tensor:
    total = features[0] * weights
    for x in features[1:]:
        total.addcmul_(x, weights)
    return total


def _ends(
    supernet: GatedSupernet, shape: tuple[int, int, int, int], runtime: Runtime
) -> tuple[float, float]:
    model = copy.deepcopy(supernet)
    seconds = []
    for own in (False, True):
        model.set_gates({name: torch.full_like(a, own) for name, a in model.logits().items()})
        seconds.append(median_latency(extract(model), shape, runtime))
    return seconds[0], seconds[1]
