"""Without enough memory a batch is learned from in parts, and nothing else changes."""

import math

import pytest
import torch
from torch import nn

from gatesearch.study import AugmentSpec
from gatesearch.training import Checkpoints, PhaseCheckpoints, Preempted
from gatesearch.training.micro_batches import MicroBatches
from gatesearch.training.rng import random_states
from tests.training.toys import Toy, spec, toy_frames, toy_pack, toy_tasks, train, uniform

NAMES = ("depth", "normals")  # of each frame as many pixels have a label
PLAIN = AugmentSpec(flip=False)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy", train=17), *NAMES)


class _TightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fits):
        ctx.fits = fits
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.fits:
            raise torch.OutOfMemoryError("backward")
        return gradient, None


class Tight(Toy):
    """Runs out of memory above so many frames, after all else of the pass is done."""

    def __init__(self, most: int, *, passing: str = "forward", **options) -> None:
        super().__init__(*NAMES, **options)
        self.most, self.passing, self.seen = most, passing, []

    def forward(self, image):
        self.seen.append(len(image))
        fits = len(image) <= self.most
        if self.passing == "backward":
            # At the image, so that every parameter has its gradient by then.
            image = _TightGradient.apply(image.requires_grad_(), fits)
        outputs = super().forward(image)
        if self.passing == "forward" and not fits:
            raise torch.OutOfMemoryError("forward")
        return outputs


class TightWithoutNorm(Tight):
    def __init__(self, most: int, **options) -> None:
        super().__init__(most, dropout=0.0, **options)
        self.body[1] = nn.Identity()


def trained(frames, model, *, epochs=2, batch_size=8, augment=PLAIN, **options):
    return train(
        model, frames, toy_tasks(*NAMES), weighting=uniform(depth=1.0, normals=0.5),
        spec=spec(epochs=epochs, batch_size=batch_size, augment=augment, optimizer="sgd"),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("passing", ["forward", "backward"])
@pytest.mark.parametrize("most", [2, 3, 4, 5])
def test_the_effective_batch_stays(frames, passing, most) -> None:
    def penalty(model):
        return lambda image, outputs: 3 * (model.gate - 1).square().sum()

    whole, tight = TightWithoutNorm(100), TightWithoutNorm(most, passing=passing)
    expected = trained(frames, whole, penalty=penalty(whole))
    told = []
    found = trained(frames, tight, penalty=penalty(tight), tell=told.append)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tight.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    for name in ("loss.depth", "loss.normals", "lr"):
        assert found.curves[name] == pytest.approx(expected.curves[name], rel=1e-5)
    fits = 4 if most >= 4 else 2
    assert found.curves["micro_batch"] == [fits, fits]
    assert "micro_batch" not in expected.curves
    assert tight.seen == [8, 4] + ([2] * 4 if most < 4 else [4]) + [fits] * (8 // fits) * 3
    assert len(told) == (1 if most >= 4 else 2)
    assert f"batches of 8 frames are now learned from in {8 // fits} parts of {fits}," in told[-1]


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 4, 2]), (6, [6, 3, 2]), (5, [5, 3]), (3, [3]), (2, [2])]
)
def test_two_frames_are_the_least(frames, batch_size, sizes) -> None:
    model = Tight(0)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(torch.OutOfMemoryError, match="forward"):
        trained(frames, model, batch_size=batch_size)
    assert model.seen == sizes
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("passing", ["forward", "backward"])
def test_an_attempt_that_failed_leaves_no_trace(frames, passing) -> None:
    tasks = toy_tasks(*NAMES)
    batch = next(frames.in_order(8))

    def left_by(most: int, parts: int):
        model = Tight(most, passing=passing).train()  # with dropout and batch norm
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

        def learn(part, share):
            outputs = model(part["image"].float())
            losses = torch.stack([tasks[t].loss(outputs[t], part[t]) for t in tasks])
            (share * losses.sum()).backward()
            return losses.detach().double()

        torch.manual_seed(5)
        batches = MicroBatches(
            model, optimizer, device="cpu", any_rank=bool, tell=lambda message: None
        )
        values, parts = batches.run(batch, learn, parts=parts)
        assert parts == 4
        return [
            values,
            random_states("cpu")["torch"],
            *(p.grad for p in model.parameters()),
            *model.buffers(),
        ]

    for ours, theirs in zip(left_by(2, 1), left_by(2, 4), strict=True):
        assert torch.equal(ours, theirs)


def test_the_curve_begins_where_memory_ended(frames) -> None:
    class Later(Tight):
        def forward(self, image):
            self.most = 100 if len(self.seen) < 2 else 4  # two steps an epoch
            return super().forward(image)

    history = trained(frames, Later(0), epochs=3)
    first, *later = history.curves["micro_batch"]
    assert math.isnan(first)
    assert later == [4, 4]


def test_a_resumed_training_keeps_to_the_parts(frames, tmp_path) -> None:
    augmented = spec().augment
    whole = Tight(4)
    history = trained(frames, whole, augment=augmented)
    stopped, resumed = Tight(4), Tight(4)
    checkpoints = Checkpoints(tmp_path / "x", identity="x", stop=lambda: True)
    with pytest.raises(Preempted):
        trained(
            frames, stopped, augment=augmented, checkpoints=PhaseCheckpoints(checkpoints, "p", {})
        )
    found = checkpoints.newest()
    phase = PhaseCheckpoints(Checkpoints(tmp_path / "x", identity="x"), "p", {}, found)
    again = trained(frames, resumed, augment=augmented, checkpoints=phase)
    assert resumed.seen == [4, 4] * 3
    assert again.curves == history.curves
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
