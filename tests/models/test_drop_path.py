"""Stochastic depth: drawn as timm and torchvision do, alike in all streams, gone when cut."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth

from gatesearch.cost import PatternCost, count_macs
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models.encoder import Encoder
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.imported import import_module
from gatesearch.models.nodes import INPUT, Activation, Add, Conv, DropPath, Scale
from gatesearch.pruning import extract
from tests.pruning.test_extract import gap, parts, put, scattered

timm = pytest.importorskip("timm")
P = 0.5


class Copied(nn.Module):
    """A class as other code copies it from timm."""

    def __init__(self, probability: float | None) -> None:
        super().__init__()
        self.drop_prob = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return x
        kept = 1 - self.drop_prob
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(kept).div_(kept)


Copied.__name__ = "DropPath"


class Residual(nn.Module):
    """Three convolutions, each of which images may skip."""

    def __init__(self, drop: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.drops = nn.ModuleList(drop() for _ in range(3))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        for branch, drop in zip(self.branches, self.drops, strict=True):
            y = branch(x)
            x = x + drop(y) + 0.1 * y
        return x


def torchvision_convnext() -> nn.Module:
    blocks = [CNBlockConfig(4, 8, 2), CNBlockConfig(8, None, 2)]
    return ConvNeXt(blocks, stochastic_depth_prob=P, num_classes=2).features


def torchvision_swin() -> nn.Module:
    return SwinTransformer(
        *([4, 4], 8, [2, 2], [2, 2], [4, 4]), stochastic_depth_prob=P, num_classes=2
    ).features


NETWORKS = {
    "timm ConvNeXt": lambda: (
        timm.create_model(
            "convnext_atto", depths=(1, 1, 2, 1), dims=(4, 4, 8, 8), drop_path_rate=P, num_classes=0
        ).stages
    ),
    "torchvision ConvNeXt": torchvision_convnext,
    "torchvision Swin": torchvision_swin,
    "torchvision's module": partial(Residual, lambda: StochasticDepth(P, "row")),
    "a copy": partial(Residual, lambda: Copied(P)),
}


def stemmed(network: nn.Module) -> nn.Module:
    """timm's stages read the four channels of a stem."""
    first = next(p for p in network.parameters() if p.dim() == 4)
    return network if first.shape[1] == 3 else nn.Sequential(nn.Conv2d(3, 4, 4, 4), network)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_drops_as_the_module_does(name: str) -> None:
    imported = import_module("own", lambda: stemmed(NETWORKS[name]()), (32, 32))
    module, encoder = imported.build(), Encoder(imported.graph)
    encoder.load_state_dict(imported.encoder_state(module.state_dict()))
    assert sum(isinstance(node, DropPath) for node in imported.graph) >= 3
    image = torch.randn(6, 3, 32, 32)
    for training in (True, False):
        outputs = []
        for network in (module, encoder):
            torch.manual_seed(5)
            outputs.append(network.train(training)(image))
        expected, found = outputs
        if found.shape != expected.shape:  # Swin of torchvision has channels last
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "drop",
    [nn.Identity, lambda: Copied(0.0), lambda: Copied(None), lambda: StochasticDepth(0, "row")],
)
def test_what_never_drops_is_no_node(drop: Callable[[], nn.Module]) -> None:
    graph = import_module("own", lambda: Residual(drop), (8, 8)).graph
    assert not any(isinstance(node, DropPath) for node in graph)


def graph_of(probability: float | None) -> Graph:
    """Two residual blocks; the layer scale of one lies behind what is dropped."""

    def dropped(name: str, source: str) -> tuple[DropPath, ...]:
        return () if probability is None else (DropPath(name, source, 4, probability),)

    def end(name: str, otherwise: str) -> str:
        return otherwise if probability is None else name

    bare = {"norm": False, "relu": False, "bias": True}
    return Graph(
        (
            Conv("stem", INPUT, 3, 4, 3),
            Conv("one", "stem", 4, 4, 3, **bare),
            Activation("gelu", "one", 4, "gelu"),
            *dropped("drop1", "gelu"),
            Add("sum1", end("drop1", "gelu"), "stem", 4, relu=False),
            Conv("two", "sum1", 4, 4, 3, **bare),
            *dropped("drop2", "two"),
            Scale("scale", end("drop2", "two"), 4),
            *dropped("drop3", "scale"),
            Add("sum2", end("drop3", "scale"), "sum1", 4, relu=False),
        ),
        stride=1,
    )


def test_gates_weights_and_costs_are_those_without_it() -> None:
    with_it, without = (scattered(GatedSupernet(parts(graph_of(p)))) for p in (P, None))
    assert with_it.gated == without.gated == ("stem", "gelu", "scale")
    assert with_it.mixed == without.mixed
    without.load_state_dict(with_it.state_dict())
    for seed in range(5):
        put(with_it, np.random.default_rng(seed))
        without.load_state_dict(with_it.state_dict())
        compact = extract(with_it)
        assert compact.description == extract(without).description
        assert gap(compact, with_it, torch.randn(2, 3, 8, 8)) < 1e-5
        cost, shape = PatternCost.of(with_it, (1, 3, 8, 8)), (1, 3, 8, 8)
        counted = count_macs(compact, shape, cross_check=True)
        assert not counted.uncounted
        assert not counted.disagreements
        assert float(cost.macs(with_it.hard_gates())) == counted.macs
        assert float(cost.params(with_it.hard_gates())) == counted.params


@pytest.mark.parametrize("estimator", ["ste", "sigmoid"])
def test_all_streams_drop_the_same_images(estimator: str) -> None:
    """Streams of equal weights stay equal in training too, as a multi-task network's one stream."""
    model = GatedSupernet(parts(graph_of(P)), estimator=estimator)
    plain = MultiTaskNet(parts(graph_of(P)))
    model.clone_streams(scattered(plain).state_dict())
    image = torch.randn(8, 3, 8, 8)
    outputs = []
    for network in (plain, model):
        torch.manual_seed(3)
        outputs.append(network.train()(image))
    for task, expected in outputs[0].items():
        torch.testing.assert_close(outputs[1][task], expected, rtol=1e-4, atol=1e-5)
    again = model(image)
    assert any(not torch.allclose(again[t], outputs[1][t], atol=1e-3) for t in ("a", "b"))


def test_every_image_has_a_draw_of_its_own_and_the_mean_stays() -> None:
    node = DropPath("node", "x", 3, 0.25)
    torch.manual_seed(0)
    y = node.run([torch.ones(4000, 3, 2)], node.build())
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    values, counts = y[:, 0, 0].unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75]))
    assert counts[0] == pytest.approx(1000, abs=150)
    always = DropPath("node", "x", 3, 1.0)
    assert not always.run([torch.ones(2, 3, 2)], always.build()).any()
