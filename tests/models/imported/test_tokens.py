"""Imported transformers and modern convolutional networks compute what their modules do."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gatesearch.cost import PatternCost, count_macs
from gatesearch.cost.sizes import node_sizes
from gatesearch.errors import UsageError
from gatesearch.models.encoder import Encoder
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph, execute
from gatesearch.models.imported.imported import Imported, import_module
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.models.nodes import INPUT, Attention
from gatesearch.pruning import extract
from tests.pruning import test_extract as pruning
from tests.pruning.test_extract import put

timm = pytest.importorskip("timm")


class Features(nn.Module):
    """A network of timm or torchvision up to its features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        if hasattr(self.network, "forward_features"):
            return self.network.forward_features(image)
        return self.network(image)


def of_timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: Features(timm.create_model(name, **options))


def of_torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    from torchvision import models

    return lambda: Features(models.get_model(name, weights=None, **options))


@dataclass(frozen=True)
class Case:
    """A network and the side of its images, the smallest at which all its parts are used."""

    side: int
    build: Callable[[], nn.Module]


CASES = {
    "vit_tiny_patch16_224": Case(32, of_timm("vit_tiny_patch16_224", img_size=32)),
    "deit_tiny_patch16_224": Case(32, of_timm("deit_tiny_patch16_224", img_size=32)),
    "swin_tiny": Case(64, of_timm("swin_tiny_patch4_window7_224", img_size=64)),
    "pvt_v2_b0": Case(64, of_timm("pvt_v2_b0")),
    "convnext_atto": Case(32, of_timm("convnext_atto")),
    "convnextv2_atto": Case(32, of_timm("convnextv2_atto")),
    "torchvision vit_b_16": Case(32, of_torchvision("vit_b_16", image_size=32)),
    "torchvision swin_t": Case(64, of_torchvision("swin_t")),
    "torchvision convnext_tiny": Case(32, of_torchvision("convnext_tiny")),
}


def scattered(module: nn.Module) -> nn.Module:
    """Give weights that start as constants, as layer scales and norms, values of their own."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if (parameter == parameter.flatten()[0]).all() or parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, 0.5, 0.3)
    return module.eval()


def encoder_of(imported: Imported, module: nn.Module) -> Encoder:
    encoder = Encoder(imported.graph).eval()
    encoder.load_state_dict(imported.encoder_state(module.state_dict()))
    return encoder


def formula(graph: Graph, side: int) -> int:
    sizes = node_sizes(graph, (side, side))
    return sum(node.outputs * node.macs_per_channel(sizes) for node in graph)


@torch.no_grad()
def gap(encoder: Encoder, module: nn.Module, image: Tensor) -> float:
    """Largest difference over the largest value; tokens and maps may end in channels."""
    ours, theirs = encoder(image), module(image)
    if ours.dim() > theirs.dim():
        ours = ours.flatten(theirs.dim() - 1)
    if ours.shape != theirs.shape:
        ours = ours.movedim(1, -1)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow("builds networks of published sizes")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_published_networks_compute_and_cost_the_same(case: Case) -> None:
    module = scattered(case.build())
    imported = import_module("network", lambda: module, (case.side, case.side))
    encoder = encoder_of(imported, module)
    image = torch.randn(2, 3, case.side, case.side, generator=torch.Generator().manual_seed(0))
    assert gap(encoder, module, image) < 1e-5
    shape = (1, 3, case.side, case.side)
    counted = count_macs(encoder, shape, cross_check=False)
    assert not counted.uncounted
    assert formula(imported.graph, case.side) == counted.macs
    assert counted.macs == count_macs(module, shape, cross_check=False).macs


@pytest.mark.slow("builds supernets of published networks")
@pytest.mark.parametrize(
    ("name", "granularity"),
    [("convnextv2_atto", "conv"), ("pvt_v2_b0", "block")],
)
def test_published_networks_are_priced_and_extracted(name: str, granularity: str) -> None:
    side = CASES[name].side
    graph = import_module(name, CASES[name].build, (side, side)).graph
    heads = {task: HeadSpec("pooled", graph.outputs, 4, 2) for task in ("a", "b")}
    model = GatedSupernet(Parts(graph, heads), granularity=granularity)
    put(pruning.scattered(model), np.random.default_rng(0))
    compact, cost = extract(model), PatternCost.of(model, (1, 3, side, side))
    counted = count_macs(compact, (1, 3, side, side), cross_check=False)
    assert float(cost.macs(model.hard_gates())) == counted.macs
    assert float(cost.params(model.hard_gates())) == counted.params
    image = torch.randn(2, 3, side, side).double()
    assert pruning.gap(compact.double(), model.double(), image) < 1e-5


def test_vit_b_16_costs_what_is_published() -> None:
    """17.56 G multiply-adds by torchvision; 17.58 G by fvcore, which counts 18.9 M of norms."""
    build = of_torchvision("vit_b_16")
    with torch.device("meta"):
        imported = import_module("network", build, (224, 224))
    tokens, width, layers = 197, 768, 12
    patches = 196 * width * 3 * 16**2
    linear = layers * tokens * (4 + 8) * width**2 + width * 1000
    attention = layers * 2 * tokens**2 * width
    assert formula(imported.graph, 224) == patches + linear + attention == 17_563_828_224
    norms = (2 * layers + 1) * 5 * tokens * width
    assert round((patches + linear + attention + norms) / 1e9, 2) == 17.58


class Attending(nn.Module):
    """Tokens of 8 channels on a map of 2x2, and a way to attend."""

    def __init__(self, attend: Callable[..., Tensor], heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.qkv = nn.Linear(8, 24)
        self.table = nn.Parameter(torch.randn(4, heads))
        self.by_head = nn.Parameter(torch.randn(heads, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("index", (torch.arange(4)[:, None] - torch.arange(4)) % 4)
        self.heads = heads
        self.cross = nn.MultiheadAttention(8, heads, batch_first=True)
        self.attend = attend

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        qkv = self.qkv(x).reshape(len(x), 4, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.attend(self, x, *qkv.unbind(0))


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def scaled_scores(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(((q @ k.transpose(-2, -1)) / 2.0).softmax(-1) @ v)


def biased_by_row(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = m.table[m.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
    return joined(((q * 0.5) @ k.mT + bias.unsqueeze(0)).softmax(-1) @ v)


def biased_by_head(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = m.by_head[:, m.index]
    return joined(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3))


def across(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found, _ = m.cross(x, x[:, 1:], x[:, :3], need_weights=False)
    return found


def with_token(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return m.qkv(torch.cat([m.token.expand(len(x), -1, -1), x], 1))


@pytest.mark.parametrize(
    "attend", [scaled_scores, biased_by_row, biased_by_head, across, with_token]
)
def test_ways_to_attend_are_recognised(attend: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    module = Attending(attend)
    imported = import_module("network", lambda: Attending(attend), (8, 8))
    encoder = encoder_of(imported, module)
    assert gap(encoder, module, torch.randn(2, 3, 8, 8)) < 1e-5
    count = sum(isinstance(node, Attention) for node in imported.graph)
    assert count == (attend is not with_token)
    counted = count_macs(encoder, (1, 3, 8, 8), cross_check=False)
    assert formula(imported.graph, 8) == counted.macs


def masked(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined((q @ k.mT + torch.ones(4, 4).triu(1) * -9.0).softmax(-1) @ v)


def causal(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def over_channels(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(v @ (q.mT @ k).softmax(-1))


def token_behind(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([x, m.token.expand(len(x), -1, -1)], 1)


def computed_bias(m: Attending, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = m.table.tanh()[m.index].permute(2, 0, 1)
    return joined((q @ k.mT + bias).softmax(-1) @ v)


@pytest.mark.parametrize(
    ("attend", "fault"),
    [
        (masked, "a mask without one"),
        (causal, "is causal"),
        (over_channels, "attention is not over positions"),
        (token_behind, "with parameters in front"),
        (computed_bias, "otherwise than by reading a table"),
    ],
)
def test_other_ways_are_refused_with_their_line(attend: Callable[..., Tensor], fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as refused:
        import_module("network", lambda: Attending(attend), (8, 8))
    assert "test_tokens.py:" in str(refused.value)


def test_features_inside_are_those_of_each_stage() -> None:
    build = CASES["pvt_v2_b0"].build
    imported = import_module("network", build, (64, 64))
    assert imported.graph.strides == (4, 8, 16, 32)
    encoder, image = Encoder(imported.graph).eval(), torch.zeros(1, 3, 64, 64)
    values = execute(
        imported.graph.nodes, {INPUT: image}, encoder.apply_node, keep=imported.graph.features
    )
    counts = [values[name].flatten(2).shape[-1] for name in imported.graph.features]
    assert counts == [16**2, 8**2, 4**2, 2**2]
