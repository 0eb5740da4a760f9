"""Sluice networks: mixing and penalty by hand, and what its options do."""

import pytest
import torch

from gatesearch.errors import UsageError
from gatesearch.methods import NetworkSpec, TrainingRequest, build_model, check_study
from gatesearch.methods.sluice import SluiceNet, mixed_channels, mixed_subspaces, shrunk
from gatesearch.models.backbones import BACKBONES
from gatesearch.study import load_study
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from tests.methods.toys import HEADS, assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import tiny


def pixel(*channels: float) -> torch.Tensor:
    """Features (1, C, 1, 1)."""
    return torch.tensor(channels).view(1, -1, 1, 1)


def test_subspaces_of_two_tasks_by_hand() -> None:
    # to (task, subspace), from (task, subspace); rows are told apart by their tens.
    alpha = torch.tensor(
        [[10.0, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42, 43]]
    ).view(2, 2, 2, 2)
    a, b = mixed_subspaces([pixel(1.0, 2), pixel(3.0, 4)], alpha)
    # subspaces of one channel: x = (1, 2, 3, 4)
    assert a.flatten().tolist() == [10 + 22 + 36 + 52, 20 + 42 + 66 + 92]
    assert b.flatten().tolist() == [30 + 62 + 96 + 132, 40 + 82 + 126 + 172]


def test_an_odd_channel_is_mixed_with_first_subspaces_alone() -> None:
    alpha = torch.tensor([[1.0, 10, 100, 1000], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    a, b = mixed_subspaces([pixel(1.0, 2, 3), pixel(4.0, 5, 6)], alpha.view(2, 2, 2, 2))
    # first subspace: channels 0, 1; second: channel 2, which meets channel 0
    assert a.flatten().tolist() == [1 + 30 + 400 + 6000, 2 + 500, 3]
    assert b.flatten().tolist() == [4, 5, 6]
    (only,) = mixed_subspaces([pixel(7.0)], torch.tensor([2.0, 9, 9, 9]).view(1, 2, 1, 2))
    assert only.item() == 14


def test_stages_are_averaged_and_filled_up_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    # windows that the border cuts are averaged over what they hold
    assert shrunk(x, 2)[0, 0].tolist() == [[3.0, 4.5], [7.5, 9.0]]
    assert torch.equal(shrunk(x, 1), x)
    features = [pixel(1.0), pixel(2.0, 3), pixel(9.0, 9, 9, 9), pixel(4.0, 5, 6)]
    mixed = mixed_channels(features, torch.tensor([1.0, 10, 100, 1000]))
    assert mixed.flatten().tolist() == [1 + 20 + 900 + 4000, 30 + 900 + 5000, 900 + 6000]


@pytest.mark.parametrize("channels", [4, 3, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_the_mix_are_those_of_its_sum(channels: int, layout) -> None:
    torch.manual_seed(0)
    streams = [
        torch.randn(2, channels, 2, 3, dtype=torch.float64).contiguous(memory_format=layout)
        for _ in range(2)
    ]
    alpha = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    inputs = (alpha, *(x.requires_grad_() for x in streams))
    mixed = mixed_subspaces(streams, alpha)
    assert all(y.is_contiguous(memory_format=layout) for y in mixed)
    with torch.no_grad():
        for y, plain in zip(mixed, mixed_subspaces(streams, alpha), strict=True):
            assert torch.equal(y, plain)
    assert torch.autograd.gradcheck(lambda a, *xs: mixed_subspaces(xs, a), inputs)


def test_the_penalty_by_hand() -> None:
    model = SluiceNet(parts())
    with torch.no_grad():
        for encoder in model.encoders.values():
            for layer in encoder.layers.values():
                layer.conv.weight.zero_()
        # layer1 has 3 channels: filters 0 and 1 are the first subspace, filter 2 the second
        weight = model.encoders["a"].layer("layer1.1.conv2").conv.weight
        weight[0, 0, 0, :2] = torch.tensor([1.0, 2.0])
        weight[1, 1, 1, 1] = 3.0
        weight[2, 0, 0, :2] = torch.tensor([1.0, -1.0])
        weight[2, 1, 1, 1] = 0.5
    # dot products 1 - 2 = -1 and 3 x 0.5 = 1.5: 1 + 2.25
    assert model.overlap().item() == pytest.approx(3.25)
    model.overlap().backward()
    # d/dw_0 = 2 (w_0 . w_2) w_2
    assert weight.grad[0, 0, 0, :2].tolist() == pytest.approx([-2.0, 2.0])
    # the first convolution of a block is in no stage's output
    assert model.encoders["a"].layer("layer1.1.conv1").conv.weight.grad is None


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18", "deeplab_resnet34", "efficientnet_lite0"])
@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_unit_mixes_leave_separate_networks(backbone: str, size: tuple[int, int]) -> None:
    study = load_study(
        "scenes", [f"model.backbone={backbone}", "model.width=0.05", "model.head_channels=4"]
    )
    options = ["options.sluice.diagonal=1.0", "options.sluice.last=1.0"]
    stl = scattered(build_model(study, "stl")).eval()
    model = build_model(load_study("scenes", [
        f"model.backbone={backbone}", "model.width=0.05", "model.head_channels=4", *options
    ]), "sluice").eval()  # fmt: skip
    model.encoders.load_state_dict(stl.encoders.state_dict())
    model.heads.load_state_dict(stl.heads.state_dict())
    image = random_image()[:, :, : size[0], : size[1]]
    assert_same_outputs(model, stl, image)
    # With a β of 1 for the first stage too, its features are added to the first channels.
    task = next(iter(model.heads))
    model.beta[0, 0] = 1
    features, first = model.encoders[task](image), image
    for stage in (0, 1):
        first = model.encoders[task].forward_stage(first, stage)[1]
    first = shrunk(first, model.shrinks[0])
    together = features.clone()
    together[:, : first.shape[1]] += first
    expected = model.heads[task](together, size)
    torch.testing.assert_close(model(image)[task], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "shrinks"), [(32, [8, 4, 2, 1]), (8, [2, 1, 1, 1])])
def test_stages_shrink_to_the_last(stride: int, shrinks: list[int]) -> None:
    model = SluiceNet(parts(BACKBONES["resnet18"](output_stride=stride, width=0.05)))
    assert model.shrinks == shrinks


def test_mixes_begin_near_the_own_features() -> None:
    model = SluiceNet(parts(), diagonal=0.7, last=0.4)
    assert [tuple(alpha.shape) for alpha in model.alpha] == [(2, 2, 2, 2)] * 4
    matrix = model.alpha[0].detach().view(4, 4)
    expected = torch.full((4, 4), 0.1).fill_diagonal_(0.7)
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(model.beta.detach(), torch.tensor([[0.2, 0.2, 0.2, 0.4]] * 2))


def test_a_loss_reaches_all_encoders_and_mixes() -> None:
    model = SluiceNet(parts())
    model(random_image())["a"].square().mean().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name.split(".")[0] for name in still} == {"heads"}
    assert {name.split(".")[1] for name in still} == {"b"}
    a, b = (list(HEADS).index(task) for task in "ab")
    assert model.beta.grad[a].all()
    assert not model.beta.grad[b].any()
    assert not model.alpha[-1].grad[b].any()  # behind the last stage only the task's own rows


def test_the_penalty_is_weighted_by_the_option_or_the_trial(tmp_path, data) -> None:
    def hooks(*overrides: str, params: dict[str, float] | None = None):
        study = check_study(tiny(tmp_path, *overrides))
        context = open_context(study, data=data, stored=None, emit=lambda event: None)
        spec = NetworkSpec("sluice", 0, 0 if params else None, params or {})
        (phase,) = phases_of(TrainingRequest(spec, context, None, lambda event: None))
        module = phase.begin(None).module
        return phase.hooks(module), module

    told, module = hooks()
    image = random_image(16)
    overlap = module.overlap().item()
    assert overlap > 0
    assert told.penalty(image, module(image)).item() == pytest.approx(0.1 * overlap)
    assert told.observe(1) == {"overlap": pytest.approx(overlap)}
    told, module = hooks("options.sluice.orthogonality=2.0", params={"orthogonality": 0.5})
    assert told.penalty(image, module(image)).item() == pytest.approx(0.5 * module.overlap().item())
    assert hooks("options.sluice.orthogonality=0")[0].penalty is None


@pytest.mark.parametrize("bad", ["diagonal=1.5", "last=-0.1", "orthogonality=-1"])
def test_options_out_of_range_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=bad.partition("=")[0]):
        check_study(load_study("scenes", [f"options.sluice.{bad}"]))
