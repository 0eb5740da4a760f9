"""Controls: networks of a trial's cost that share in other ways."""

import dataclasses

import pytest
import torch

from gatesearch.cost import PatternCost, count_macs
from gatesearch.methods import NetworkSpec, TrainingRequest, build_model, start_of
from gatesearch.methods.controls import CONTROL, KINDS, kinds_of
from gatesearch.methods.controls.patterns import (
    branch,
    even,
    fresh,
    of_cost,
    random,
    shares,
    swapped,
)
from gatesearch.methods.specification import ControlSpec
from gatesearch.models import GatedSupernet
from gatesearch.models.backbones import BACKBONES
from gatesearch.pruning import extract, pattern_as_text, pattern_of_text
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from tests.methods.toys import parts
from tests.search.tiny import ignore, tiny

SHAPE = (1, 3, 32, 32)
ORDERS = (random, even, swapped, fresh, branch, shares)


@pytest.fixture(scope="module")
def searched():
    """A supernet, the cost of its patterns, and a pattern of unequal tasks with its cost."""
    supernet = GatedSupernet(parts(BACKBONES["resnet18"](output_stride=32, width=0.2)))
    cost = PatternCost.of(supernet, SHAPE)
    draw = torch.Generator().manual_seed(3)
    opened = torch.tensor([[0.6], [0.1]])
    gates = {
        name: torch.rand(gate.shape, generator=draw) < opened
        for name, gate in supernet.hard_gates().items()
    }
    return supernet, cost, gates, int(cost.macs(gates))


def total_of(gates) -> list[int]:
    return torch.cat(list(gates.values()), 1).sum(1).tolist()


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_a_control_costs_what_the_trial_does(searched, order) -> None:
    supernet, cost, gates, macs = searched
    found = of_cost(order, gates, cost, macs, seed=0)
    assert 0.98 <= float(cost.macs(found)) / macs <= 1
    supernet.set_gates(found)
    assert count_macs(extract(supernet), SHAPE).macs == int(cost.macs(found))


@pytest.mark.parametrize("order", [random, even, shares], ids=lambda order: order.__name__)
def test_places_are_drawn_by_the_seed(searched, order) -> None:
    _, cost, gates, macs = searched
    one, same, other = (of_cost(order, gates, cost, macs, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_fresh_is_the_pattern_itself_and_swapped_that_of_the_other_task(searched) -> None:
    _, cost, gates, macs = searched
    kept = of_cost(fresh, gates, cost, macs, seed=5)
    turned = of_cost(swapped, gates, cost, macs, seed=5)
    for name, gate in gates.items():
        assert torch.equal(kept[name], gate)
        assert torch.equal(turned[name], gate.flip(0))


def test_a_random_pattern_has_the_numbers_of_the_trial(searched) -> None:
    _, cost, gates, _ = searched
    logits = random(gates, cost, torch.Generator().manual_seed(0))
    assert all(torch.equal((logits[n] > 0).sum(1), g.sum(1)) for n, g in gates.items())
    assert any(not torch.equal(logits[n] > 0, g) for n, g in gates.items())


def test_an_even_pattern_has_one_share_in_all_layers(searched) -> None:
    _, cost, gates, _ = searched
    logits = even(gates, cost, torch.Generator().manual_seed(0))
    channels = sum(gate.shape[1] for gate in gates.values())
    for task, total in enumerate(total_of(gates)):
        for row in (logits[name][task] for name in logits):
            assert int((row > 0).sum()) == pytest.approx(len(row) * total / channels, abs=1)


def test_a_branch_shares_up_to_one_layer_for_all_tasks_alike(searched) -> None:
    _, cost, gates, macs = searched
    found = of_cost(branch, gates, cost, macs, seed=0)
    opened = [gate.float().mean().item() for gate in found.values()]
    first = next(i for i, share in enumerate(opened) if share > 0)
    assert opened[:first] == [0.0] * first
    assert opened[first + 1 :] == [1.0] * (len(opened) - first - 1)
    partly = list(found.values())[first]
    # One gate of all is in the order at a time, so one channel may be open for some tasks alone.
    assert (partly[0] ^ partly[1]).sum() <= 1
    assert torch.equal(partly[1], partly[1].sort().values)


def test_only_a_pattern_has_controls_of_a_pattern() -> None:
    assert kinds_of({"conv1": ["0"]}) == KINDS
    assert kinds_of({}) == ("mtl@B", "branch")


def test_below_the_multi_task_network_nothing_else_can_be_shared() -> None:
    assert kinds_of({"conv1": ["0"]}, below_mtl=True) == ("mtl@B",)


@pytest.fixture(scope="module", params=["tasks", "shared"])
def context(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("controls")
    study = tiny(folder, "training.epochs=3", f"interrogate.mix={request.param}")
    return open_context(study, data=folder, stored=None, emit=ignore)


@pytest.fixture(scope="module")
def trial(context):
    """(pattern, multiply-adds) of a trial's network."""
    supernet = build_model(context.study, "interrogate")
    gates = {n: torch.rand(g.shape) < 0.3 for n, g in supernet.hard_gates().items()}
    return gates, int(PatternCost.of(supernet, context.input_shape).macs(gates))


class TestTraining:
    def spec(self, kind, trial, **values) -> NetworkSpec:
        gates, macs = trial
        control = ControlSpec(
            kind, 7, method="interrogate", macs=macs, pflops=1e-4, gates=pattern_as_text(gates)
        )
        return NetworkSpec(CONTROL.name, 1, control=dataclasses.replace(control, **values))

    def test_a_multi_task_network_of_weights_that_have_one_width_keeps_it(
        self, context, trial
    ) -> None:
        stl = build_model(context.study, "stl", seed=1).state_dict()
        spec = self.spec("mtl@B", trial, from_single_task=True)
        (phase,) = phases_of(TrainingRequest(spec, context, lambda: stl, ignore))
        plain = count_macs(build_model(context.study, "mtl"), context.input_shape)
        cut = count_macs(phase.begin(None).module, context.input_shape)
        assert (cut.macs, cut.params) == (plain.macs, plain.params)

    @pytest.mark.parametrize("kind", [*KINDS, "pattern2"])
    def test_it_is_cut_before_training_and_spends_what_the_trial_did(
        self, kind, context, trial
    ) -> None:
        spec = self.spec(kind, trial)
        (phase,) = phases_of(TrainingRequest(spec, context, None, ignore))
        network = phase.begin(None)
        cost = count_macs(network.module, context.input_shape)
        assert 0.9 * trial[1] < cost.macs <= trial[1]
        epochs = phase.span[1]
        assert phase.training.epochs == epochs > 3
        spent = 3 * cost.gflops * len(context.train) * epochs / 1e6
        assert spent == pytest.approx(1e-4, rel=0.5 / epochs)
        assert bool(network.gates) == (kind != "mtl@B")
        if kind == "fresh":
            channels = {name: gate.shape[1] for name, gate in trial[0].items()}
            again = pattern_of_text(network.gates, channels)
            assert all(torch.equal(again[name], trial[0][name]) for name in again)

    def test_trained_weights_are_narrowed_to_a_lower_cost(self, context, trial) -> None:
        stl = build_model(context.study, "stl").state_dict()
        mtl = count_macs(build_model(context.study, "mtl"), context.input_shape).macs
        spec = self.spec("mtl@B", trial, from_single_task=True, macs=round(0.9 * mtl))
        (phase,) = phases_of(TrainingRequest(spec, context, lambda: stl, ignore))
        cost = count_macs(phase.begin(None).module, context.input_shape)
        assert 0.75 * mtl < cost.macs <= 0.9 * mtl

    def test_it_starts_where_the_trial_does(self, context, trial) -> None:
        assert start_of(self.spec("random", trial), context.study) is None
        start = start_of(self.spec("random", trial, from_single_task=True), context.study)
        assert start == NetworkSpec("stl", 1)

    def test_its_first_weights_are_those_of_every_method(self, context, trial) -> None:
        (phase,) = phases_of(TrainingRequest(self.spec("fresh", trial), context, None, ignore))
        supernet = build_model(context.study, "interrogate", seed=1)
        supernet.set_gates(trial[0])
        image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, theirs = phase.begin(None).module.eval()(image), extract(supernet)(image)
        for task in theirs:
            torch.testing.assert_close(ours[task], theirs[task])


def test_a_specification_of_a_control_is_read_as_it_was_written() -> None:
    control = ControlSpec("random", 3, "interrogate", 10, 0.5, gates={"conv1": ["f0"]})
    spec = NetworkSpec(CONTROL.name, 2, control=control)
    assert NetworkSpec.from_json(spec.to_json()) == spec
    assert spec.label == "random of trial 3, seed 2"
    plain = NetworkSpec("mtl", 0)
    assert not {"control", "width"} & plain.to_json().keys(), "as earlier versions wrote it"
