"""Backbones of timm, torchvision and users compute what their modules do, by the same names."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph, execute
from gatesearch.models.imported import (
    Imported,
    import_backbone,
    import_module,
    register_backbone,
    sources,
)
from gatesearch.models.nodes import INPUT, Add, Conv, Node, Route

timm = pytest.importorskip("timm")

SIZE = (64, 64)
TIMM = (
    "resnext50_32x4d",
    "regnety_002",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "convnext_atto",
    "convnextv2_atto",
    "densenet121",
    "ghostnet_100",
    "repvgg_a0",
)


def moved(module: nn.Module) -> nn.Module:
    """Move statistics, scales and shifts away from 0 and 1, so that no mistake in them hides."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1:
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
        if name.endswith("running_mean"):
            tensor.sub_(0.1)
    return module.eval()


def features(imported: Imported, module: nn.Module, image: Tensor) -> list[Tensor]:
    """Features of the graph with the module's weights."""
    encoder = Encoder(imported.graph).eval()
    encoder.load_state_dict(imported.encoder_state(module.state_dict()))
    nodes, keep = imported.graph.nodes, imported.graph.features
    values = execute(nodes, {INPUT: image}, encoder.apply_node, keep=keep)
    return [values[name] for name in keep]


def check(imported: Imported, expected: Callable[[nn.Module, Tensor], list[Tensor]]) -> None:
    """Compare the graph's features with those that a module returns."""
    module = moved(imported.build())
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = expected(module, image)
        ours = features(imported, module, image)
        ours = ours[-len(theirs) :]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.slow("builds networks")
@pytest.mark.parametrize("name", TIMM)
def test_features_are_those_of_timm(name: str) -> None:
    imported = import_backbone(f"timm:{name}", SIZE)
    returned = import_module(name, imported.build, SIZE, as_returned=True)
    check(returned, lambda module, image: module(image))
    assert imported.graph.nodes[-1] == returned.graph.nodes[-1]
    assert imported.graph.stride == imported.graph.strides[-1] == 32
    assert [node.stage for node in imported.graph] == sorted(node.stage for node in imported.graph)
    assert imported.graph.nodes[-1].ends_block


@pytest.mark.slow("builds networks")
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "convnext_tiny"])
def test_features_are_those_of_torchvision_before_the_classifier(name: str) -> None:
    def before_pooling(module: nn.Module, image: Tensor) -> list[Tensor]:
        pooled: list[Tensor] = []
        module.avgpool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
        module(image)
        return pooled

    imported = import_backbone(f"torchvision:{name}", SIZE)
    check(imported, before_pooling)
    assert imported.graph.strides == (4, 8, 16, 32)


def renamed(graph: Graph, names: dict[str, str]) -> tuple[Node, ...]:
    nodes = []
    for node in graph:
        node = replace(node, name=names[node.name], source=names.get(node.source, INPUT))
        nodes.append(replace(node, skip=names[node.skip]) if isinstance(node, Add) else node)
    return tuple(nodes)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_the_graphs_written_by_hand(name: str, output_stride: int) -> None:
    ours = BACKBONES[name](output_stride=output_stride)
    for source in ("torchvision", "timm"):
        theirs = import_backbone(f"{source}:{name}", SIZE, output_stride).graph
        assert (theirs.nodes, theirs.stride) == (ours.nodes, ours.stride)
        assert theirs.strides == tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_efficientnet_lite_is_the_graph_written_by_hand(output_stride: int) -> None:
    ours = BACKBONES["efficientnet_lite0"](output_stride=output_stride)
    theirs = import_backbone("timm:efficientnet_lite0", SIZE, output_stride).graph
    names = {a.name: b.name for a, b in zip(theirs, ours, strict=True)}
    # The first block, of stride 2, belongs to the stem.
    stages = [replace(node, stage=max(0, node.stage - 1)) for node in ours]
    assert renamed(theirs, names) == tuple(stages)


def test_weights_start_as_the_module_does_and_take_either_naming() -> None:
    imported = import_backbone("timm:convnext_atto", SIZE)
    one, other = imported.initial(3), imported.initial(3)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(
        one["layers.stem_0.conv.weight"], imported.initial(4)["layers.stem_0.conv.weight"]
    )
    whole = timm.create_model("convnext_atto").state_dict()
    state = imported.encoder_state(whole)
    assert torch.equal(state["layers.stem_0.conv.weight"], whole["stem.0.weight"])
    del whole["stem.0.weight"]
    with pytest.raises(UsageError, match=r"timm:convnext_atto must have an entry stem_0\.weight"):
        imported.encoder_state(whole)


def test_an_epsilon_of_its_own_is_made_up_for_by_the_weight() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.1))

    imported = import_module("own", build, (8, 8))
    assert isinstance(imported.graph.nodes[0], Conv)
    check(imported, lambda module, image: [module(image)])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("timm:resnet19", r"unknown network of timm 'resnet19'; did you mean 'resnet1\d"),
        ("torchvision:resnet19", "unknown network of torchvision 'resnet19'; did you mean 'resnet"),
        ("timn:resnet18", "unknown backbone 'timn:resnet18'; did you mean 'timm:resnet18'"),
        ("torchvision:vit_b_16", "takes square images, found 64x32; take the network of timm"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        import_backbone(name, (64, 32))


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'gatesearch\[timm\]'"):
        import_backbone("timm:resnet26", SIZE)


def test_strides_that_a_network_cannot_have_are_refused_with_those_it_can() -> None:
    with pytest.raises(
        UsageError, match=r"output_stride must be 32 for torchvision:convnext_tiny, found 16"
    ):
        import_backbone("torchvision:convnext_tiny", SIZE, 16)
    with pytest.raises(UsageError, match=r"must be 1 or 2 or 4 or 8 or 16 or 32 .* found 64"):
        import_backbone("timm:efficientnet_lite0", SIZE, 64)


def test_timm_dilates_what_the_graph_cannot() -> None:
    imported = import_backbone("timm:resnet18d", SIZE, 8)
    assert imported.graph.stride == imported.graph.strides[-1] == 8
    check(imported, lambda module, image: module(image)[-1:])


class Pyramid(nn.Module):
    """Two maps, from parts of channels that are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.body = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        batch, _, height, width = x.shape
        x = x.view(batch, 2, 4, height, width).transpose(1, 2).reshape(batch, 8, height, width)
        left, _ = x.chunk(2, 1)
        return {"fine": x, "coarse": self.norm(self.body(left)).relu()}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "REGISTERED", {})
    register_backbone("pyramid", Pyramid)


@pytest.mark.usefixtures("registered")
def test_a_module_of_a_user_gives_its_maps() -> None:
    imported = import_backbone("pyramid", SIZE)
    check(imported, lambda module, image: list(module(image).values()))
    shuffle = imported.graph.nodes[1]
    assert isinstance(shuffle, Route)
    assert [channel for _, channel in shuffle.routes] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert imported.graph.features == ("route", "body")
    assert import_backbone("pyramid", SIZE) is imported


@pytest.mark.usefixtures("registered")
def test_names_of_others_are_refused() -> None:
    for name in ("resnet18", "pyramid"):
        with pytest.raises(UsageError, match=f"must differ in their names, found '{name}' again"):
            register_backbone(name, nn.Identity)
