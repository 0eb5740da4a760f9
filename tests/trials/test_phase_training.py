"""A method's phases one after the other: what each is given, and what is added up."""

import math
from dataclasses import replace

import pytest
import torch

from gatesearch.cost import count_macs
from gatesearch.events import Progress
from gatesearch.methods import (
    METHODS,
    NetworkSpec,
    Phase,
    TrainedNetwork,
    TrainingRequest,
    build_model,
)
from gatesearch.methods.mtl import MTL
from gatesearch.training import Hooks, ParameterGroup, Trainer
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import TrainingControls, run_phases
from tests.search.tiny import tiny


@pytest.fixture
def context(tmp_path, data):
    study = tiny(tmp_path, "training.epochs=3", "data.train_frames=16")
    return open_context(study, data=data, stored=None, emit=lambda event: None)


@pytest.fixture
def run(context, monkeypatch):
    """Runs phases as those of the method `mtl`."""

    def run_(*phases: Phase, told=None, stopper=None, **spec):
        monkeypatch.setitem(METHODS, "mtl", replace(MTL, phases=lambda request: phases))
        emit = (lambda event: None) if told is None else told.append
        request = TrainingRequest(NetworkSpec("mtl", 0, **spec), context, None, emit)
        return run_phases(request, TrainingControls(stopper=stopper))

    return run_


@pytest.fixture
def begin(context):
    def begun(before):
        return TrainedNetwork(build_model(context.study, "mtl")) if before is None else before

    return begun


def test_two_phases_with_nothing_new_are_one_training_in_two_parts(run, begin) -> None:
    told = []
    training = run(
        Phase(name="a", span=(0, 1), begin=begin), Phase(name="b", span=(1, 3), begin=begin),
        told=told,
    )  # fmt: skip
    assert (training.history.epochs, training.history.images) == (3, 3 * 12)
    assert [(e.stage, e.done, e.total) for e in told if isinstance(e, Progress)] == [
        ("mtl", 1, 3), ("mtl", 2, 3), ("mtl", 3, 3),
    ]  # fmt: skip
    rates = training.history.curves["lr"]
    assert rates == pytest.approx([1e-3 * (1 - share) ** 0.9 for share in (1 / 3, 2 / 3, 1)])


def test_an_empty_phase_changes_the_network_alone(run, begin, context) -> None:
    other = build_model(context.study, "mtl", seed=5)

    def change(before):
        return TrainedNetwork(other, ("layer",), {"depth": (0.5,)})

    training = run(
        Phase(name="a", span=(0, 1), begin=begin), Phase(name="b", span=(1, 1), begin=change)
    )
    assert training.network.module is other
    assert (training.network.layers, training.history.epochs) == (("layer",), 1)


def test_parameters_in_no_group_stay_as_they_are(run, begin) -> None:
    def heads(module):
        return [ParameterGroup(tuple(module.heads.parameters()))]

    kept = []

    def begun(before):
        network = begin(before)
        kept.append({n: p.clone() for n, p in network.module.named_parameters()})
        return network

    training = run(Phase(name="a", span=(0, 1), begin=begun, groups=heads))
    for name, parameter in training.network.module.named_parameters():
        assert torch.equal(parameter, kept[0][name]) != name.startswith("heads."), name


@pytest.mark.parametrize(("part", "frames"), [((0, 2), 6), ((1, 2), 6), ((2, 4), 3), ((0, 1), 12)])
def test_a_phase_learns_from_its_part_of_the_data(run, begin, monkeypatch, part, frames) -> None:
    seen, step = [], Trainer.step

    def watched(self, batch, epoch):
        seen.append(len(self.data.train))
        step(self, batch, epoch)

    monkeypatch.setattr(Trainer, "step", watched)
    training = run(Phase(name="a", span=(0, 1), begin=begin, data_part=part))
    assert set(seen) == {frames}
    assert training.history.images == frames == 3 * len(seen)


def test_hooks_are_of_the_phases_own_module(run, begin) -> None:
    def hooks(module):
        return Hooks(
            penalty=lambda image, outputs: (
                1e3 * module.encoder.layers["stage0_0"].bn.bias.square().sum()
            ),
            observe=lambda epoch: {"own": float(epoch)},
        )

    training = run(
        Phase(name="a", span=(0, 1), begin=begin),
        Phase(name="b", span=(1, 3), begin=begin, hooks=hooks),
    )
    own = training.history.curves["own"]
    assert math.isnan(own[0])
    assert own[1:] == [2.0, 3.0]


def test_training_costs_are_added_up_per_phase(run, begin, context) -> None:
    gflops = count_macs(build_model(context.study, "mtl"), (1, 3, 16, 16), cross_check=False).gflops
    training = run(
        Phase(name="a", span=(0, 1), begin=begin),
        Phase(name="b", span=(1, 3), begin=begin, forward_gflops=lambda module: 10 * gflops),
    )
    # Forward and twice that backward: twelve frames, then twice twelve at ten times the cost.
    assert training.pflops == pytest.approx(3 * gflops * (12 + 10 * 24) / 1e6)


class Stopping:
    """A stopper that ends a trial at an epoch."""

    def __init__(self, at: int) -> None:
        self.at, self.verdict, self.costs = at, "", []

    def judge(self, epoch, network, gflops):
        self.costs.append(gflops)
        self.verdict = "too bad" if epoch == self.at else ""
        return {"delta_mtl": -1.0, "gflops": gflops}


def test_a_trial_that_is_stopped_takes_no_later_phase(run, begin) -> None:
    def never(before):
        raise AssertionError("this phase is not reached")

    stopper = Stopping(at=2)
    training = run(
        Phase(name="a", span=(0, 1), begin=begin, current_gflops=lambda module: lambda: 7.0),
        Phase(name="b", span=(1, 2), begin=begin),
        Phase(name="c", span=(2, 3), begin=never),
        stopper=stopper, trial=0,
    )  # fmt: skip
    assert training.history.epochs == 2
    assert stopper.costs[0] == 7.0
    assert stopper.costs[1] != 7.0
    assert training.history.curves["delta_mtl"] == [-1.0, -1.0]


def test_weights_that_are_tried_are_the_losses_with_their_mean_kept(run, begin) -> None:
    params = {"weight.semseg": 3.0, "weight.depth": 1.0}
    training = run(
        Phase(name="a", span=(0, 1), begin=begin), trial=0, params=params, weighting="scalar"
    )
    weights = {task: training.history.curves[f"weight.{task}"] for task in ("semseg", "depth")}
    assert weights == {"semseg": [1.5], "depth": [0.5]}
