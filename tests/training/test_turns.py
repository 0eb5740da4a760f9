"""Turns: within an epoch, parameters learn one after the other, each from frames of its own."""

import copy

import pytest
import torch

from gatesearch.training import (
    Checkpoints,
    ParameterGroup,
    PhaseCheckpoints,
    Preempted,
    Trainer,
    TrainingData,
    Turn,
)
from gatesearch.training.hooks import Hooks
from tests.training.toys import CPU, Toy, same_state, spec, toy_frames, toy_pack, toy_tasks, uniform

NAMES = ("semseg", "depth")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Eleven frames, of which turns get six and five: one step of four each."""
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy"), *NAMES)


def turns(model: Toy) -> list[Turn]:
    weights = (*model.body.parameters(), *model.heads.parameters())
    gate = ParameterGroup((model.gate,), rate=10.0, optimizer="adam")
    return [Turn((ParameterGroup(weights),), (0, 2)), Turn((gate,), (1, 2))]


def trainer(model: Toy, frames, **options) -> Trainer:
    data = TrainingData(frames, None, toy_tasks(*NAMES))
    own = {"weighting": uniform(*NAMES), "spec": spec(batch_size=2), "runtime": CPU, "seed": 3}
    return Trainer(model, data, turns=turns(model), **{**own, **options})


def test_each_turn_changes_its_parameters_alone_and_keeps_the_moments_of_others(frames) -> None:
    model = Toy(*NAMES)
    before: dict = {}
    changed: list[set[str]] = []

    def note(share: float) -> None:
        before.clear()
        before.update({n: p.detach().clone() for n, p in model.named_parameters()})

    def compare() -> None:
        names = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        changed.append({"gate" if name == "gate" else "weights" for name in names})

    training = trainer(model, frames, hooks=Hooks(before_step=note, after_step=compare))
    training.run()
    epoch = [{"weights"}] * 3 + [{"gate"}] * 2  # six and five frames in batches of two
    assert changed == 2 * epoch
    steps = {int(state["step"]) for state in training.optimizer.state.values()}
    assert steps == {6, 4}, "the moments of both go on through the epochs"
    assert all(p.requires_grad for p in model.parameters())


def test_turns_learn_from_disjoint_frames_that_are_all_together(frames) -> None:
    training = trainer(Toy(*NAMES), frames)
    parts = [{int(i) for i in part._indices} for part in training.parts]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(11))
    assert [len(part) for part in parts] == [6, 5]
    assert training.steps_per_epoch == 5


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5, 7, 9])
def test_it_resumes_to_the_bit_inside_any_turn(frames, tmp_path, stop_after: int) -> None:
    whole = Toy(*NAMES)
    history = trainer(whole, frames).run()
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1

    kept = Checkpoints(tmp_path, identity="x", seconds=1e9, stop=lambda: taken >= stop_after)
    phase = PhaseCheckpoints(kept, "turns", {}, None)
    with pytest.raises(Preempted):
        trainer(Toy(*NAMES), frames, hooks=Hooks(after_step=count), checkpoints=phase).run()
    kept = Checkpoints(tmp_path, identity="x", seconds=1e9)
    phase = PhaseCheckpoints(kept, "turns", {}, kept.newest())
    resumed = Toy(*NAMES)
    curves = trainer(resumed, frames, checkpoints=phase).run().curves
    assert same_state(whole, resumed)
    assert curves == history.curves


def test_frozen_parameters_stay_frozen(frames) -> None:
    model = Toy(*NAMES)
    model.gate.requires_grad_(False)
    kept = copy.deepcopy(model.body[0].weight)
    model.body[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="at least one parameter"):
        Trainer(
            model,
            TrainingData(frames, None, toy_tasks(*NAMES)),
            weighting=uniform(*NAMES),
            spec=spec(),
            runtime=CPU,
            seed=3,
            turns=[Turn((ParameterGroup((model.gate,)),))],
        )
    model.gate.requires_grad_(True)
    trainer(model, frames).run()
    assert torch.equal(model.body[0].weight, kept)
