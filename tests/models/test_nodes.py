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
from gatesearch.errors import UsageError
from gatesearch.models.channel_ops import Read
from gatesearch.models.channel_source import ChannelSlice, ChannelSource
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import (
    INPUT,
    Activation,
    Add,
    AddStep,
    Attention,
    BatchNorm,
    ClassToken,
    Conv,
    DropPath,
    GlobalResponseNorm,
    GroupNorm,
    Interpolate,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Node,
    Pool,
    PositionBias,
    PositionEmbedding,
    Rearrange,
    Route,
    Scale,
    Shift,
    Size,
    StepWeights,
    Windows,
    concatenation,
)
from gatesearch.models.nodes.activation import FUNCTIONS, OVERWRITING, ActivationStep
from gatesearch.models.nodes.elementwise import Elementwise
from gatesearch.models.nodes.position_operations import Pad, Permute, Reshape, Roll, Take
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
    "grouped": Conv("node", "x", 4, 4, 3, split=2),
    "grouped, without norm": Conv("node", "x", 8, 4, 3, norm=False, bias=True, split=2),
    "biased, unpadded": Conv("node", "x", 4, 6, 1, bias=True, padding=0),
    "depthwise, without norm": Conv(
        "node", "x", 4, 4, 3, dilation=2, relu=False, norm=False, bias=True, depthwise=True
    ),
    "oblong": Conv("node", "x", 4, 6, (1, 3), dilation=2),
    "oblong, unpadded along the width": Conv("node", "x", 4, 6, (3, 1), padding=(1, 0), norm=False),
    "patches": Conv("node", "x", 4, 6, 1, stride=3, relu=False, norm=False, padding=1),
    "batch norm": BatchNorm("node", "x", 4),
    "activation": Activation("node", "x", 4, "gelu"),
    "activation with numbers": Activation("node", "x", 4, "clamp", (0.25, 0.75)),
    "stochastic depth": DropPath("node", "x", 4, 0.5),
    "product": Multiply("node", "x", "y", 4),
    "average": Pool(
        "node", "x", 4, Windows(kind="average", kernel=(1, 2), strides=(1, 2), padding=(0, 1))
    ),
    "average, rounded up": Pool(
        "node",
        "x",
        4,
        Windows(kind="average", kernel=(2, 2), strides=(2, 2), ceil_mode=True, count_padding=False),
    ),
    "maximum": Pool("node", "x", 4, Windows(kind="max", kernel=(5, 5), padding=(2, 2))),
    "global average": Pool("node", "x", 4, Windows(kind="average", divide=(1, 1))),
    "larger": Interpolate("node", "x", 4, "bilinear", scale=2.0, align_corners=False),
    "resized": Interpolate("node", "x", 4, "nearest", size=(3, 5)),
    "concatenation": concatenation("node", ("x", "y"), (4, 2)),
    "shuffle": Route("node", ("x",), (4,), ((0, 0), (0, 2), (0, 1), (0, 3))),
    "slice": Route("node", ("x",), (8,), tuple((0, c) for c in (1, 2, 3, 7))),
    "repeated": Route("node", ("x",), (4,), tuple((0, c // 2) for c in range(6))),
}
BIAS = PositionBias(rows=3, index=((0, 1, 2), (1, 0, 1), (2, 1, 0)))
TO_WINDOWS = (
    Pad(axis=1, before=0, after=1),
    Roll(axis=0, shift=-1),
    Reshape(sizes=(3, 2, -1, 2)),
    Permute(axes=(0, 2, 1, 3)),
    Reshape(sizes=(-1, 4)),
)
# Nodes on tokens or windows, or that need certain positions, and these.
PLACED: dict[str, tuple[Node, Size]] = {
    "linear": (Linear("node", "x", 4, 6), (5,)),
    "linear without bias, in windows": (Linear("node", "x", 4, 6, bias=False), (2, 3)),
    "linear on vectors": (Linear("node", "x", 4, 6), ()),
    "layer norm": (LayerNorm("node", "x", 4), (5,)),
    "layer norm of maps": (LayerNorm("node", "x", 4, eps=1e-6), (4, 3)),
    "layer norm without weights": (LayerNorm("node", "x", 4, affine=False), (2, 3)),
    "group norm": (GroupNorm("node", "x", 4, 2), (4, 3)),
    "group norm without weights": (GroupNorm("node", "x", 6, 2, affine=False), (5,)),
    "response norm": (GlobalResponseNorm("node", "x", 4), (4, 3)),
    "scale": (Scale("node", "x", 4), (5,)),
    "shift": (Shift("node", "x", 4), (4, 3)),
    "position embedding": (PositionEmbedding("node", "x", 4, (5,)), (5,)),
    "position embedding of maps": (PositionEmbedding("node", "x", 4, (3, 4)), (3, 4)),
    "class token": (ClassToken("node", "x", 4), (5,)),
    "two tokens, in windows": (ClassToken("node", "x", 4, tokens=2), (2, 3)),
    "shifted windows": (Rearrange("node", "x", 4, TO_WINDOWS), (6, 9)),
    "every second token": (Rearrange("node", "x", 4, (Take(axis=0, start=1, step=2),)), (6,)),
    "attention": (Attention("node", "x", "y", "z", 4, 2), (3,)),
    "attention of a scale": (Attention("node", "x", "x", "x", 4, 1, scale=2.0), (2, 3)),
    "biased attention": (Attention("node", "x", "y", "z", 4, 2, bias=BIAS), (3,)),
    "biased attention, in windows": (Attention("node", "x", "y", "z", 6, 3, bias=BIAS), (2, 3)),
    "attention in shifted windows": (
        Attention(
            *("node", "x", "y", "z", 4, 2),
            bias=BIAS.model_copy(update={"regions": ((0, 0, 1), (0, 0, 0))}),
        ),
        (2, 3),
    ),
}
NODES |= {name: node for name, (node, _) in PLACED.items()}
every_node = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())


def source_fields(node: Node) -> list[str]:
    names = ("source", "query", "key", "value")
    return [name for name in names if hasattr(node, name)]


def layer_of(node: Node) -> nn.Module | None:
    layer = node.build()
    assert (layer is not None) == (node.has_weights or node.drops_images)
    return None if layer is None else scattered(layer)


def size_of(node: Node) -> Size:
    return next((size for other, size in PLACED.values() if other == node), (6, 9))


class Alone(nn.Module):
    """A node as a network of one input: all its sources, one after the other."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node, self.layer = node, node.build()

    def forward(self, x: Tensor) -> Tensor:
        return self.node.run(x.split(self.node.input_channels, 1), self.layer)


def sizes_of(node: Node, size: Size | None = None) -> dict[str, Size]:
    """Positions of a node whose sources have `size`, and of these."""
    size = size_of(node) if size is None else size
    sizes = dict.fromkeys(node.sources, size)
    return sizes | {node.name: node.output_size(sizes)}


def inputs_of(node: Node, size: Size | None = None) -> list[Tensor]:
    size = size_of(node) if size is None else size
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, n, *size, generator=generator) for n in node.input_channels]


def placed(node: Node, *, source: str, **place: object) -> Node:
    """Return a node that reads another source, elsewhere in the graph."""
    if isinstance(node, Route):
        return replace(node, sources=(source, *node.sources[1:]), **place)
    return replace(node, source=source, **place)


@every_node
@pytest.mark.parametrize("size", [(1, 1), (6, 9), (8, 8)])
def test_output_is_as_large_as_said(node: Node, size: Size) -> None:
    if any(node == other for other, _ in PLACED.values()):
        size = size_of(node)
    if isinstance(node, Conv) and min(node.output_size(dict.fromkeys(node.sources, size))) < 1:
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
        computed = node.computed(torch.eye(node.outputs)[channel])
        y = linear.run(inputs, layer)
        weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(1))
        together = (y * weights).transpose(0, 1)[computed > 0].sum()
        gradients = torch.autograd.grad(together, inputs)
        needed = node.needed_inputs(computed)
        for gradient, channels in zip(gradients, needed, strict=True):
            found = (gradient != 0).transpose(0, 1).flatten(1).any(1)
            assert channels.tolist() == found.float().tolist()
        assert node.routes or node.channelwise == all(channels.sum() == 1 for channels in needed)


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
    shape = (1, sum(node.input_channels), *size_of(node))
    cost = count_macs(Alone(node), shape, cross_check=True)
    assert not cost.uncounted
    assert not cost.disagreements
    assert node.outputs * node.macs_per_channel(sizes_of(node)) == cost.macs
    assert node.outputs * node.params_per_channel == cost.params


@every_node
def test_its_step_over_all_channels_computes_the_same(node: Node) -> None:
    if node.routes:
        with pytest.raises(NotImplementedError, match="no step"):
            node.step(name="step", sources=[], outputs=node.outputs)
        return
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
    elsewhere = replace(node, name="other", stage=3, **dict.fromkeys(source_fields(node), "z"))
    assert elsewhere.anonymous() == node.anonymous()
    assert hash(elsewhere.anonymous()) == hash(node.anonymous())
    assert node.narrowed(2).outputs == 2
    assert node.narrowed(2).anonymous() != node.anonymous()


@every_node
def test_half_the_width_is_half_the_channels(node: Node) -> None:
    if isinstance(node, Route):
        with pytest.raises(UsageError, match=r"found model\.width = 0\.5 at node; leave it at 1"):
            node.scaled(0.5)
        return
    half = node.scaled(0.5)
    assert (half.outputs, half.input_channels) == (
        node.outputs // 2,
        tuple(channels // 2 for channels in node.input_channels),
    )
    first = source_fields(node)[0]
    assert replace(node, **{first: INPUT}).scaled(0.5).outputs == half.outputs


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


@pytest.mark.parametrize("function", sorted(OVERWRITING))
def test_overwriting_functions_are_the_same_and_spare_what_is_stored(function) -> None:
    stored = torch.randn(2, 4, 3, 5)
    kept = stored.clone()
    for pieces in ([(0, 4)], [(0, 1), (2, 4)]):
        source = tuple(ChannelSlice(tensor=0, start=start, stop=stop) for start, stop in pieces)
        step = ActivationStep(source=source, function=function)
        read = Read(source, widths=[4])
        with torch.inference_mode():
            found = step.run([stored], [read], StepWeights(nn.ModuleDict(), nn.ParameterDict()))
        expected = FUNCTIONS[function](torch.cat([kept[:, slice(*piece)] for piece in pieces], 1))
        assert torch.equal(found, expected)
        assert torch.equal(stored, kept)
