"""Cross-stitch networks: by hand, and their options."""

import pytest
import torch

from gatesearch.methods import build_model
from gatesearch.methods.cross_stitch import CrossStitchNet
from gatesearch.study import load_study
from tests.methods.toys import HEADS, parts, random_image, scattered


@torch.no_grad()
def test_a_stage_by_hand() -> None:
    # Unit stitches leave four separate networks.
    study, image = (
        load_study("scenes", ["model.width=0.05", "model.head_channels=4"]),
        random_image(),
    )
    model = scattered(build_model(study, "cross_stitch")).eval()
    stl = build_model(study, "stl").eval()
    stl.encoders.load_state_dict(model.encoders.state_dict())
    stl.heads.load_state_dict(model.heads.state_dict())
    for stitch in model.stitches:
        assert stitch[0, 0].unique().item() == pytest.approx(0.9)
        torch.testing.assert_close(stitch.sum(1), torch.ones(4, stitch.shape[2]))
        stitch.copy_(torch.eye(4)[:, :, None].expand_as(stitch))
    for task, ours in model(image).items():
        torch.testing.assert_close(ours, stl(image)[task], rtol=1e-5, atol=1e-6)
    # A row (1, 1, 0, 0) behind the last stage adds the second stream's features to the first's.
    model.stitches[-1][0, 1] = 1
    tasks = list(model.heads)
    features = [encoder(image) for encoder in model.encoders.values()]
    expected = model.heads[tasks[0]](features[0] + features[1], (64, 64))
    torch.testing.assert_close(model(image)[tasks[0]], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("diagonal", "rest"), [(0.9, 0.1), (1.0, 0.0), (0.5, 0.5)])
def test_stitches_begin_with_the_diagonal(diagonal: float, rest: float) -> None:
    model = CrossStitchNet(parts(), diagonal=diagonal)
    # One per stage behind the stem: (to, from, channel).
    assert [tuple(s.shape[:2]) for s in model.stitches] == [(2, 2)] * 4
    assert [s.shape[2] for s in model.stitches] == [3, 6, 13, 26]
    for stitch in model.stitches:
        expected = torch.tensor([[diagonal, rest], [rest, diagonal]])[..., None]
        torch.testing.assert_close(stitch.detach(), expected.expand_as(stitch))


def test_a_loss_reaches_all_encoders_and_stitches() -> None:
    model = CrossStitchNet(parts())
    model(random_image())["a"].square().mean().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name.split(".")[0] for name in still} == {"heads"}
    assert {name.split(".")[1] for name in still} == {"b"}
    # Of the last stitches only the row of the task itself is used.
    last = model.stitches[-1].grad
    assert last[list(HEADS).index("a")].any()
    assert not last[list(HEADS).index("b")].any()
