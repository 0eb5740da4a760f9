"""Without some coupled channel groups a network computes what it does with zeros in their place."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models.coupling import ChannelGroups, Kept, channel_groups
from gatesearch.models.efficientnet import efficientnet_lite0
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph, execute
from gatesearch.models.heads import HEADS
from gatesearch.models.imported import import_backbone
from gatesearch.models.model_factory import HeadSpec, OwnHead, Parts, features_for, features_of
from gatesearch.models.narrowing import (
    groups_of,
    narrowed_encoder,
    narrowed_graph,
    narrowed_multi_task_state,
    narrowed_parts,
)
from gatesearch.models.nodes import (
    INPUT,
    BatchNorm,
    Conv,
    GlobalResponseNorm,
    GroupNorm,
    LayerNorm,
    Multiply,
    Node,
    Route,
    concatenation,
)
from gatesearch.models.resnet import resnet
from tests.pruning.test_kinds_of_nodes import GRAPHS as TOKENS

SIZE = (16, 32)


def basic() -> Graph:
    return resnet(depths=(1, 2, 1, 1), bottleneck=False, width=0.0625)


def dilated() -> Graph:
    return resnet(depths=(1, 1, 1, 1), bottleneck=True, output_stride=8, width=0.0625)


def lite() -> Graph:
    return efficientnet_lite0(output_stride=16, width=0.125)


def shuffled() -> Graph:
    """Channels split in halves, joined and shuffled; a grouped convolution; one map for all."""
    halves = [tuple((0, c) for c in half) for half in (range(4), range(4, 8))]
    nodes = (
        Conv("stem", INPUT, 3, 8, 3, stride=2),
        Route("left", ("stem",), (8,), halves[0]),
        Route("right", ("stem",), (8,), halves[1]),
        Conv("branch", "right", 4, 4, 3),
        concatenation("joined", ("left", "branch"), (4, 4)),
        Route("shuffled", ("joined",), (8,), tuple((0, c) for c in (0, 4, 1, 5, 2, 6, 3, 7))),
        BatchNorm("norm", "shuffled", 8),
        Conv("grouped", "norm", 8, 12, 3, split=4),
        Conv("map", "grouped", 12, 1, 1, norm=False, relu=False),
        Route("repeated", ("map",), (1,), ((0, 0),) * 12),
        Multiply("weighed", "grouped", "repeated", 12),
        Conv("last", "weighed", 12, 6, 1),
    )
    return Graph(nodes, stride=2)


HAND_WRITTEN = {"basic": basic, "dilated": dilated, "lite": lite, "shuffled": shuffled, **TOKENS}


def random_kept(groups: ChannelGroups, seed: int, share: float = 0.5) -> Kept:
    """Groups at random, but so many that every node keeps a channel."""
    draw = np.random.default_rng(seed)
    kept = ~groups.removable | (draw.random(groups.count) < share)
    for numbers in groups.numbers.values():
        if not kept[numbers].any():
            kept[draw.choice(numbers)] = True
    return kept


def mixed_up(encoder: Encoder) -> Encoder:
    """Weights and statistics that differ in every channel, in float64."""
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if tensor.is_floating_point():
                noise = (
                    torch.rand_like(tensor) if "running_var" in name else torch.randn_like(tensor)
                )
                tensor.add_(0.3 * noise)
    return encoder.double().eval()


def over_all_channels(node: Node) -> bool:
    """A norm over all channels, which is over those that are kept instead."""
    return isinstance(node, LayerNorm | GlobalResponseNorm) or (
        isinstance(node, GroupNorm) and node.split == 1
    )


def zeroed(encoder: Encoder, image: Tensor, channels: dict[str, np.ndarray], names: Sequence[str]):
    """What the whole encoder computes with removed channels zeroed behind every node."""

    def apply(node: Node, inputs: list[Tensor]) -> Tensor:
        kept = torch.from_numpy(channels[node.name])
        if over_all_channels(node):
            layer = encoder.layer(node.name) if node.has_weights else None
            found = norm_of_kept(node, inputs[0], kept, layer)
        else:
            found = encoder.apply_node(node, inputs)
        masked = torch.zeros_like(found)
        masked[:, kept] = found[:, kept]
        return masked

    values = execute(encoder.graph.nodes, {INPUT: image}, apply, keep=tuple(names))
    return [values[name][:, torch.from_numpy(channels[name])] for name in names]


def norm_of_kept(node: Node, x: Tensor, kept: Tensor, layer: nn.Module | None) -> Tensor:
    """The norms by their formulas, with means over the kept channels."""
    axes = tuple(range(1, x.dim())) if isinstance(node, GroupNorm) else (1,)
    few = x[:, kept]
    gamma, beta = (
        (layer.weight[kept], layer.bias[kept])
        if layer is not None
        else (torch.ones(1), torch.zeros(1))
    )
    gamma, beta = (v.view(1, -1, *[1] * (x.dim() - 2)) for v in (gamma, beta))
    if isinstance(node, GlobalResponseNorm):
        length = (few**2).sum(tuple(range(2, x.dim())), keepdim=True).sqrt()
        y = gamma * few * length / (length.mean(1, keepdim=True) + node.eps) + beta + few
    else:
        mean = few.mean(axes, keepdim=True)
        variance = ((few - mean) ** 2).mean(axes, keepdim=True)
        y = (few - mean) / (variance + node.eps).sqrt() * gamma + beta
    found = torch.zeros_like(x)
    found[:, kept] = y
    return found


def largest_gap(graph: Graph, size: tuple[int, int], seed: int) -> float:
    """Between narrowed and zeroed features, as a share of the largest value."""
    torch.manual_seed(seed)
    encoder = mixed_up(Encoder(graph))
    groups = channel_groups(graph)
    channels = groups.channels(random_kept(groups, seed))
    narrow = narrowed_graph(graph, channels)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        want = zeroed(encoder, image, channels, graph.features)
        cut = narrowed_encoder(encoder, narrow, channels).double()
        cut.load_state_dict(narrowed_in_double(encoder, narrow, channels))
        found = cut.eval().features(image, graph.features)
    assert all(a.shape == b.shape for a, b in zip(want, found, strict=True))
    return max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
        for a, b in zip(want, found, strict=True)
    )


def narrowed_in_double(encoder: Encoder, narrow: Graph, channels: dict[str, np.ndarray]):
    torch.set_default_dtype(torch.float64)
    try:
        return narrowed_encoder(encoder, narrow, channels).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", HAND_WRITTEN)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=5, deadline=None)
def test_a_narrowed_encoder_computes_what_the_whole_does_with_zeros(name: str, seed: int) -> None:
    size = (8, 12) if name in TOKENS else SIZE
    assert largest_gap(HAND_WRITTEN[name](), size, seed) < 1e-10


@pytest.mark.slow("imports networks")
@pytest.mark.parametrize(
    "name",
    [
        "timm:mobilenetv3_small_100",
        "timm:convnext_atto",
        "timm:densenet121",
        "timm:vit_tiny_patch16_224",
        "timm:ghostnet_100",
        "torchvision:shufflenet_v2_x0_5",
    ],
)
def test_so_does_an_imported_one(name: str) -> None:
    pytest.importorskip("timm", reason="networks of timm need pip install 'gatesearch[timm]'")
    graph = import_backbone(name, (32, 32), None).graph
    assert largest_gap(graph, (32, 32), seed=1) < 1e-9


def test_channels_that_meet_go_together() -> None:
    groups = channel_groups(basic())
    stream = groups.numbers["layer1.0"]
    assert (stream == groups.numbers["conv1"]).all()
    assert (stream == groups.numbers["layer1.0.conv2"]).all()
    assert not set(stream) & set(groups.numbers["layer1.0.conv1"])
    assert groups.count == 3 + 4 * 2 + 8 * 3 + 16 * 2 + 32 * 2
    assert groups.makers[int(stream[0])] == "conv1"


def test_a_head_of_attention_goes_whole() -> None:
    groups = channel_groups(TOKENS["vit"]())
    for name in ("query", "key", "value", "attention"):
        assert (
            groups.numbers[name].tolist()
            == [groups.numbers["query"][0]] * 4 + [groups.numbers["query"][4]] * 4
        )
    assert len(set(groups.numbers["mlp1"])) == 16


def test_a_channel_that_meets_all_others_stays() -> None:
    groups = channel_groups(shuffled())
    assert not groups.removable[groups.numbers["map"]].any()
    assert groups.removable[groups.numbers["weighed"]].all()
    assert list(groups.fixed) == ["the image", "repeated by repeated"]
    # Both halves go their ways as if nothing were split: four groups of one convolution each.
    assert len(set(groups.numbers["grouped"])) == 4


def test_a_node_without_channels_is_refused() -> None:
    groups = channel_groups(basic())
    kept = np.ones(groups.count, dtype=bool)
    kept[groups.numbers["layer2.0.conv1"]] = False
    with pytest.raises(
        UsageError, match=r"must keep a channel, found none of layer2.0.conv1; keep"
    ):
        narrowed_graph(basic(), groups.channels(kept))


def parts_with(kind: str) -> Parts:
    graph = basic()
    inputs = graph.outputs
    heads = {
        "a": HeadSpec(kind, inputs, 4, 3, features_for(graph, HEADS[kind])),
        "b": HeadSpec("light", inputs, 4, 1),
    }
    return Parts(graph, heads, seed=3)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_read_what_is_kept(kind: str) -> None:
    parts = parts_with(kind)
    groups = groups_of(parts)
    kept = random_kept(groups, seed=5)
    channels = groups.channels(kept)
    torch.manual_seed(0)
    whole = MultiTaskNet(parts).eval()
    mixed_up(whole.encoder).float()
    cut = MultiTaskNet(narrowed_parts(parts, groups, kept)).eval()
    cut.load_state_dict(narrowed_multi_task_state(parts, whole.state_dict(), groups, kept))
    image = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        found = cut(image)
        names = parts.graph.features
        few = zeroed(whole.encoder, image, channels, names)
        maps = []
        for name, x in zip(names, few, strict=True):
            full = torch.zeros(2, parts.graph.channels(name), *x.shape[2:])
            full[:, torch.from_numpy(channels[name])] = x
            maps.append(full)
        for task, prediction in found.items():
            want = whole.heads.call_head(task, maps, image.shape[-2:])
            torch.testing.assert_close(prediction, want, rtol=1e-3, atol=1e-4)


def test_what_a_head_of_a_users_own_reads_stays() -> None:
    parts = parts_with("light")
    head = OwnHead(nn.Conv2d(32, 1, 1), parts.graph.outputs)
    groups = groups_of(Parts(parts.graph, {**parts.heads, "own": head}))
    assert not groups.removable[groups.numbers[parts.graph.nodes[-1].name]].any()
    assert "read by the head of own, which is not gatesearch's" in groups.fixed
    assert groups.removable[groups.numbers["conv1"]].all()


def test_weights_to_start_from_are_cut_too() -> None:
    parts = parts_with("fpn")
    groups = groups_of(parts)
    kept = random_kept(groups, seed=2)
    state = Encoder(parts.graph).state_dict()
    stl = {f"encoders.{task}.{name}": x for task in parts.tasks for name, x in state.items()}
    stl |= {
        f"heads.{task}.{name}": x
        for task in parts.tasks
        for name, x in parts.head(task).state_dict().items()
    }
    narrow = narrowed_parts(Parts(parts.graph, parts.heads, 3, state, stl), groups, kept)
    encoder, rows = narrow.encoder("a"), groups.channels(kept)["conv1"]
    assert torch.equal(encoder.layer("conv1").conv.weight, state["layers.conv1.conv.weight"][rows])
    assert narrow.heads["a"].features == features_of(narrow.graph)
    MultiTaskNet(narrow)
