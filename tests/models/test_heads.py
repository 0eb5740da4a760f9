"""Heads: shapes, and some of them by hand."""

import pytest
import torch
from torch import Tensor, nn

from gatesearch.cost.sizes import node_sizes
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.heads import HEADS, PER_IMAGE, Feature, Heads, PooledHead, reads_stages
from gatesearch.models.heads.dpt import reassemble
from gatesearch.models.model_factory import features_of

PYRAMID = (Feature(6, 4), Feature(5, 8), Feature(3, 16), Feature(2, 32))


def maps_of(features: tuple[Feature, ...], size: tuple[int, int], frames: int = 2) -> list[Tensor]:
    """Maps as an encoder gives them, whose strided convolutions round up."""
    torch.manual_seed(0)
    return [
        torch.randn(frames, x.channels, *(-(-side // x.stride) for side in size)) for x in features
    ]


def test_a_pooled_head_is_a_linear_map_of_the_mean_over_pixels() -> None:
    head = PooledHead(2, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[3.0, -1.0]]))
        head.linear.bias.fill_(0.5)
    # means 2.5 and 2 of four pixels
    features = torch.tensor([[[1.0, 2], [3, 4]], [[0, 0], [0, 8]]])[None]
    assert head(features).tolist() == [[3 * 2.5 - 2 + 0.5]]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("size", [(32, 40), (48, 16), (33, 50)])
def test_every_head_predicts_in_float32_whatever_the_size(kind, size) -> None:
    build = HEADS[kind]
    read = PYRAMID if reads_stages(build) else 2
    heads = Heads({"x": build(read, 4, 3).eval()})
    maps = maps_of(PYRAMID, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = heads.call_head("x", maps, size)
        if not reads_stages(build):  # it may be given its map alone
            assert torch.equal(heads.call_head("x", maps[-1], size), prediction)
    assert prediction.shape == (2, 3, *(() if kind in PER_IMAGE else size))
    assert prediction.dtype == torch.float32


@pytest.mark.parametrize("kind", [kind for kind in HEADS if reads_stages(HEADS[kind])])
@pytest.mark.parametrize(
    "strides", [(16, 16, 16, 16), (14, 14, 14, 14), (4, 8, 8, 8), (2, 4, 8, 16, 32), (8,)]
)
def test_heads_of_several_stages_read_maps_of_any_strides(kind, strides) -> None:
    features = tuple(Feature(3, stride) for stride in strides)
    head = HEADS[kind](features, 4, 2)
    size = (28 * 4, 28 * 3)
    prediction = head(maps_of(features, size), size)
    assert prediction.shape == (2, 2, *size)
    prediction.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def constant(module: nn.Module) -> nn.Module:
    """Weights of 1 on the middle pixel of each kernel, no biases, norms that change nothing."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                middle = layer.kernel_size[0] // 2
                layer.weight.zero_()[:, :, middle, middle] = 1
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    return module.eval()


FLAT = [torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 4, 4), 2.0), torch.full((1, 1, 2, 2), 3.0)]
THREE = (Feature(1, 4), Feature(1, 8), Feature(1, 16))


def test_a_feature_pyramid_by_hand() -> None:
    """p = 3, 2 + 3, 1 + 5, from coarse to fine; their sum, as every weight is 1."""
    head = constant(HEADS["fpn"](THREE, 1, 1))
    prediction = head(FLAT, (32, 32))
    assert torch.equal(prediction, torch.full((1, 1, 32, 32), 3.0 + 5.0 + 6.0))


def test_a_pyramid_is_enlarged_by_the_nearest_pixel_and_fused_at_the_finest_size() -> None:
    features = (Feature(1, 1), Feature(1, 2))
    head = constant(HEADS["fpn"](features, 1, 1))
    coarse = torch.tensor([[0.0, 4.0]])[None, None]  # 1x2
    prediction = head([torch.zeros(1, 1, 2, 4), coarse], (2, 4))
    # p of the finest is (0, 0, 4, 4), that of the coarse one enlarged bilinearly (0, 1, 3, 4)
    assert prediction[0, 0].tolist() == [[0.0, 1.0, 7.0, 8.0]] * 2


def test_segformers_head_by_hand() -> None:
    """Each map is one value; the fused one adds them all up."""
    head = constant(HEADS["segformer"](THREE, 1, 1))
    assert torch.equal(head(FLAT, (32, 32)), torch.full((1, 1, 32, 32), 6.0))
    with torch.no_grad():  # the coarsest comes first in what is fused
        head.fuse.conv.weight[0, :, 0, 0] = torch.tensor([100.0, 10.0, 1.0])
    assert torch.equal(head(FLAT, (32, 32)), torch.full((1, 1, 32, 32), 321.0))


def test_dpts_head_by_hand() -> None:
    """A residual unit doubles x > 0: coarse 3 -> 6; 6 + 2·2 -> 20; 20 + 2·1 -> 44."""
    head = constant(HEADS["dpt"](THREE, 1, 1))
    assert torch.equal(head(FLAT, (32, 32)), torch.full((1, 1, 32, 32), 44.0))


@pytest.mark.parametrize(
    ("stride", "target", "size"),
    [(16, 4, 24), (16, 8, 12), (16, 16, 6), (16, 32, 3), (8, 32, 2), (14, 4, 24)],
)
def test_dpt_reassembles_a_map_at_its_stride(stride: int, target: int, size: int) -> None:
    layers = reassemble(Feature(5, stride), 4, stride=target)
    assert layers(torch.randn(1, 5, 6, 6)).shape == (1, 4, size, size)


def test_dpts_enlargement_is_a_transposed_convolution() -> None:
    torch.manual_seed(3)
    project, conv, shuffle = reassemble(Feature(2, 16), 3, stride=4)
    transposed = nn.ConvTranspose2d(3, 3, 4, stride=4, bias=False)
    with torch.no_grad():
        transposed.weight.copy_(conv.weight.view(3, 4, 4, 3).permute(3, 0, 1, 2))
        conv.bias.zero_()
    x = project(torch.randn(2, 2, 3, 5))
    torch.testing.assert_close(shuffle(conv(x)), transposed(x))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_the_strides_that_a_graph_states(name: str, output_stride: int) -> None:
    graph = BACKBONES[name](output_stride=output_stride, width=0.05)
    sizes = node_sizes(graph, (64, 128))
    for feature, node in zip(features_of(graph), graph.features, strict=True):
        if name != "deeplab_resnet34":  # its pooling gives one pixel more
            assert sizes[node] == (64 // feature.stride, 128 // feature.stride)
        assert feature.channels == graph.channels(node)
    assert graph.strides[-1] == graph.stride
    assert graph.features[-1] == graph.nodes[-1].name
    assert graph.scaled(0.5).features == graph.features
