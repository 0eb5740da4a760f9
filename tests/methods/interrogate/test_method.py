"""InterroGate: its phases, what its trials start from, the hooks of its gates."""

import math
from dataclasses import replace

import pytest
import torch

from gatesearch.cost import parse_budget
from gatesearch.errors import UsageError
from gatesearch.methods import (
    METHODS,
    Context,
    NetworkSpec,
    Phase,
    TrainingRequest,
    build_model,
    check_study,
    start_of,
)
from gatesearch.methods.interrogate.method import (
    WARM_UP,
    gate_groups,
    pattern_cost,
    untrained_supernet,
)
from gatesearch.models import GatedSupernet
from gatesearch.models.gated_supernet import SHARED
from gatesearch.models.model_factory import below
from gatesearch.tasks import build_tasks
from gatesearch.training import Runtime
from tests.methods.toys import ends_of, random_image, scattered
from tests.search.tiny import tiny

PARAMS = {"lambda_s": 2.0, "tau.semseg": 0.25, "tau.depth": 0.5}
CPU = Runtime(device="cpu", precision="fp32", memory_format="nchw")


def request_for(tmp_path, *overrides, start=None, **spec) -> TrainingRequest:
    """A request for a trial, without data."""
    study = check_study(tiny(tmp_path, *overrides))
    context = Context(study, build_tasks(study.tasks), None, None, None, CPU, {})
    network = NetworkSpec("interrogate", 0, **{"trial": 0, "params": PARAMS} | spec)
    state = None if start is None else (lambda: start)
    return TrainingRequest(network, context, state, lambda event: None)


def gates_phase(request: TrainingRequest) -> Phase:
    (phase,) = [p for p in METHODS["interrogate"].phases(request) if p.name == "gates"]
    return phase


@pytest.mark.parametrize(
    ("warmup", "finetune", "expected"),
    [
        (0, 0, [("gates", (0, 8)), ("compact", (8, 8))]),
        (0.5, 0, [("gates", (4, 8)), ("compact", (8, 8))]),
        (0.25, 0.5, [("gates", (2, 4)), ("compact", (4, 8))]),
    ],
)
def test_phases_of_a_trial(tmp_path, warmup, finetune, expected) -> None:
    overrides = (f"interrogate.warmup={warmup}", f"interrogate.finetune={finetune}",
                 "training.epochs=8")  # fmt: skip
    request = request_for(tmp_path, *overrides)
    phases = METHODS["interrogate"].phases(request)
    assert [(phase.name, phase.span) for phase in phases] == expected
    part = replace(request, spec=NetworkSpec("interrogate", 0, part=WARM_UP))
    if warmup:
        (first,) = METHODS["interrogate"].phases(part)
        assert (first.name, first.span) == ("warm-up", (0, expected[0][1][0]))


def test_trials_start_from_the_warm_up_and_that_as_every_network_does(tmp_path) -> None:
    trial = NetworkSpec("interrogate", 3, 5, PARAMS)
    warm = NetworkSpec("interrogate", 3, part=WARM_UP)
    warmed = tiny(tmp_path, "interrogate.warmup=0.5")
    assert start_of(trial, tiny(tmp_path)) is None
    assert start_of(trial, warmed) == warm
    assert start_of(warm, warmed) is None
    from_stl = tiny(tmp_path, "interrogate.warmup=0.5", "options.interrogate.start=stl")
    assert start_of(trial, from_stl) == warm
    assert start_of(warm, from_stl) == NetworkSpec("stl", 3)
    # A warm-up that gets no epoch is none.
    short = tiny(tmp_path, "interrogate.warmup=0.4", "training.epochs=2")
    assert start_of(trial, short) is None


def test_streams_of_a_warmed_supernet_are_the_warm_up(tmp_path) -> None:
    request = request_for(tmp_path)
    state = scattered(build_model(request.study, "mtl")).state_dict()
    supernet = untrained_supernet(replace(request, start=lambda: state), warmed=True)
    for stream in supernet.streams.values():
        for name, tensor in stream.state_dict().items():
            assert torch.equal(tensor, state[f"encoder.{name}"])
    for name, tensor in supernet.heads.state_dict().items():
        assert torch.equal(tensor, state[f"heads.{name}"])


def test_streams_from_single_task_networks_are_theirs_and_their_mean(tmp_path) -> None:
    request = request_for(tmp_path)
    trained = scattered(build_model(request.study, "stl")).state_dict()
    model = untrained_supernet(replace(request, start=lambda: trained), warmed=False)
    own = {task: below(model.streams[task].state_dict(), "") for task in request.study.tasks}
    for name, tensor in model.streams[SHARED].state_dict().items():
        theirs = [trained[f"encoders.{task}.{name}"] for task in own]
        assert all(torch.equal(own[t][name], x) for t, x in zip(own, theirs, strict=True))
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, sum(theirs) / len(theirs))
    for name, tensor in model.heads.state_dict().items():
        assert torch.equal(tensor, trained[f"heads.{name}"])


def test_gates_and_mixes_learn_at_a_rate_of_their_own(tmp_path) -> None:
    supernet = build_model(tiny(tmp_path), "interrogate")
    weights, gates = gate_groups(supernet, rate=10.0)
    assert (weights.rate, gates.rate) == (1.0, 10.0)
    expected = {
        id(p) for n, p in supernet.named_parameters() if n.split(".")[0] in ("alpha", "beta")
    }
    assert {id(p) for p in gates.parameters} == expected
    everything = [*weights.parameters, *gates.parameters]
    assert len(everything) == len({id(p) for p in everything}) == len(list(supernet.parameters()))


def hooks_of(tmp_path, *overrides, **spec):
    request = request_for(tmp_path, *overrides, **spec)
    phase = gates_phase(request)
    supernet = phase.begin(None).module
    assert isinstance(supernet, GatedSupernet)
    return supernet, phase.hooks(supernet), request


@torch.no_grad()
def test_the_penalty_is_the_weighted_sparsity_and_rises(tmp_path) -> None:
    _, hooks, _ = hooks_of(tmp_path, "interrogate.initial=0.75", "interrogate.ramp=0.5")
    image = random_image(16)
    # Both tasks open 3/4 of every layer: the mean of 3/4 - 1/4 and 3/4 - 1/2, times λ_s.
    whole = 2.0 * (0.5 + 0.25) / 2
    for share, risen in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.0)):
        hooks.before_step(share)
        assert float(hooks.penalty(image, {})) == pytest.approx(whole * risen, abs=1e-6)


def test_the_temperature_falls_geometrically(tmp_path) -> None:
    supernet, hooks, _ = hooks_of(tmp_path, "interrogate.temperature=[4.0, 0.25]")
    for share, expected in ((0.0, 4.0), (0.5, 1.0), (0.75, 0.5)):
        hooks.before_step(share)
        assert supernet.temperature == pytest.approx(expected)


def test_what_is_observed_of_the_gates(tmp_path) -> None:
    supernet, hooks, _ = hooks_of(tmp_path)
    gates = {name: torch.zeros_like(on) for name, on in supernet.hard_gates().items()}
    for on in gates.values():
        on[1] = True
    supernet.set_gates(gates)
    values = hooks.observe(1)
    assert (values["open.semseg"], values["open.depth"]) == (0.0, 1.0)
    # σ(-1) and σ(1) against 1/4 and 1/2.
    low, high = (1 / (1 + math.exp(x)) for x in (1, -1))
    expected = (max(0, low - 0.25) + max(0, high - 0.5)) / 2
    assert values["sparsity"] == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_a_regulariser_of_cost_is_nothing_inside_the_budget(tmp_path) -> None:
    ends = ends_of(tiny(tmp_path))
    budget = parse_budget("0.8xSTL", mtl=ends["mtl"], stl=ends["stl"])
    supernet, hooks, request = hooks_of(
        tmp_path, 'search.regulariser=["flops"]', budgets=(budget,)
    )  # fmt: skip
    cost = pattern_cost(supernet, request)
    image = random_image(16)
    hooks.before_step(0.5)
    for alpha in supernet.alpha.values():
        alpha.fill_(9.0)
    opened = float(cost.budget_hinge(supernet.open_probability(), (budget,)))
    assert float(hooks.penalty(image, {})) == pytest.approx(2.0 * opened)
    assert opened > 0
    for alpha in supernet.alpha.values():
        alpha.fill_(-9.0)
    assert float(hooks.penalty(image, {})) == 0


def test_a_regulariser_of_cost_needs_a_budget(tmp_path) -> None:
    check = METHODS["interrogate"].check
    for words in (["flops"], ["hinge", "flops"]):
        study = tiny(tmp_path, f"search.regulariser={words}")
        with pytest.raises(UsageError, match=r"add --budget, such as 1\.3xMTL"):
            check(study, ())
        check(study, ("1.3xMTL",))
    check(tiny(tmp_path), ())


def test_what_a_trial_would_come_to_now(tmp_path) -> None:
    request = request_for(tmp_path)
    phase = gates_phase(request)
    supernet = phase.begin(None).module
    now = phase.current_gflops(supernet)
    ends = ends_of(request.study)
    for on, method in ((False, "mtl"), (True, "stl")):
        supernet.set_gates({n: torch.full_like(g, on) for n, g in supernet.hard_gates().items()})
        assert now() == pytest.approx(ends[method].gflops)
