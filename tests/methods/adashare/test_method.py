"""AdaShare's phases, what they start from, its turns, hooks, budgets and refusals."""

from dataclasses import replace

import pytest
import torch

from gatesearch.cost import parse_budget
from gatesearch.errors import DataError, UsageError
from gatesearch.methods import (
    METHODS,
    Context,
    NetworkSpec,
    Phase,
    TrainingRequest,
    check_study,
    start_of,
)
from gatesearch.methods.adashare.method import WARM_UP, check, least_cost, policy_hooks
from gatesearch.methods.adashare.options import AdaShareOptions
from gatesearch.methods.adashare.policy_cost import PolicyCost
from gatesearch.methods.adashare.supernet import PolicySupernet
from gatesearch.methods.base import TrainedNetwork
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models import parts_of
from gatesearch.pruning import CompactNet
from gatesearch.search.setup import parse_budgets
from gatesearch.training import Turn
from gatesearch.trials.context import open_context
from gatesearch.trials.trial import train_network
from tests.methods.toys import ends_of, parts, scattered
from tests.search.tiny import residual

ADASHARE = METHODS["adashare"]
GIVEN = ("adashare.policy.semseg=[1,1,0,1,1,1,1,1]", "adashare.policy.depth=[1,1,1,1,1,0,1,1]")


def opened(tmp_path, data, *overrides: str) -> Context:
    study = residual(tmp_path, "training.epochs=10", *overrides)
    return open_context(study, data=data, stored=None, emit=lambda event: None)


def request_for(context: Context, *, start=None, **spec) -> TrainingRequest:
    network = NetworkSpec("adashare", 0, **spec)
    state = None if start is None else (lambda: start)
    return TrainingRequest(network, context, state, lambda event: None)


def named(phases, name: str) -> Phase:
    (phase,) = [phase for phase in phases if phase.name == name]
    return phase


def test_its_phases_share_the_epochs(tmp_path, data) -> None:
    context = opened(tmp_path, data)
    phases = ADASHARE.phases(request_for(context))
    assert [(p.name, p.span) for p in phases] == [("policy", (1, 5)), ("compact", (5, 10))]
    (warm,) = ADASHARE.phases(request_for(context, part=WARM_UP))
    assert (warm.name, warm.span) == (WARM_UP, (0, 1))


def test_trainings_of_a_seed_share_the_warm_up(tmp_path) -> None:
    study = residual(tmp_path, "training.epochs=10")
    warm = NetworkSpec("adashare", 3, part=WARM_UP)
    assert start_of(NetworkSpec("adashare", 3, 7, {"lambda_sharing": 0.1}), study) == warm
    assert start_of(NetworkSpec("adashare", 3), study) == warm
    assert start_of(warm, study) is None
    assert start_of(NetworkSpec("adashare", 3), residual(tmp_path, "adashare.warmup=0.0")) is None
    stl = NetworkSpec("stl", 3)
    from_stl = residual(tmp_path, "training.epochs=10", "adashare.start=stl")
    assert start_of(NetworkSpec("adashare", 3), from_stl) == stl
    given = residual(tmp_path, "training.epochs=10", *GIVEN)
    assert start_of(NetworkSpec("adashare", 3), given) is None


def test_from_single_task_networks_each_training_has_its_own_warm_up(tmp_path, data) -> None:
    context = opened(tmp_path, data, "adashare.start=stl")
    phases = ADASHARE.phases(request_for(context))
    assert [(p.name, p.span[1]) for p in phases] == [(WARM_UP, 1), ("policy", 5), ("compact", 10)]
    warmed = scattered(MultiTaskNet(parts_of(context.study)))
    stl = SingleTaskNets(parts_of(context.study)).state_dict()
    phases = ADASHARE.phases(request_for(context, start=stl))
    supernet = named(phases, "policy").begin(TrainedNetwork(warmed)).module
    weight = supernet.encoder.layer("conv1").conv.weight
    assert torch.equal(weight, warmed.encoder.layer("conv1").conv.weight)


def test_the_policy_is_learned_with_the_weights_of_the_warm_up(tmp_path, data) -> None:
    context = opened(tmp_path, data)
    warmed = scattered(MultiTaskNet(parts_of(context.study)))
    request = request_for(context, start=warmed.state_dict())
    supernet = named(ADASHARE.phases(request), "policy").begin(None).module
    for name, tensor in warmed.state_dict().items():
        assert torch.equal(supernet.state_dict()[name], tensor), name


@pytest.mark.parametrize("source", ["start", "supernet"])
def test_the_chosen_network_is_trained_from_the_start_or_the_supernet(
    tmp_path, data, source: str
) -> None:
    context = opened(tmp_path, data, f"adashare.retrain_from={source}", "adashare.samples=1")
    supernet = scattered(PolicySupernet(parts_of(context.study)))
    supernet.set_policy(((True,) * 8, (True,) * 8))
    for logits in supernet.logits:
        logits.data *= 50
    phase = named(ADASHARE.phases(request_for(context)), "compact")
    before = TrainedNetwork(supernet)
    finished = phase.begin(before)
    assert isinstance(finished.module, CompactNet)
    assert finished.layers == supernet.blocks
    start = parts_of(context.study).encoder() if source == "start" else supernet.encoder
    weight = finished.module.convs["layer3_0_conv2"].conv.weight
    assert torch.equal(weight, start.layer("layer3.0.conv2").conv.weight)
    head = finished.module.heads["depth"].state_dict()
    expected = (
        parts_of(context.study).head("depth") if source == "start" else supernet.heads["depth"]
    ).state_dict()
    assert all(torch.equal(head[name], tensor) for name, tensor in expected.items())


def test_without_epochs_left_it_keeps_the_weights_that_were_learned(tmp_path, data) -> None:
    context = opened(tmp_path, data, "adashare.search=0.9", "adashare.samples=1")
    supernet = scattered(PolicySupernet(parts_of(context.study)))
    phase = named(ADASHARE.phases(request_for(context)), "compact")
    assert phase.span == (10, 10)
    network = phase.begin(TrainedNetwork(supernet)).module
    weight = network.convs["conv1"].conv.weight
    assert torch.equal(weight, supernet.encoder.layer("conv1").conv.weight)


def test_weights_and_policy_take_turns_on_disjoint_halves(tmp_path, data) -> None:
    context = opened(tmp_path, data)
    phase = named(ADASHARE.phases(request_for(context)), "policy")
    supernet = PolicySupernet(parts_of(context.study))
    weights, policy = phase.turns(supernet)
    assert isinstance(weights, Turn)
    assert (weights.data_part, policy.data_part) == ((0, 2), (1, 2))
    halves = [{int(i) for i in turn.frames(context.train)._indices} for turn in (weights, policy)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {int(i) for i in context.train._indices}
    (group,) = policy.groups
    assert [id(p) for p in group.parameters] == [id(p) for p in supernet.logits]
    assert (group.rate, group.optimizer) == (10.0, "adam")
    ids = {id(p) for p in weights.groups[0].parameters}
    assert ids == {id(p) for p in supernet.parameters()} - {id(p) for p in supernet.logits}


def test_hooks_lower_the_temperature_after_each_policy_turn_and_free_blocks() -> None:
    net = PolicySupernet(parts())
    options = AdaShareOptions(curriculum=0.5, temperature=(4.0, 0.25))
    hooks = policy_hooks(net, options, {}, epochs=4)
    seen = []
    for share in (0.0, 0.2, 0.25, 0.5, 0.75, 0.99):
        hooks.before_step(share)
        seen.append((net.temperature, net.freed))
    # By half each epoch; two more blocks in each eighth of the phase.
    assert seen == [(4, 1), (4, 4), (2, 5), (1, 8), (0.5, 8), (0.5, 8)]
    assert hooks.observe(1)["selected.a"] == 0.5


def test_a_search_chooses_the_weights_of_both_losses() -> None:
    net = PolicySupernet(parts())
    with torch.no_grad():
        net.logits[0][0, 0] = 1.0
    options = AdaShareOptions(lambda_sparsity=0.25, lambda_sharing=0.5)
    hooks = policy_hooks(net, options, {"lambda_sharing": 2.0}, epochs=1)
    values = hooks.observe(1)
    expected = 0.25 * values["policy.sparsity"] + 2.0 * values["policy.sharing"]
    found = hooks.penalty(torch.zeros(()), {})
    assert float(found.detach()) == pytest.approx(expected)
    # α of task a in block 1 is σ(1), all others are 1/2; the first of 8 blocks weighs 7/8, twice.
    assert values["policy.sharing"] == pytest.approx(2 * 7 / 8 * (1 / (1 + 2.718281828**-1) - 0.5))


def test_the_cost_of_the_policys_phase_is_the_mean_over_its_curriculum(tmp_path, data) -> None:
    context = opened(tmp_path, data, "adashare.curriculum=1.0")
    phase = named(ADASHARE.phases(request_for(context)), "policy")
    supernet = PolicySupernet(parts_of(context.study))
    ends = ends_of(context.study)
    # Above one encoder and below one per task.
    assert ends["mtl"].gflops < phase.forward_gflops(supernet) < ends["stl"].gflops
    cost = PolicyCost.of(parts_of(context.study), context.study.protocol.size)
    mean = sum(cost.training_macs(freed) for freed in range(1, 9)) / 8
    assert phase.forward_gflops(supernet) == pytest.approx(2e-9 * mean)
    whole = opened(tmp_path, data, "adashare.curriculum=0.0")
    phase = named(ADASHARE.phases(request_for(whole)), "policy")
    assert phase.forward_gflops(supernet) == pytest.approx(2e-9 * cost.training_macs(8))


def test_a_training_part_of_less_than_two_batches_is_refused(tmp_path, data) -> None:
    few = ("training.batch_size=4", 'methods=["adashare"]')
    with pytest.raises(DataError, match="must have a batch of 4, found 3 frames in a part; lower"):
        opened(tmp_path, data, *few)
    opened(tmp_path, data, *few, *GIVEN)


def test_there_is_nothing_to_search_for_a_given_policy(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"found one that is given by options.adashare.policy"):
        check(residual(tmp_path, *GIVEN), ())


def test_a_budget_that_no_policy_keeps_to_is_refused(tmp_path) -> None:
    study = residual(tmp_path, 'tune=["adashare"]')
    mtl = ends_of(study)["mtl"]
    least = least_cost(study)
    assert least.macs < mtl.macs
    budget, _ = parse_budgets(study, (f"{1.01 * least.gflops:.9f}G", "1.0xMTL"))
    assert budget.limit == pytest.approx(1.01 * least.macs, rel=1e-4)
    with pytest.raises(UsageError, match=r"out of reach: this study's networks go from .*adashare"):
        parse_budgets(study, (f"{0.99 * least.gflops:.9f}G",))


@pytest.mark.slow("trains")
@pytest.mark.parametrize("limit", ["1.05xMTL", "params"])
def test_a_trial_keeps_to_its_budget_and_logs_its_policy(tmp_path, data, limit: str) -> None:
    context = opened(tmp_path, data, "training.epochs=4", "adashare.warmup=0.0")
    ends = ends_of(context.study)
    text = limit if limit != "params" else f"{ends['mtl'].params_m:.6f}M"
    budget = parse_budget(text, mtl=ends["mtl"], stl=ends["stl"])
    if limit == "params":
        budget = replace(budget, limit=0.6 * ends["mtl"].params)
    told: list[str] = []
    result = train_network(
        NetworkSpec("adashare", 0, 0, {"lambda_sparsity": 0.01}, budgets=(budget,)), context,
        out=tmp_path / "out", start=None, emit=lambda event: told.append(str(event)),
    )  # fmt: skip
    spent = {"macs": result.gflops * 0.5e9, "params": result.params_m * 1e6}
    assert spent[budget.measure] <= budget.limit * (1 + 1e-9)
    assert [line for line in told if "policy semseg " in line and " drawn, " in line]
    assert {"policy.sparsity", "policy.sharing", "selected.depth"} <= result.curves.keys()
    assert set(result.sharing) == {"semseg", "depth"}


@pytest.mark.slow("trains")
def test_a_given_policy_is_trained_for_all_epochs(tmp_path, data) -> None:
    context = opened(tmp_path, data, "training.epochs=2", *GIVEN)
    request = request_for(context)
    (phase,) = ADASHARE.phases(request)
    assert (phase.name, phase.span) == ("given", (0, 2))
    result = train_network(request.spec, context, out=tmp_path / "out", start=None,
                           emit=lambda event: None)  # fmt: skip
    assert result.epochs == 2
    assert result.params_m > 0


@pytest.mark.slow("trains")
def test_it_trains_under_a_weighting_of_gradients(tmp_path, data) -> None:
    context = opened(tmp_path, data, "training.epochs=4", "adashare.warmup=0.0")
    spec = NetworkSpec("adashare", 0, weighting="pcgrad")
    result = train_network(spec, context, out=tmp_path / "out", start=None, emit=lambda e: None)
    assert result.state == "complete"


@pytest.mark.slow("trains")
def test_a_weighting_that_looks_ahead_moves_what_learns_in_the_turn(tmp_path, data) -> None:
    overrides = ("adashare.warmup=0.0", "adashare.search=1.0", "training.epochs=1")
    context = open_context(
        residual(tmp_path, *overrides), data=data, stored=None, emit=lambda event: None
    )
    spec = NetworkSpec("adashare", 0, weighting="auto_lambda")
    result = train_network(spec, context, out=tmp_path / "out", start=None, emit=lambda event: None)
    # Two turns of one step each: Adam moves each weight by its rate, 1e-4, at most.
    for task in context.tasks:
        (weight,) = result.curves[f"weight.{task}"]
        assert 0 < abs(weight - 0.1) <= 2.1e-4


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("adashare.lambda_sharing=1e308", "less than or equal to 1000000"),
        ("adashare.policy_lr=1e308", "less than or equal to 1000000"),
        ("adashare.temperature=[1e-300, 1]", "greater than or equal to 0.000001"),
        ("search.lambda_sparsity=[1, 1e300]", r"positive range within \[1e-09, 1e\+06\]"),
    ],
)
def test_values_that_no_number_survives_are_refused(tmp_path, bad: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        check_study(residual(tmp_path, bad))
