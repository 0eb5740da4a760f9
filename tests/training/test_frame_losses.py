"""Losses of each frame by itself, from which networks learn by rewards."""

import pytest
import torch

from gatesearch.training.forward import Forward
from tests.training.toys import (
    CPU,
    PartlyLabelled,
    Toy,
    same_state,
    toy_frames,
    toy_pack,
    toy_tasks,
    train,
)

NAMES = ("depth", "normals", "edges")  # of each labelled frame as many pixels have a label


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy"), *NAMES)


def test_their_mean_is_the_loss_of_the_batch(frames) -> None:
    forward = Forward(Toy(*NAMES).eval(), toy_tasks(*NAMES), CPU)
    batch = frames.batch(torch.arange(5))
    _, outputs = forward.predict(batch)
    by_frame = forward.frame_losses(outputs, batch)
    assert by_frame.shape == (5, 3)
    assert not by_frame.requires_grad
    torch.testing.assert_close(by_frame.mean(0), forward.current_losses(batch).detach())
    one = forward.current_losses(frames.batch(torch.tensor([3]))).detach()
    torch.testing.assert_close(by_frame[3], one)


def test_those_without_labels_are_no_numbers(frames) -> None:
    labelled = torch.ones(11, 3, dtype=torch.bool)
    labelled[1, 2] = labelled[0, 0] = False
    forward = Forward(Toy(*NAMES).eval(), toy_tasks(*NAMES), CPU)
    batch = PartlyLabelled(frames, labelled).batch(torch.arange(4))
    losses = forward.frame_losses(forward.predict(batch)[1], batch)
    assert torch.equal(losses.isnan(), ~labelled[:4])


def test_a_penalty_on_them_is_added_to_the_loss(frames) -> None:
    heard = []

    def trained(**hooks) -> Toy:
        model = Toy(*NAMES, dropout=0.0)
        train(model, frames, toy_tasks(*NAMES), **{k: hook(model) for k, hook in hooks.items()})
        return model

    def by_frame(model):
        def penalty(losses):
            heard.append(losses.shape)
            return 0.5 * model.gate.square().sum() + model.gate.sum()

        return penalty

    def plain(model):
        return lambda image, outputs: 0.5 * model.gate.square().sum() + model.gate.sum()

    one = trained(frame_penalty=by_frame)
    assert heard == [(4, 3)] * 4  # two epochs of two steps
    assert same_state(one, trained(penalty=plain))
    assert not same_state(one, trained())
