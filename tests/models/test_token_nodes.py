"""Nodes on tokens: no copies in channels-last memory, values worked out by hand, whole networks."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatesearch.cost import PatternCost, count_macs
from gatesearch.models.channel_ops import Read
from gatesearch.models.channel_source import ChannelSlice
from gatesearch.models.gated_norm import gate_and_mix
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import (
    INPUT,
    Add,
    Attention,
    ClassToken,
    Conv,
    GlobalResponseNorm,
    GroupNorm,
    LayerNorm,
    Linear,
    Node,
    PositionBias,
    PositionEmbedding,
    Rearrange,
    Scale,
    Shift,
)
from gatesearch.models.nodes.attention import AttentionStep
from gatesearch.models.nodes.position_operations import Pad, Permute, Reshape, Roll, Take
from gatesearch.pruning import describe_compact, extract, rebuild_compact
from tests.models.test_nodes import PLACED
from tests.pruning.test_extract import gap, parts, put, scattered


class Copies(TorchDispatchMode):
    """Counts tensors that are copied as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in ("clone", "copy_", "_to_copy", "contiguous", "_unsafe_view")
        return func(*args, **(kwargs or {}))


def channels_last(*shape: int) -> Tensor:
    """(B, C, *positions) with the channels of a position together in memory."""
    batch, channels, *positions = shape
    x = torch.rand(batch, *positions, channels, generator=torch.Generator().manual_seed(0))
    return x.movedim(-1, 1)


@pytest.mark.parametrize("name", [n for n in PLACED if "group norm" not in n])
def test_channels_last_memory_stays_and_is_not_copied(name: str) -> None:
    node, size = PLACED[name]
    layer = node.build()
    inputs = [channels_last(2, n, *size) for n in node.input_channels]
    with torch.inference_mode(), Copies() as copies:
        y = node.run(inputs, layer)
    assert y.stride(1) == 1
    # Windows are gathered once; torch's attention with a mask copies what it multiplies.
    assert copies.count <= {"shifted windows": 2}.get(name, 0) or isinstance(node, Attention)


def test_parts_of_one_layer_are_attended_to_without_copies() -> None:
    together = channels_last(2, 24, 9)
    with torch.inference_mode(), Copies() as copies:
        q, k, v = (Read((s,), [24])([together]) for s in thirds(24))
        y = Attention("node", "q", "k", "v", 8, 2).run([q, k, v], None)
    assert y.movedim(1, -1).is_contiguous()
    assert copies.count == 0


def thirds(channels: int) -> list[ChannelSlice]:
    third = channels // 3
    return [ChannelSlice(tensor=0, start=i * third, stop=(i + 1) * third) for i in range(3)]


def test_gates_and_reads_keep_tokens_channels_last() -> None:
    streams = [channels_last(2, 6, 5) for _ in range(3)]
    gated, mixed = gate_and_mix(streams, torch.ones(2, 6), torch.full((2, 6), 0.5))
    for x in (*gated, mixed, Read((ChannelSlice(tensor=0, channels=(0, 3)),), [6])(streams)):
        assert x.movedim(1, -1).is_contiguous()


def test_attention_by_hand() -> None:
    """One head of one channel: scores q k, weights e^s / sum; two tokens."""
    q, k, v = (torch.tensor([[[a, b]]]) for a, b in ((1.0, 2.0), (0.0, 1.0), (3.0, 5.0)))
    y = Attention("node", "q", "k", "v", 1, 1).run([q, k, v], None)
    e = np.exp
    first, second = (3 + 5 * e(1)) / (1 + e(1)), (3 + 5 * e(2)) / (1 + e(2))
    torch.testing.assert_close(y, torch.tensor([[[first, second]]], dtype=torch.float32))


def test_regions_hide_other_regions() -> None:
    bias = PositionBias(rows=1, index=((0,) * 2,) * 2, regions=((0, 1), (0, 0)))
    node = Attention("node", "q", "k", "v", 2, 1, bias=bias)
    q, k, v = (torch.rand(1, 2, 2, 2) for _ in range(3))
    y = node.run([q, k, v], node.build())
    torch.testing.assert_close(y[:, :, 0], v[:, :, 0])
    assert not torch.allclose(y[:, :, 1], v[:, :, 1])


def test_fewer_keys_than_queries_cost_less() -> None:
    node = Attention("node", "q", "k", "v", 4, 2)
    sizes = {"q": (6,), "k": (2,), "v": (2,), "node": (6,)}
    assert node.outputs * node.macs_per_channel(sizes) == 2 * (6 * 2 * 2 + 6 * 2 * 2)
    y = node.run([torch.rand(1, 4, 6), torch.rand(1, 4, 2), torch.rand(1, 4, 2)], None)
    assert y.shape == (1, 4, 6)


def test_response_norm_by_hand() -> None:
    """Lengths 5 and 10 over two positions have the mean 7.5."""
    node = GlobalResponseNorm("node", "x", 2, eps=0.0)
    layer = node.build()
    torch.nn.init.constant_(layer.weight, 3.0)
    torch.nn.init.constant_(layer.bias, 1.0)
    x = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    expected = torch.tensor([[[3 + 6 + 1.0, 4 + 8 + 1.0], [6 + 24 + 1.0, 8 + 32 + 1.0]]])
    torch.testing.assert_close(node.run([x], layer), expected)


def test_impossible_operations_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one -1"):
        Reshape(sizes=(-1, -1))
    with pytest.raises(ValueError, match="every axis once"):
        Permute(axes=(0, 2))
    source = (ChannelSlice(tensor=0, stop=6),)
    step = AttentionStep(query=source, key=source, value=source, heads=4, scale=1.0)
    with pytest.raises(ValueError, match="4 heads of equal size"):
        step.check([6])
    with pytest.raises(ValueError, match="one of 1 rows"):
        PositionBias(rows=1, index=((0, 1),))


def transformer(windows: bool) -> Graph:
    """A block of a transformer on 16 tokens and a class token, or on shifted windows of 4."""
    flatten = Rearrange("flat", "stem", 8, (Reshape(sizes=(-1,)),))
    position = PositionEmbedding("position", "flat", 8, (16,))
    if windows:
        to = (Roll(axis=0, shift=-1), Reshape(sizes=(2, 2, 2, 2)), Permute(axes=(0, 2, 1, 3)))
        flatten = Rearrange("flat", "stem", 8, (*to, Reshape(sizes=(4, 4))))
        position = PositionEmbedding("position", "flat", 8, (4, 4))
    index = tuple(tuple(i - j + 3 for j in range(4)) for i in range(4))
    bias = PositionBias(rows=7, index=index, regions=((0, 0, 1, 1),) * 4) if windows else None
    start: list[Node] = [Conv("stem", INPUT, 3, 8, 1, stride=8), flatten, position]
    if not windows:
        start.append(ClassToken("class", "position", 8))
    tokens = start[-1].name
    block: list[Node] = [
        LayerNorm("norm1", tokens, 8, stage=1),
        *(Linear(name, "norm1", 8, 8, stage=1) for name in ("q", "k", "v")),
        Attention("attention", "q", "k", "v", 8, 2, bias=bias, stage=1),
        Linear("projection", "attention", 8, 8, stage=1),
        Scale("scale1", "projection", 8, stage=1),
        Add("sum1", "scale1", tokens, 8, relu=False, stage=1),
        LayerNorm("norm2", "sum1", 8, affine=False, stage=1),
        Linear("wide", "norm2", 8, 12, bias=False, stage=1),
        GlobalResponseNorm("response", "wide", 12, stage=1),
        GroupNorm("groups", "response", 12, 3, stage=1),
        Linear("narrow", "groups", 12, 8, stage=1),
        Shift("shift", "narrow", 8, stage=1),
        Add("sum2", "shift", "sum1", 8, relu=False, stage=1),
    ]
    back = (Reshape(sizes=(2, 2, 2, 2)), Permute(axes=(0, 2, 1, 3)), Reshape(sizes=(4, 4)))
    if not windows:
        back = (Take(axis=0, start=1), Reshape(sizes=(4, -1)), Pad(axis=1, before=0, after=0))
    end = Rearrange("map", "sum2", 8, back, stage=1)
    return Graph((*start, *block, end), stride=8)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("granularity", ["conv", "block"])
@pytest.mark.parametrize("seed", range(3))
def test_transformers_are_gated_priced_and_extracted(
    windows: bool, granularity: str, seed: int
) -> None:
    model = GatedSupernet(parts(transformer(windows), 2), granularity=granularity)
    put(scattered(model, seed), np.random.default_rng(seed))
    compact, cost = extract(model), PatternCost.of(model, (1, 3, 32, 32))
    counted = count_macs(compact, (1, 3, 32, 32))
    assert not counted.uncounted
    assert not counted.disagreements
    assert float(cost.macs(model.hard_gates())) == counted.macs
    assert float(cost.params(model.hard_gates())) == counted.params
    image = torch.randn(2, 3, 32, 32)
    assert gap(compact, model, image) < 1e-5
    again = rebuild_compact(describe_compact(compact)).eval()
    again.load_state_dict(compact.state_dict())
    again.description.check()
    assert gap(again, compact, image) == 0
