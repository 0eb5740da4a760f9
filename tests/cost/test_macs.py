"""Counts worked out by hand, and the counters' known traps."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gatesearch.cost import Cost, count_macs
from gatesearch.errors import UsageError


class Call(nn.Module):
    """A module made of one function, so that a test reads as the arithmetic it counts."""

    def __init__(self, function, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, image: Tensor):
        return self.function(self, image)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        # outputs 8 x 8 x 8, each 3 x 3 x 3
        (nn.Conv2d(3, 8, 3), (1, 3, 10, 10), 8 * 8 * 8 * 27),
        # stride 2, padding 1: 5 x 5 outputs; 4 groups: 8 / 4 input channels each
        (nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), (1, 8, 10, 10), 12 * 25 * 2 * 9),
        # dilation 2 reaches over 5 pixels: 6 x 6 outputs
        (nn.Conv2d(2, 4, 3, dilation=2), (1, 2, 10, 10), 4 * 36 * 2 * 9),
        (nn.Conv2d(2, 4, 4, padding="same"), (3, 2, 5, 7), 3 * 4 * 35 * 2 * 16),
        (nn.Conv1d(2, 4, 3), (1, 2, 10), 4 * 8 * 2 * 3),
        (nn.Linear(7, 5), (2, 3, 7), 6 * 7 * 5),
        (Call(lambda m, x: x.flatten(2) @ x.flatten(2).mT), (2, 3, 4, 5), 2 * 3 * 3 * 20),
        # a 3 x 3 mix of channels at each of 20 pixels
        (
            Call(lambda m, x: torch.einsum("ij,njhw->nihw", m.mix, x), mix=torch.eye(3)),
            (2, 3, 4, 5),
            2 * 3 * 3 * 20,
        ),
    ],
)
def test_count_by_hand(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    cost = count_macs(model, shape)
    assert cost.macs == macs
    assert cost.uncounted == {}
    assert cost.disagreements == ()


def test_attention_is_counted() -> None:
    # 20 tokens of 12: four projections 12 x 12, scores and weighted sum 20 x 20 x 12 each
    attend = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(module: nn.Module, image: Tensor) -> Tensor:
        tokens = image.flatten(2).mT
        return module.attend(tokens, tokens, tokens, need_weights=False)[0]

    cost = count_macs(Call(forward, attend=attend), (1, 12, 4, 5))
    assert cost.macs == 4 * 20 * 12 * 12 + 2 * 20 * 20 * 12


def test_thop_overcounts_a_transposed_convolution_and_is_shown() -> None:
    # every one of 5 x 5 inputs meets all 3 x 4 x 2 x 2 weights; thop charges each output instead
    cost = count_macs(nn.ConvTranspose2d(3, 4, 2, stride=2), (1, 3, 5, 5))
    assert cost.macs == 25 * 3 * 4 * 4
    assert cost.disagreements == (
        "thop counts 4,800 multiply-adds in convolution and linear modules, fvcore 1,200",
    )


def test_thop_misses_a_functional_convolution_and_is_shown() -> None:
    model = Call(lambda m, x: F.conv2d(x, m.kernel), kernel=torch.ones(4, 3, 1, 1))
    cost = count_macs(model, (1, 3, 5, 5))
    assert cost.macs == 25 * 3 * 4
    assert [line.split(",")[0] for line in cost.disagreements] == [
        "thop counts 0 multiply-adds in convolution and linear modules"
    ]
    assert count_macs(model, (1, 3, 5, 5), cross_check=False).disagreements == ()


def test_empty_containers_hide_nothing_from_thop() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential())
    assert count_macs(model, (1, 3, 5, 5)).disagreements == ()


def test_work_that_no_output_needs_is_shown() -> None:
    conv = nn.Conv2d(3, 4, 1)

    def forward(module: nn.Module, image: Tensor) -> Tensor:
        module.conv(image)
        return image + 1

    cost = count_macs(Call(forward, conv=conv), (1, 3, 5, 5))
    assert cost.macs == 0
    assert len(cost.disagreements) == 2


def test_unknown_operators_are_named_not_skipped() -> None:
    model = Call(lambda m, x: torch.fft.rfft2(x).real + F.relu(x[..., :3]))
    assert count_macs(model, (1, 3, 4, 4)).uncounted == {"fft_rfft2": 1}


def test_resnet50_is_the_published_figure() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        cost = count_macs(torchvision.models.resnet50(), (1, 3, 224, 224))
    assert 4.089e9 <= cost.macs <= 4.134e9
    assert cost.params == 25_557_032
    assert (cost.uncounted, cost.disagreements) == ({}, ())


def two_tasks(device: str = "cpu") -> nn.Module:
    """A 3 -> 4 backbone at full size, heads 4 -> 2 and 4 -> 1; outputs in a dict."""

    def forward(module: nn.Module, image: Tensor) -> dict[str, Tensor]:
        features = F.relu(module.norm(module.conv(image)))
        return {name: head(features) for name, head in module.heads.items()}

    with torch.device(device):
        return Call(
            forward,
            conv=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            heads=nn.ModuleDict({"a": nn.Conv2d(4, 2, 1), "b": nn.Conv2d(4, 1, 1)}),
        )


def test_backbone_is_all_but_the_heads() -> None:
    cost = count_macs(two_tasks(), (1, 3, 5, 5))
    assert cost.backbone_macs == 25 * 4 * 27
    assert cost.macs == 25 * 4 * 27 + 25 * 4 * 3
    assert cost.params == (4 * 27 + 4) + 8 + (8 + 2) + (4 + 1)


@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 9))
def test_count_grows_with_images_and_pixels_on_any_device(n: int, h: int, w: int) -> None:
    real = count_macs(two_tasks(), (n, 3, h, w))
    assert real == count_macs(two_tasks("meta"), (n, 3, h, w))
    assert real.macs == n * h * w * count_macs(two_tasks(), (1, 3, 1, 1)).macs


def test_figures_shown_are_two_flops_a_multiply_add() -> None:
    cost = Cost(macs=3_000_000_000, backbone_macs=500_000_000, params=2_500_000)
    assert (cost.gflops, cost.backbone_gflops, cost.params_m) == pytest.approx((6.0, 1.0, 2.5))


def test_model_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    model = two_tasks().train()
    model.heads["a"].eval()
    model.loose = torch.ones(3)  # neither parameter nor buffer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_macs(model, (1, 3, 6, 6))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.heads["a"].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.loose.device.type == "cpu"
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert capfd.readouterr() == ("", "")


def test_a_forward_pass_that_needs_values_is_refused() -> None:
    def forward(module: nn.Module, image: Tensor) -> Tensor:
        return image if image.sum() > 0 else -image

    with pytest.raises(UsageError, match="must run on shapes alone"):
        count_macs(Call(forward), (1, 3, 4, 4))


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (3, (1, 3, 4, 4), "takes a torch module, found int"),
        (nn.ReLU(), "a", r"takes the shape of a batch of images, as \(1, 3, 480, 640\), found 'a'"),
        (nn.ReLU(), None, "found None"),
        (nn.ReLU(), (1, 3, 4.0, 4), r"found \(1, 3, 4.0, 4\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(model, shape, said) -> None:
    with pytest.raises(UsageError, match=said):
        count_macs(model, shape)


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Conv2d cannot be counted on input \(1, 5, 4, 4\)"):
        count_macs(nn.Conv2d(3, 4, 3), (1, 5, 4, 4))
