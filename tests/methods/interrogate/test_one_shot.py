"""InterroGate's one-shot form: its chain of starts, its training, patterns on its supernet."""

from dataclasses import replace

import pytest
import torch

from gatesearch.cost import count_macs, parse_budget
from gatesearch.errors import UsageError
from gatesearch.methods import (
    METHODS,
    NetworkSpec,
    TrainingRequest,
    check_study,
    start_of,
    training_of,
)
from gatesearch.methods.interrogate.gate_selection import apply_open_shares
from gatesearch.methods.interrogate.method import WARM_UP
from gatesearch.methods.interrogate.nested import Nested
from gatesearch.methods.interrogate.one_shot import ONE_SHOT, SUPERNET, OneShotSupernet
from gatesearch.models import GatedSupernet, parts_of
from gatesearch.pruning import extract
from gatesearch.tasks import build_tasks
from gatesearch.trials.context import open_context
from tests.methods.toys import ends_of, random_image, scattered
from tests.search.tiny import tiny

QUICK = ("one_shot.warmup=0.25", "one_shot.finetune=0.25", "one_shot.epochs=4")


def part(name: str) -> NetworkSpec:
    return NetworkSpec("one_shot", 0, part=name)


TRIAL = NetworkSpec("one_shot", 0, 0, {"share.semseg": 0.5, "share.depth": 0.25})


def test_what_networks_start_from(tmp_path) -> None:
    study = tiny(tmp_path, *QUICK)
    assert start_of(TRIAL, study) == part(SUPERNET)
    assert start_of(part(SUPERNET), study) == part(WARM_UP)
    assert start_of(part(WARM_UP), study) is None
    cold = tiny(tmp_path, *QUICK, "one_shot.warmup=0")
    assert start_of(part(SUPERNET), cold) is None
    from_stl = tiny(tmp_path, *QUICK, "options.interrogate.start=stl")
    assert start_of(part(WARM_UP), from_stl) == NetworkSpec("stl", 0)


def test_its_training_is_interrogates_with_its_own_keys_over_it(tmp_path) -> None:
    study = tiny(
        tmp_path, "options.interrogate.training={lr=0.5, power=0.3}",
        "options.one_shot.training.power=0.7",
    )  # fmt: skip
    own, usual = training_of(study, "one_shot"), training_of(study, "interrogate")
    assert (own.lr, own.power, own.epochs) == (0.5, 0.7, usual.epochs)
    longer = tiny(tmp_path, "one_shot.epochs=9")
    assert training_of(longer, "one_shot").epochs == 9
    assert training_of(longer, "interrogate").epochs == 2
    with pytest.raises(UsageError, match=r"options\.one_shot\.training:\n  unknown key 'epoch'"):
        tiny(tmp_path, "options.one_shot.training.epoch=1")


@pytest.fixture
def context(tmp_path, data):
    study = check_study(tiny(tmp_path, *QUICK, "one_shot.statistics=4"))
    return open_context(study, data=data, stored=None, emit=lambda event: None)


def planned(spec, context, start=None):
    request = TrainingRequest(spec, context, start, lambda event: None)
    return METHODS["one_shot"].phases(request)


def test_phases_of_its_parts(context) -> None:
    phases = {
        spec.label: [(phase.name, phase.span) for phase in planned(spec, context)]
        for spec in (part(WARM_UP), part(SUPERNET), TRIAL)
    }
    assert phases == {
        "warm-up of one_shot": [("warm-up", (0, 1))],
        "supernet of one_shot": [("nested", (1, 3)), ("unwrapped", (3, 3))],
        "trial 0": [("compact", (3, 4))],
    }
    assert ONE_SHOT.unmeasured_parts == {SUPERNET}


def supernet_of(study) -> GatedSupernet:
    supernet = scattered(GatedSupernet(parts_of(study)))
    torch.manual_seed(5)
    with torch.no_grad():
        for alpha in supernet.alpha.values():
            alpha.normal_()
    return supernet


def test_a_step_costs_its_draw_and_its_teacher(context) -> None:
    nested_phase, _ = planned(part(SUPERNET), context)
    nested = Nested(GatedSupernet(parts_of(context.study)), ends=0.2, seed=0)
    ends = ends_of(context.study)
    whole = count_macs(nested.supernet, (1, 3, 16, 16), cross_check=False).gflops
    steps = 0.2 * (ends["mtl"].gflops + ends["stl"].gflops) + 0.6 * whole
    teacher = 0.8 * ends["stl"].gflops / 3
    assert nested_phase.forward_gflops(nested) == pytest.approx(steps + teacher)


@torch.no_grad()
def test_the_richest_network_teaches_the_others(context) -> None:
    phase, _ = planned(part(SUPERNET), context)
    nested = Nested(supernet_of(context.study), ends=0.2, seed=0)
    hooks = phase.hooks(nested)
    image = random_image(16, frames=3)
    nested.shares = torch.ones(2)
    assert float(hooks.penalty(image, {})) == 0
    nested.shares = torch.tensor([0.5, 0.0])
    same = nested.supernet.plain(image, own=True)
    nothing = float(hooks.penalty(image, same))
    other = {task: y + torch.randn_like(y) for task, y in same.items()}
    assert float(hooks.penalty(image, other)) > nothing + 1e-3
    before = nested.shares
    hooks.before_step(0.0)
    assert not torch.equal(nested.shares, before)


def trial_request(context, supernet, spec=TRIAL) -> TrainingRequest:
    return TrainingRequest(spec, context, supernet.state_dict, lambda event: None)


def test_a_trial_is_cut_from_the_trained_supernet(context) -> None:
    supernet = supernet_of(context.study)
    (phase,) = METHODS["one_shot"].phases(trial_request(context, supernet))
    network = phase.begin(None)
    supernet.open_shares(torch.tensor([0.5, 0.25]))
    cut = extract(supernet)
    assert network.module.description == cut.description
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            network.module.state_dict().values(), cut.state_dict().values(), strict=True
        )
    )
    assert set(network.sharing) == {"semseg", "depth"}
    assert network.layers == supernet.gated


def test_costs_of_patterns_lie_between_the_ends(context) -> None:
    ends = ends_of(context.study)
    budget = parse_budget("1xSTL", mtl=ends["mtl"], stl=ends["stl"])
    offered = OneShotSupernet(trial_request(context, supernet_of(context.study)), (budget,))
    for share, method in ((0.0, "mtl"), (1.0, "stl")):
        macs, of_budget = offered.cost({"share.semseg": share, "share.depth": share})
        assert macs == ends[method].macs
        assert of_budget == pytest.approx(ends[method].macs / ends["stl"].macs)
    free = OneShotSupernet(trial_request(context, supernet_of(context.study)), ())
    assert free.cost({"share.semseg": 1.0, "share.depth": 1.0})[1] == 0


def test_measuring_a_pattern_leaves_the_supernet_as_it_is(context) -> None:
    supernet = supernet_of(context.study)
    offered = OneShotSupernet(trial_request(context, supernet), ())
    params = {"share.semseg": 0.5, "share.depth": 0.25}
    metrics, macs = offered.measure(params)
    other, _ = offered.measure({"share.semseg": 1.0, "share.depth": 1.0})
    assert metrics.keys() == build_tasks(context.study.tasks).keys()
    assert offered.measure(params) == (metrics, macs)
    assert other != metrics
    assert macs == offered.cost(params)[0]


def test_its_networks_take_rounded_channels(context, tmp_path) -> None:
    study = check_study(tiny(tmp_path, *QUICK, "model.width=0.125", "interrogate.round_to=4"))
    wide, supernet = replace(context, study=study), supernet_of(study)
    params = {"share.semseg": 0.4, "share.depth": 0.4}
    macs, _ = OneShotSupernet(trial_request(wide, supernet), ()).cost(params)
    for multiple, same in ((1, False), (4, True)):
        apply_open_shares(supernet, params, multiple=multiple)
        counted = count_macs(extract(supernet), wide.input_shape, cross_check=False).macs
        assert (macs == counted) == same
