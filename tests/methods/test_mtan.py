"""Multi-task attention: what masks let through, and the widths that follow the backbone."""

from itertools import pairwise

import pytest
import torch

from gatesearch.methods import build_model
from gatesearch.methods.mtan import AttentionNet
from gatesearch.study import Study, load_study
from tests.methods.toys import parts, random_image, scattered


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("scenes", ["model.width=0.05", "model.head_channels=4"])


@torch.no_grad()
def test_masks_let_through_what_leaves_a_stage(study: Study) -> None:
    # Masks of 1 (a sigmoid's upper end) leave the plain shared encoder, of 0 nothing of it.
    image = random_image()
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
    assert closed["depth"].flatten(2).std(2).max() < 1e-5
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


def test_the_loss_of_one_task_leaves_the_masks_of_another_alone() -> None:
    model = AttentionNet(parts())
    model(random_image())["a"].square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("masks.a.") for name in moved)
    assert any(name.startswith("refine.") for name in moved)
    assert not any(name.startswith(("masks.b.", "heads.b.")) for name in moved)
