"""Where gates lie in graphs of every kind, and which channels share one."""

import pytest

from gatesearch.errors import UsageError
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gate_placement import gate_units
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import (
    INPUT,
    Activation,
    Add,
    Attention,
    BatchNorm,
    ClassToken,
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Node,
    Pool,
    PositionEmbedding,
    Rearrange,
    Route,
    Scale,
)
from gatesearch.models.nodes.pool import Windows
from gatesearch.models.nodes.position_operations import Reshape, Take


def bare(name: str, source: str, inputs: int, outputs: int, **options: object) -> Conv:
    """A 1x1 convolution whose norm and activation are nodes of their own."""
    return Conv(name, source, inputs, outputs, 1, relu=False, norm=False, bias=True, **options)


def thirds(source: str, channels: int) -> list[Route]:
    """Query, key and value of a layer that computes all three."""
    return [
        Route(
            name, (source,), (3 * channels,),
            tuple((0, i * channels + c) for c in range(channels)), stage=1,
        )
        for i, name in enumerate(("query", "key", "value"))
    ]  # fmt: skip


def vit(size: tuple[int, int] = (2, 3)) -> Graph:
    """Patches of 4, a class token, positions, and a block of two heads of four channels.

    Args:
        size: Of the feature map, for images four times as large.
    """
    nodes: list[Node] = [
        Conv("patches", INPUT, 3, 8, 4, stride=4, relu=False, norm=False, bias=True, padding=0),
        Rearrange("tokens", "patches", 8, (Reshape(sizes=(-1,)),)),
        ClassToken("class", "tokens", 8),
        PositionEmbedding("places", "class", 8, (size[0] * size[1] + 1,)),
        LayerNorm("norm1", "places", 8, stage=1),
        Linear("qkv", "norm1", 8, 24, stage=1),
        *thirds("qkv", 8),
        Attention("attention", "query", "key", "value", 8, heads=2, stage=1),
        Linear("project", "attention", 8, 8, stage=1),
        Scale("scale1", "project", 8, stage=1),
        Add("sum1", "scale1", "places", 8, relu=False, stage=1, ends_block=False),
        LayerNorm("norm2", "sum1", 8, stage=1),
        Linear("mlp1", "norm2", 8, 16, stage=1),
        Activation("gelu", "mlp1", 16, "gelu", stage=1),
        Linear("mlp2", "gelu", 16, 8, stage=1),
        Scale("scale2", "mlp2", 8, stage=1),
        Add("sum2", "scale2", "sum1", 8, relu=False, stage=1),
        LayerNorm("norm", "sum2", 8, stage=1),
        Rearrange("map", "norm", 8, (Take(axis=0, start=1), Reshape(sizes=size)), stage=1),
    ]
    return Graph(tuple(nodes), stride=4)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_have_their_gates_behind_convolutions_and_block_ends(name: str) -> None:
    graph = BACKBONES[name](width=0.1)
    assert graph.gated("conv") == tuple(node.name for node in graph.weighted_nodes)
    stem = [node.name for node in graph if node.stage == 0 and node.has_weights]
    ends = [node.name for node in graph if node.ends_block]
    assert graph.gated("block") == (*stem, *ends)
    for units in graph.gate_units("conv").values():
        assert units == tuple(range(len(units)))


def test_gates_of_a_transformer() -> None:
    """Behind q, k, v, projection and both MLP layers; the last norm has some for lack of others."""
    assert vit().gated("conv") == ("places", "qkv", "scale1", "mlp1", "scale2", "map")
    assert vit().gated("head") == vit().gated("conv")
    assert vit().gated("block") == ("places", "sum2", "map")


def test_a_head_shares_a_gate_though_its_channels_lie_apart() -> None:
    units = vit().gate_units("head")
    assert units["qkv"] == (*(0, 0, 0, 0, 1, 1, 1, 1) * 3,)
    assert units["map"] == (0,) * 8  # a norm is computed all or none
    for name in ("places", "scale1", "mlp1", "scale2"):
        assert units[name] == tuple(range(vit().channels(name)))
    assert vit().gate_units("conv")["qkv"] == tuple(range(24))


def test_layers_of_query_key_and_value_have_gates_of_their_own() -> None:
    """Queries are normed in each head; both heads read the same four keys."""
    nodes = (
        bare("query", INPUT, 3, 8),
        GroupNorm("normed", "query", 8, 2),
        bare("key", INPUT, 3, 4),
        Route("keys", ("key",), (4,), tuple((0, c % 4) for c in range(8))),
        bare("value", INPUT, 3, 8),
        Activation("scaled", "value", 8, "multiply", (0.5,)),
        Attention("attention", "normed", "keys", "scaled", 8, heads=2),
        bare("project", "attention", 8, 8),
    )
    units = Graph(nodes, stride=1).gate_units("head")
    heads = (0, 0, 0, 0, 1, 1, 1, 1)
    assert units == {"query": heads, "key": (0,) * 4, "scaled": heads, "project": tuple(range(8))}


def test_whole_groups_share_a_gate_beside_heads() -> None:
    nodes = (
        Conv("grouped", INPUT, 3, 6, 1, split=3),
        *(bare(name, "grouped", 6, 4) for name in ("q", "k", "v")),
        Attention("attention", "q", "k", "v", 4, heads=1),
        bare("project", "attention", 4, 4),
    )
    units = Graph(nodes, stride=1).gate_units("head")
    assert units["grouped"] == (0, 0, 1, 1, 2, 2)
    assert units["q"] == (0,) * 4


def test_a_network_without_attention_refuses_heads() -> None:
    with pytest.raises(UsageError, match=r'needs attention.*found none; take "conv"'):
        BACKBONES["resnet18"](width=0.1).gated("head")


def test_gates_lie_behind_norm_and_activation_and_before_sums_and_products() -> None:
    nodes = (
        bare("stem", INPUT, 3, 4),
        BatchNorm("norm", "stem", 4),
        Activation("silu", "norm", 4, "silu"),
        Conv("depthwise", "silu", 4, 4, 3, depthwise=True),
        Pool("mean", "depthwise", 4, Windows(kind="average", kernel=(8, 8))),
        bare("squeeze", "mean", 4, 2),
        Activation("relu", "squeeze", 2, "relu"),
        bare("excite", "relu", 2, 4),
        Activation("sigmoid", "excite", 4, "sigmoid"),
        Multiply("product", "depthwise", "sigmoid", 4),
        bare("branch", "product", 4, 4),
        BatchNorm("norm2", "branch", 4),
        Add("sum", "norm2", "silu", 4),
    )
    expected = ("silu", "depthwise", "relu", "sigmoid", "norm2")
    assert Graph(nodes, stride=1).gated("conv") == expected


def test_weights_behind_the_last_convolution_are_gated_too() -> None:
    """Else every task would compute them even where it shares everything."""
    nodes = (
        bare("stem", INPUT, 3, 4),
        bare("grown", "stem", 4, 2),
        Route("both", ("stem", "grown"), (4, 2), (*((0, c) for c in range(4)), (1, 0), (1, 1))),
        BatchNorm("norm", "both", 6),
        Activation("relu", "norm", 6, "relu"),
    )
    assert Graph(nodes, stride=1).gated("conv") == ("stem", "grown", "relu")
    assert gate_units(nodes, "conv", ends=("both",)).keys() == {"stem", "grown"}


def test_the_identity_of_a_sum_is_gated_where_no_gate_follows() -> None:
    nodes = (
        Conv("stem", INPUT, 3, 4, 3),
        *(Conv(f"conv{i}", "stem", 4, 4, i, relu=False) for i in (1, 3)),
        BatchNorm("identity", "stem", 4),
        Add("sum", "conv1", "conv3", 4, relu=False),
        Add("all", "sum", "identity", 4),
    )
    assert Graph(nodes, stride=1).gated("conv") == ("stem", "conv1", "conv3", "identity")


def test_a_convolution_fused_with_its_norm_keeps_its_gates_unless_weights_follow() -> None:
    conv = Conv("conv", INPUT, 3, 4, 3)
    pooled = Graph((conv, MaxPool("pool", "conv", 4)), stride=2)
    assert pooled.gated("conv") == ("conv",)
    scaled = Graph((conv, Scale("scale", "conv", 4)), stride=1)
    assert scaled.gated("conv") == ("scale",)


def test_nodes_that_heads_read_end_a_chain() -> None:
    nodes = (bare("stem", INPUT, 3, 4), Activation("relu", "stem", 4, "relu"))
    assert list(gate_units(nodes, "conv", ends=("stem", "relu"))) == ["stem"]
    assert list(gate_units(nodes, "conv", ends=("relu",))) == ["relu"]
    graph = Graph((*nodes, bare("deep", "relu", 4, 6)), 1, ("stem", "deep"), (1, 1))
    assert graph.gated("conv") == ("stem", "deep")
    assert graph.gated("block") == ("stem", "deep")
