"""The method: phases, points within budgets, refusals, and a whole run of a tiny study."""

import math

import pytest
import torch
from safetensors.torch import load_file

from gatesearch.cost import Budget, count_macs, parse_budget
from gatesearch.errors import UsageError
from gatesearch.methods import NetworkSpec, TrainingRequest, build_model, check_study, start_of
from gatesearch.methods.base import Context, TrainedNetwork
from gatesearch.methods.dymu.method import DYMU, phases, supernet
from gatesearch.methods.dymu.points import Point, preference_of
from gatesearch.methods.dymu.preferred import DRAWN_PREFERENCE, fixed_preference
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.dymu.tree_cost import TreeCost
from gatesearch.pruning import load_compact
from gatesearch.search.run import run
from gatesearch.search.setup import ExecutionOptions, check_run
from gatesearch.study import Study
from gatesearch.training.weightings import Basis
from gatesearch.training.weightings.weighting import TrainingView
from gatesearch.trials.context import open_context
from gatesearch.trials.costs import costs
from tests.methods.toys import ends_of, scattered
from tests.search.tiny import epochs_of, ignore, residual

QUICK = ('tune=["dymu"]', "dymu.patterns=14", "dymu.statistics=4", "dymu.frames=6")


@pytest.fixture(scope="module")
def context(tmp_path_factory, data) -> Context:
    study = check_study(residual(tmp_path_factory.mktemp("study"), *QUICK, "model.width=0.125"))
    return open_context(study, data=data, stored=None, emit=ignore)


def trained(study: Study) -> DymuNet:
    """A supernet with weights, edges and shifts that are told apart."""
    net = scattered(build_model(study, "dymu"))
    assert isinstance(net, DymuNet)
    with torch.no_grad():
        for weights in (*net.edges.parameters(), *net.weights.parameters()):
            weights.normal_(std=0.1)
    return net.eval()


def request_of(context: Context, net: DymuNet, **spec: object) -> TrainingRequest:
    trial = NetworkSpec("dymu", context.study.seed, 0, **spec)
    return TrainingRequest(trial, context, net.state_dict, ignore)


def point(semseg: float, depth: float, cost_weight: float) -> dict[str, float]:
    return {"prefer.semseg": semseg, "prefer.depth": depth, "cost_weight": cost_weight}


def test_trials_start_from_the_supernet_and_it_from_single_task_networks(tmp_path) -> None:
    study = check_study(residual(tmp_path))
    trial = NetworkSpec("dymu", 3, 0)
    start = start_of(trial, study)
    assert start == NetworkSpec("dymu", 3, part="supernet")
    assert start_of(start, study) == NetworkSpec("stl", 3)


def test_only_ratios_of_preferences_count() -> None:
    tasks = ("semseg", "depth")
    assert preference_of(point(0.2, 0.6, 0), tasks) == pytest.approx([0.25, 0.75])
    assert preference_of(point(0.0, 0.0, 0), tasks) == [0.5, 0.5]


def test_losses_are_weighted_by_preferences(context) -> None:
    basis = Basis({"semseg": 2.0, "depth": 3.0})
    # ω_t T r_t = 2 x 2 x 0.25 and 3 x 2 x 0.75
    assert fixed_preference([0.25, 0.75]).build(basis).weights.tolist() == [1.0, 4.5]
    net = trained(context.study)
    net.draws.preference.copy_(torch.tensor([1.0, 0.0]))
    weighting = DRAWN_PREFERENCE.build(basis)
    with weighting.attached(TrainingView(net, None)):
        weighting.before_step(losses=None, held_out=None)
        assert weighting.weights.tolist() == [4.0, 0.0]


def test_steps_draw_anew_and_the_temperature_falls(context) -> None:
    net = trained(context.study)
    supernet_spec = NetworkSpec("dymu", 0, part="supernet")
    edges, weights = phases(TrainingRequest(supernet_spec, context, None, ignore))
    assert (edges.span, weights.span) == ((0, 1), (1, 2))
    hooks, seen = edges.hooks(net), []
    for share in (0.0, 0.5, 0.999):
        hooks.before_step(share)
        seen.append((net.temperature, net.draws.cost.item()))
    assert [t for t, _ in seen] == pytest.approx([5.0, math.sqrt(0.5), 0.1], rel=1e-2)
    assert len({c for _, c in seen}) == 3
    penalty = hooks.penalty(None, {})
    assert penalty.requires_grad
    assert penalty.item() > 0
    assert set(hooks.observe(1)) == {"tree_gflops.c0", "tree_gflops.c1"}
    weights.hooks(net).before_step(0.0)
    assert net.temperature == 0


def test_a_step_s_cost_is_that_of_the_streams_it_computes(context) -> None:
    net, ends = trained(context.study), ends_of(context.study)
    spec = NetworkSpec("dymu", 0, part="supernet")
    edges, weights = phases(TrainingRequest(spec, context, None, ignore))
    # six frames for the affinity once, three passes for each of the epoch's six frames
    assert edges.forward_gflops(net) == pytest.approx(ends["stl"].gflops * (1 + 6 / 18))
    weights.begin(TrainedNetwork(net))
    assert ends["mtl"].gflops < weights.forward_gflops(net) < ends["stl"].gflops
    # A training that goes on knows the cost before it has read the weights that decide it.
    stl = build_model(context.study, "stl").state_dict()
    _, weights = phases(TrainingRequest(spec, context, lambda: stl, ignore))
    assert weights.rebuild(weights.describe(net)).mean_gflops == net.mean_gflops


@pytest.mark.parametrize("text", ["1xMTL", "1.3xMTL", "1.6xMTL", "0.9xSTL"])
def test_the_network_of_a_trial_keeps_to_its_budgets(context, text: str) -> None:
    ends, net = ends_of(context.study), trained(context.study)
    budget = parse_budget(text, mtl=ends["mtl"], stl=ends["stl"])
    half = 0.5 * (ends["mtl"].params + ends["stl"].params)
    for budgets in ((budget,), (budget, Budget("half", "params", half))):
        request = request_of(context, net, params=point(0.3, 0.6, 0.0), budgets=budgets)
        (tree,) = phases(request)
        found = tree.begin(None)
        cost = count_macs(found.module, context.input_shape, cross_check=False)
        assert all(limit.share(cost) <= 1 for limit in budgets)
        assert found.layers == tuple(block.name for block in net.blocks)
        assert set(found.sharing) == {"semseg", "depth"}
        if len(budgets) == 1:
            largest = max(TreeCost.of(net, context.input_shape).block_macs)
            assert cost.macs > budget.limit - largest, "nearer than one block"


def test_the_preferred_task_keeps_a_stream_of_its_own_longest(context) -> None:
    net = build_model(context.study, "dymu").eval()  # equal scores of all tasks
    size = context.study.protocol.size
    for prefer, stream in (((0.9, 0.1), 0), ((0.1, 0.9), 1)):
        tree = Point(net, point(*prefer, 1.0), size).tree
        assert tree.nodes == ((stream,),) * len(net.blocks)


@pytest.mark.slow("measures networks")
def test_measuring_a_point_leaves_the_supernet_as_it_is(context) -> None:
    net, ends = trained(context.study), ends_of(context.study)
    budget = parse_budget("0.8xSTL", mtl=ends["mtl"], stl=ends["stl"])
    offered = supernet(request_of(context, net), (budget,))
    assert (offered.patterns, offered.most_patterns) == (14, 14)
    metrics, macs = offered.measure(point(1.0, 0.2, 0.4))
    other, cheapest = offered.measure(point(0.2, 1.0, 1.0))
    assert offered.measure(point(1.0, 0.2, 0.4)) == (metrics, macs)
    assert metrics.keys() == {"semseg", "depth"}
    assert other != metrics
    assert offered.cost(point(1.0, 0.2, 0.4)) == (macs, macs / budget.limit)
    assert cheapest == ends["mtl"].macs
    same = [offered.network(point(*prefer, 0.4)) for prefer in ((0.3, 0.1), (0.9, 0.3))]
    assert same[0] == same[1] != offered.network(point(0.9, 0.3, 0.5))


def test_what_it_cannot_do_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match='start must be "stl", found "study"'):
        DYMU.check(check_study(residual(tmp_path, "options.dymu.start=study")), ())
    DYMU.check(check_study(residual(tmp_path, "options.dymu.start=stl")), ())
    with pytest.raises(UsageError, match="cost of 'dymu' is not known before it is trained"):
        costs(check_study(residual(tmp_path)), ("dymu",))
    with pytest.raises(UsageError, match=r"options\.dymu:\s+threshold"):
        check_study(residual(tmp_path, "dymu.threshold=1.5"))
    many = [f"tasks.t{i}={{kind='depth',label='depth'}}" for i in range(16)]
    with pytest.raises(UsageError, match=r"2,048 edges.*found 18 tasks and 9 blocks, 2,916"):
        check_run(residual(tmp_path, *QUICK, *many), (), ExecutionOptions())
    with pytest.raises(UsageError, match="bounds latency, and a network of 'dymu'"):
        check_run(residual(tmp_path, *QUICK), ("9ms",), ExecutionOptions())


@pytest.mark.slow("whole run")
def test_one_supernet_serves_all_budgets(tmp_path, data) -> None:
    out, events = tmp_path / "out", []
    study = residual(tmp_path, *QUICK, "training.epochs=4", "dymu.finetune=0.25")
    options = {"out": out, "data": data, "emit": events.append}
    record = run(study, n_trials=2, budgets=["1.5xMTL"], **options)
    assert [e for e in epochs_of(events) if e[0] not in ("stl", "mtl")] == [
        *(("supernet of dymu", epoch) for epoch in (1, 2, 3)), ("trial 0", 4), ("trial 1", 4),
    ]  # fmt: skip
    (start,) = record.starts
    assert start.part == "supernet"
    assert not start.metrics
    ends = costs(study, ("mtl", "stl"))
    stl = next(result for result in record.baselines if result.method == "stl")
    assert start.reused_pflops == stl.train_pflops > 0
    for trial in record.trials:
        assert set(trial.params) == {"prefer.semseg", "prefer.depth", "cost_weight"}
        assert ends["mtl"].gflops <= trial.gflops <= 1.5 * ends["mtl"].gflops
        assert trial.reused_pflops == start.train_pflops < trial.train_pflops
        assert trial.epochs == 4
        assert len(trial.layers) == 9
    kept = load_compact(out / "trials" / "0000" / "model")
    assert sum(p.numel() for p in kept.parameters()) == pytest.approx(
        1e6 * record.trials[0].params_m
    )
    state = load_file(out / "starts" / "dymu-supernet-seed0" / "model.safetensors")
    assert int(state["draws.count"]) == 6, "once for each of the two steps of three epochs"
    net = build_model(study, "dymu")
    net.load_state_dict(state)
    anchor = load_file(out / "baselines" / "stl-seed0" / "model.safetensors")
    weights = {name: t for name, t in anchor.items() if name.endswith(("conv.weight", "bn.weight"))}
    for name, tensor in weights.items():
        ours = name.replace("encoders.", "streams.", 1)
        assert torch.equal(state[ours], tensor), "the anchor network is frozen"
    before = len(events)
    more = run(study, n_trials=1, budgets=["0.9xSTL"], **options)
    assert not [e for e in epochs_of(events[before:]) if e[0] == "supernet of dymu"]
    assert more.trials[-1].gflops <= 0.9 * ends["stl"].gflops


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("dymu.concentration=1e308", "less than or equal to 1000000"),  # preferences would sum to 0
        ("dymu.lr=1e308", "less than or equal to 1000000"),
        ("dymu.active=1e308", "less than or equal to 1000000"),
        ("dymu.temperature=[1, 1e-300]", "greater than or equal to 0.000001"),
    ],
)
def test_values_that_no_number_survives_are_refused(tmp_path, bad: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        check_study(residual(tmp_path, bad))
