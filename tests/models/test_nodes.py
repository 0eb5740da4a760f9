"""Every kind of node answers as its module computes; a new kind is one class."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gatesearch.cost import PatternCost, count_macs
from gatesearch.models.channel_source import ChannelSlice, ChannelSource
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT, Add, AddStep, Conv, MaxPool, Node, Size, StepWeights
from gatesearch.models.nodes.elementwise import Elementwise
from gatesearch.pruning import extract
from tests.pruning.test_extract import gap, parts, put, scattered


@dataclass(frozen=True)
class Double(Elementwise):
    """2 x, a kind of node that the package does not have."""

    name: str
    source: str
    outputs: int
    stage: int = 0
    stride: ClassVar[int] = 1
    ends_block: ClassVar[bool] = False

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        return 2 * inputs[0]

    def scaled(self, width: float) -> "Double":
        return self.narrowed(round(width * self.outputs))

    def narrowed(self, outputs: int) -> "Double":
        return replace(self, outputs=outputs)

    def anonymous(self) -> "Double":
        return replace(self, name="", source="", stage=0)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> AddStep:
        return AddStep(left=sources[0], right=sources[0], relu=False)


NODES = {
    "1x1": Conv("node", "x", 4, 6, 1, relu=False),
    "strided and dilated": Conv("node", "x", 4, 6, 3, stride=2, dilation=2, ceiling=6.0),
    "even kernel": Conv("node", "x", 4, 6, 2),
    "depthwise": Conv("node", "x", 4, 4, 5, stride=2, depthwise=True),
    "pooling": MaxPool("node", "x", 4),
    "pooling, rounded up": MaxPool("node", "x", 4, ceil_mode=True),
    "sum": Add("node", "x", "y", 4),
    "sum without ReLU": Add("node", "x", "y", 4, relu=False),
    "new kind": Double("node", "x", 4),
}
every_node = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())


def layer_of(node: Node) -> nn.Module | None:
    layer = node.build()
    assert (layer is not None) == node.has_weights
    return None if layer is None else scattered(layer)


def sizes_of(node: Node, size: Size = (6, 9)) -> dict[str, Size]:
    """Positions of a node whose sources have `size`, and of these."""
    sizes = dict.fromkeys(node.sources, size)
    return sizes | {node.name: node.output_size(sizes)}


def inputs_of(node: Node, size: Size = (6, 9)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, n, *size, generator=generator) for n in node.input_channels]


@every_node
@pytest.mark.parametrize("size", [(1, 1), (6, 9), (8, 8)])
def test_output_is_as_large_as_said(node: Node, size: Size) -> None:
    if isinstance(node, Conv) and size[0] + 2 * (node.kernel // 2) < node.kernel:
        pytest.skip("smaller than the kernel")
    y = node.run(inputs_of(node, size), layer_of(node))
    assert y.shape == (1, node.outputs, *sizes_of(node, size)[node.name])
    assert len(node.sources) == len(node.input_channels)


@every_node
def test_needed_inputs_are_those_with_a_gradient(node: Node) -> None:
    """An independent reference: autograd through one output channel at a time."""
    linear = replace(node, relu=False) if hasattr(node, "relu") else node
    layer = layer_of(linear)
    for channel in range(node.outputs):
        inputs = [x.requires_grad_() for x in inputs_of(node)]
        gradients = torch.autograd.grad(linear.run(inputs, layer)[:, channel].sum(), inputs)
        needed = node.needed_inputs(torch.eye(node.outputs)[channel])
        for gradient, channels in zip(gradients, needed, strict=True):
            assert channels.tolist() == (gradient != 0).any((0, 2, 3)).float().tolist()
        assert node.channelwise == all(channels.sum() == 1 for channels in needed)


@every_node
def test_probabilities_give_the_expectation(node: Node) -> None:
    probability = torch.linspace(0.1, 0.9, node.outputs).double()
    expected = [torch.zeros(n).double() for n in node.input_channels]
    for pattern in itertools.product([0.0, 1.0], repeat=node.outputs):
        needed = torch.tensor(pattern).double()
        weight = (needed * probability + (1 - needed) * (1 - probability)).prod()
        for total, channels in zip(expected, node.needed_inputs(needed), strict=True):
            total += weight * channels
    for total, channels in zip(expected, node.needed_inputs(probability), strict=True):
        torch.testing.assert_close(total, channels)


@every_node
def test_costs_are_those_of_its_module(node: Node) -> None:
    layer = node.build()
    if layer is None:
        assert node.macs_per_channel(sizes_of(node)) == node.params_per_channel == 0
        return
    cost = count_macs(layer, (1, *node.input_channels, 6, 9), cross_check=False)
    assert node.outputs * node.macs_per_channel(sizes_of(node)) == cost.macs
    assert node.outputs * node.params_per_channel == cost.params


@every_node
def test_its_step_over_all_channels_computes_the_same(node: Node) -> None:
    whole = [
        (ChannelSlice(tensor=i, stop=channels),) for i, channels in enumerate(node.input_channels)
    ]
    step = node.step(name="step", sources=whole, outputs=node.outputs)
    assert step.width == node.outputs
    assert type(step).model_validate_json(step.model_dump_json()) == step
    weights, layer = StepWeights(nn.ModuleDict(), nn.ParameterDict()), layer_of(node)
    step.add_weights(weights)
    if layer is not None:
        weights.layers["step"].load_state_dict(layer.state_dict())
        weights.layers.eval()
    inputs = inputs_of(node)
    ours = step.run(inputs, step.readers(node.input_channels), weights)
    assert torch.equal(ours, node.run(inputs, layer))


@every_node
def test_only_the_shape_decides_the_latency(node: Node) -> None:
    elsewhere = replace(node, name="other", source="z", stage=3)
    assert elsewhere.anonymous() == node.anonymous()
    assert hash(elsewhere.anonymous()) == hash(node.anonymous())
    assert node.narrowed(2).outputs == 2
    assert node.narrowed(2).anonymous() != node.anonymous()


@every_node
def test_half_the_width_is_half_the_channels(node: Node) -> None:
    half = node.scaled(0.5)
    assert (half.outputs, half.input_channels) == (
        node.outputs // 2,
        tuple(channels // 2 for channels in node.input_channels),
    )
    assert replace(node, source=INPUT).scaled(0.5).outputs == half.outputs


@pytest.mark.parametrize("seed", range(4))
def test_a_new_kind_is_gated_priced_and_extracted_like_any_other(seed: int) -> None:
    nodes = (
        Conv("stem", INPUT, 3, 5, 3),
        Double("double", "stem", 5),
        Conv("branch", "double", 5, 5, 3, relu=False, stage=1),
        Add("sum", "branch", "double", 5, stage=1),
    )
    graph = Graph(nodes, stride=1)
    assert graph.coupled_channel_groups() == [frozenset({"stem", "double", "branch", "sum"})]
    model = scattered(GatedSupernet(parts(graph, 2)), seed)
    put(model, np.random.default_rng(seed))
    compact, cost = extract(model), PatternCost.of(model, (1, 3, 8, 8))
    counted = count_macs(compact, (1, 3, 8, 8), cross_check=False)
    assert float(cost.macs(model.hard_gates())) == counted.macs
    assert float(cost.params(model.hard_gates())) == counted.params
    assert gap(compact, model, torch.randn(1, 3, 8, 8)) < 1e-5


def test_a_pooling_step_is_written_as_before_it_could_round_up() -> None:
    source = [(ChannelSlice(tensor=0, stop=4),)]
    step = MaxPool("node", "x", 4).step(name="step", sources=source, outputs=4)
    assert set(step.model_dump(mode="json")) == {"op", "source"}
    rounded = MaxPool("node", "x", 4, ceil_mode=True).step(name="step", sources=source, outputs=4)
    assert rounded.model_dump(mode="json")["ceil_mode"] is True
