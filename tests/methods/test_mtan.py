"""Multi-task attention: what masks let through, and the widths that follow the backbone."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from gatesearch.cost import count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import build_model
from gatesearch.methods.mtan import AttentionNet
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec
from gatesearch.study import Study, load_study
from tests.methods.toys import parts, random_image, scattered


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("scenes", ["model.width=0.05", "model.head_channels=4"])


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (17, 5), (1, 1)])
@torch.no_grad()
def test_masks_let_through_what_leaves_a_stage(study: Study, size: tuple[int, int]) -> None:
    # Masks of 1 (a sigmoid's upper end) leave the plain shared encoder, of 0 nothing of it.
    image = random_image()[:, :, : size[0], : size[1]]
    model = scattered(build_model(study, "mtan")).eval()
    mtl = build_model(study, "mtl").eval()
    mtl.encoder.load_state_dict(model.encoder.state_dict())
    mtl.heads.load_state_dict(model.heads.state_dict())
    for task in model.masks:
        for mask in model.masks[task]:
            norm = mask[1].bn
            norm.weight.zero_()
            norm.bias.fill_(100.0)
    plain = mtl(image)
    for task, ours in model(image).items():
        torch.testing.assert_close(ours, plain[task], rtol=1e-5, atol=1e-6)
    model.masks["depth"][-1][1].bn.bias.fill_(-200.0)
    closed = model(image)
    assert closed["depth"].flatten(2).std(2, correction=0).max() < 1e-5
    torch.testing.assert_close(closed["edges"], plain["edges"], rtol=1e-5, atol=1e-6)


def test_widths_follow_the_stages(study: Study) -> None:
    model = build_model(study, "mtan")
    for block, (before, after) in zip(model.refine, pairwise([3, 6, 13, 26]), strict=True):
        assert block.skip.conv.weight.shape[:2] == (after, before)
    assert model.halves == [True, False, False, False]  # output stride 8: stages 3, 4 are dilated


@pytest.mark.parametrize(("reduction", "inner"), [(1, 26), (4, 6), (100, 1)])
def test_the_reduction_sets_the_channels_inside_a_mask(reduction: int, inner: int) -> None:
    model = AttentionNet(parts(), reduction=reduction)
    assert model.masks["a"][-1][0].conv.weight.shape[0] == inner


@pytest.mark.slow("many networks")
def test_multiply_adds_at_both_reductions_by_hand() -> None:
    graph = BACKBONES["resnet18"](output_stride=8)
    channels = {"semseg": 13, "depth": 1, "normals": 3}
    heads = {t: HeadSpec("deeplabv3", graph.outputs, 256, n) for t, n in channels.items()}

    def macs(build: Callable[[Parts], nn.Module]) -> int:
        with torch.device("meta"):
            network = build(Parts(graph, heads))
        return count_macs(network, (1, 3, 96, 128), cross_check=False).macs

    plain = macs(MultiTaskNet)
    stages = ((64, 24 * 32), (128, 12 * 16), (256, 12 * 16), (512, 12 * 16))  # channels, pixels
    for reduction, gmacs in ((1, 8.005), (4, 5.379)):
        added = 0
        for i, (width, pixels) in enumerate(stages):
            # A mask reads the stage and, but for the first, as many refined channels.
            read, inner = width * (2 if i else 1), width // reduction
            added += 3 * pixels * (read * inner + inner * width)
            if i + 1 < len(stages):
                out = stages[i + 1][0]
                inner = out // reduction
                branch = width * inner + 9 * inner * inner + inner * out
                added += 3 * pixels * (branch + width * out)
        counted = macs(partial(AttentionNet, reduction=reduction))
        assert counted == plain + added
        assert counted / 1e9 == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize("reduction", [1, 4])
def test_it_learns_at_either_reduction(reduction: int) -> None:
    model = AttentionNet(parts(), reduction=reduction).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    image, losses = random_image(), []
    target = torch.tensor([1.0, -1.0])[:, None, None, None]  # tells the two frames apart
    for _ in range(20):
        loss = sum((x - target).square().mean() for x in model(image).values())
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in model.masks.parameters())
    assert min(losses[-3:]) < 0.5 * losses[0]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "'one'"])
def test_a_reduction_that_is_no_number_from_1_is_refused(value: str) -> None:
    study = load_study("scenes", [f"mtan.reduction={value}"])
    with pytest.raises(UsageError, match="reduction"):
        build_model(study, "mtan")


def test_the_loss_of_one_task_leaves_the_masks_of_another_alone() -> None:
    model = AttentionNet(parts())
    model(random_image())["a"].square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("masks.a.") for name in moved)
    assert any(name.startswith("refine.") for name in moved)
    assert not any(name.startswith(("masks.b.", "heads.b.")) for name in moved)
