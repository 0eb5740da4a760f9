"""Weightings in the training loop itself."""

import math

import pytest
import torch

from gatesearch.study import AugmentSpec
from gatesearch.training import TrainingError, trainer
from gatesearch.training.augment import augment
from gatesearch.training.optimizer import build_optimizer, set_learning_rates
from gatesearch.training.split_data import normalize
from gatesearch.training.weightings import WEIGHTINGS, build_weighting
from tests.training.toys import (
    Toy,
    spec,
    toy_frames,
    toy_pack,
    toy_tasks,
    train,
    two_groups,
)

NAMES = ("semseg", "depth", "normals")
OMEGA = {"semseg": 1.0, "depth": 0.5, "normals": 2.0}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy"), *NAMES)


def trained(frames, name, *, model=None, options=None, **more):
    model = model or Toy(*NAMES)
    history = train(
        model, frames, toy_tasks(*NAMES), held_out=frames,
        weighting=build_weighting(name, OMEGA, seed=3, options=options),
        **{"spec": spec(epochs=3)} | more,
    )  # fmt: skip
    return model, history


def by_hand(frames):
    """The weighted sum of losses, without any weighting's code."""
    model, tasks, own = Toy(*NAMES), toy_tasks(*NAMES), spec(epochs=3)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(3)
    optimizer = build_optimizer(model, own)
    steps = len(frames) // own.batch_size
    done = 0
    for _ in range(own.epochs):
        for raw in frames.shuffled(own.batch_size, generator):
            batch = augment(raw, tasks, generator=generator, **own.augment.model_dump())
            outputs = model(normalize(batch["image"]))
            losses = torch.stack([tasks[t].loss(outputs[t], batch[t]) for t in tasks])
            optimizer.zero_grad()
            torch.dot(losses, torch.tensor(list(OMEGA.values()))).backward()
            optimizer.step()
            done += 1
            set_learning_rates(optimizer, own, done / (steps * own.epochs))
    return model


def test_uniform_is_the_weighted_sum_to_the_bit(frames) -> None:
    model, _ = trained(frames, "uniform")
    expected = by_hand(frames).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_trains_and_tells_its_weights(frames, name) -> None:
    start = Toy(*NAMES)
    model, history = trained(frames, name)
    for task in NAMES:
        weights = history.curves[f"weight.{task}"]
        assert len(weights) == 3
        assert all(map(math.isfinite, weights))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert not torch.equal(model.body[0].weight, start.body[0].weight)
    if name not in ("uniform", "scalar"):
        plain, _ = trained(frames, "uniform")
        assert not torch.equal(model.body[0].weight, plain.body[0].weight)


def test_weights_of_scalar_are_those_given(frames) -> None:
    _, history = trained(frames, "scalar", options={"weights": {"depth": 3.0}})
    assert history.curves["weight.depth"] == [3.0] * 3
    assert history.curves["weight.normals"] == [2.0] * 3


class Burst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, torch.nan)


class Bursting(Toy):
    """From its third batch on the gradient of depth is not a number, though the loss is one."""

    calls = 0

    def forward(self, image):
        self.calls += 1
        outputs = super().forward(image)
        if self.calls > 2:
            outputs["depth"] = Burst.apply(outputs["depth"])
        return outputs


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "mgda", "mgda_ub"])
def test_a_gradient_that_is_no_number_names_task_epoch_and_step(frames, name) -> None:
    # two steps an epoch
    with pytest.raises(TrainingError, match=r"of depth became nan in epoch 2, step 3; lower"):
        trained(frames, name, model=Bursting(*NAMES))


@pytest.mark.parametrize("part", ["body", "heads.depth"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_parameters_in_no_group_are_not_trained(frames, name, part) -> None:
    start, model = Toy(*NAMES), Toy(*NAMES)
    trained(frames, name, model=model, spec=spec(epochs=1), groups=two_groups(model, part)[1:])
    for key, parameter in model.named_parameters():
        moved = not torch.equal(parameter, start.get_parameter(key))
        assert moved == (part in key), key
        assert parameter.requires_grad  # again, for the next phase


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("decay", ["poly", "constant"])
@pytest.mark.parametrize("name", ["uniform", "uncertainty"])
def test_groups_keep_their_own_rates(frames, monkeypatch, optimizer, decay, name) -> None:
    model = Toy(*NAMES)
    own = spec(epochs=10, optimizer=optimizer, schedule=decay, lr=1e-3, augment=AugmentSpec())
    seen = []

    def watched(*args):
        seen.append(build_optimizer(*args))
        return seen[0]

    monkeypatch.setattr(trainer, "build_optimizer", watched)
    trained(
        frames, name, model=model, spec=own, span=(0, 5),  # ten steps of twenty
        groups=two_groups(model, "gate", rate=10.0),
    )  # fmt: skip
    share = 1.0 if decay == "constant" else (1 - 10 / 20) ** own.power
    gates = {id(p) for n, p in model.named_parameters() if "gate" in n}
    found = {
        id(p): group["lr"] for group in seen[0].param_groups for p in group["params"]
    }  # fmt: skip
    assert list({found[i] for i in gates}) == pytest.approx([1e-2 * share])
    others = {rate for i, rate in found.items() if i not in gates}
    assert list(others) == pytest.approx([1e-3 * share])
    beside = build_weighting(name, OMEGA).learned_parameters()
    assert len(found) == sum(1 for _ in model.parameters()) + len(beside)
    assert bool(beside) == (name == "uncertainty")
