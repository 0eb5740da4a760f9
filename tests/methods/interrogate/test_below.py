"""Budgets below the multi-task network's cost: channels that nobody keeps leave the network."""

import json
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from gatesearch.cost import Budget, PatternCost, count_macs, parse_budget, project
from gatesearch.cost.narrowing import NarrowCost
from gatesearch.errors import UsageError
from gatesearch.methods import METHODS, Context, NetworkSpec, TrainingRequest, check_study
from gatesearch.methods.interrogate.below import kept_within, least_cost
from gatesearch.methods.interrogate.ranking import RankedNet, ranking_hooks
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.mtl_at import mtl_parts_at
from gatesearch.models import GatedSupernet, parts_of
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.models.narrowing import groups_of, narrowed_parts
from gatesearch.pruning import extract
from gatesearch.search.setup import parse_budgets
from gatesearch.tasks import build_tasks
from gatesearch.training import Runtime
from tests.methods.toys import assert_same_outputs, ends_of, parts, random_image, scattered
from tests.search.tiny import tiny

WIDE = ("model.width=0.25", "training.epochs=4")
PARAMS = {"lambda_s": 2.0, "tau.semseg": 0.25, "tau.depth": 0.5}
CPU = Runtime(device="cpu", precision="fp32", memory_format="nchw")


def request_for(tmp_path, text: str, *overrides: str, start=None) -> TrainingRequest:
    """A request for a trial under a budget, without data."""
    study = check_study(tiny(tmp_path, *WIDE, *overrides))
    ends = ends_of(study)
    budget = parse_budget(text, cheapest={"x": least_cost(study)}, **ends)
    context = Context(study, build_tasks(study.tasks), None, None, None, CPU, {})
    spec = NetworkSpec("interrogate", 0, trial=0, params=PARAMS, budgets=(budget,))
    state = None if start is None else (lambda: start)
    return TrainingRequest(spec, context, state, lambda event: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1xMTL", [("gates", (0, 4)), ("compact", (4, 4))]),
        ("0.99xMTL", [("ranking", (0, 1)), ("gates", (1, 4)), ("compact", (4, 4))]),
    ],
)
def test_only_budgets_below_mtl_have_a_phase_more(tmp_path, text, expected) -> None:
    phases = METHODS["interrogate"].phases(request_for(tmp_path, text))
    assert [(phase.name, phase.span) for phase in phases] == expected


def test_importance_is_the_slope_of_the_loss_in_a_group() -> None:
    """Against a derivative by finite differences of what every reader of the group sees."""
    torch.set_default_dtype(torch.float64)
    try:
        whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.0625))
        groups = groups_of(whole)
        network = scattered(RankedNet(whole, groups.count)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    image = random_image(64).double()
    hooks = ranking_hooks(network, whole, groups)

    def loss() -> Tensor:
        return torch.stack([x.square().mean() for x in network(image).values()]).sum()

    hooks.before_step(0.0)
    loss().backward()
    hooks.after_step()
    # conv2 of a block alone reads this group: a factor on its column is one on the channel.
    group = groups.numbers["layer2.1.conv1"][3]
    column = network.encoder.layer("layer2.1.conv2").conv.weight.data[:, 3]
    found, step = [], 1e-3  # heads give float32
    for sign in (1, -1):
        kept = column.clone()
        column *= 1 + sign * step
        with torch.no_grad():
            found.append(float(loss()))
        column.copy_(kept)
    assert float(network.importance[group]) == pytest.approx(
        abs(found[0] - found[1]) / (2 * step), rel=0.02
    )
    heads = network.importance[groups.numbers["layer4.1"]]
    assert (heads > 0).all()


def pattern_cost_within(
    whole: Parts, size: tuple[int, int], budget: Budget, seed: int
) -> PatternCost:
    """Cost of the patterns of a trial under a budget, with random importance."""
    cost = NarrowCost(whole, size)
    if budget.share(cost.of(np.ones(cost.groups.count, dtype=bool))) > 1:
        worth = np.random.default_rng(seed).random(cost.groups.count)
        kept = kept_within(cost, worth, [budget], shared=0.8)
        whole = narrowed_parts(whole, cost.groups, kept)
    with torch.device("meta"):
        supernet = GatedSupernet(whole)
    return PatternCost.of(supernet, (1, 3, *size))


def shares_of_random_budgets(graph: Graph, size: tuple[int, int], count: int) -> list[float]:
    """What is taken of random budgets from 0.25xMTL to 1xSTL, by extracted networks' cost."""
    heads = {task: HeadSpec("light", graph.outputs, 16, n) for task, n in (("a", 5), ("b", 1))}
    whole = Parts(graph, heads)
    ends = pattern_cost_within(whole, size, Budget("x", "macs", 1e15), 0)
    gates = {name: torch.zeros(2, graph.channels(name)) for name in ends.gated}
    mtl = float(ends.macs(gates))
    stl = float(ends.macs({name: on + 1 for name, on in gates.items()}))
    draw, shares = random.Random(0), []
    for seed in range(count):
        budget = Budget("x", "macs", draw.uniform(0.25 * mtl, stl))
        cost = pattern_cost_within(whole, size, budget, seed)
        generator = torch.Generator().manual_seed(seed)
        alpha = {
            name: torch.randn(2, cost.graph.channels(name), generator=generator)
            for name in cost.gated
        }
        pattern = project(alpha, cost, [budget])
        shares.append(float(cost.share(pattern, [budget])))
    return shares


@pytest.mark.slow("projects patterns")
def test_budgets_are_used_up() -> None:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.25)
    shares = shares_of_random_budgets(graph, (64, 64), 3)
    assert min(shares) >= 0.98
    assert max(shares) <= 1


@pytest.mark.slow("imports a network")
def test_so_are_those_of_an_imported_network() -> None:
    pytest.importorskip("timm", reason="networks of timm need pip install 'gatesearch[timm]'")
    from gatesearch.models.imported import import_backbone

    graph = import_backbone("timm:mobilenetv3_small_100", (64, 64), None).graph
    shares = shares_of_random_budgets(graph, (64, 64), 2)
    assert min(shares) >= 0.98
    assert max(shares) <= 1


@pytest.mark.slow("extracts a network")
def test_a_trial_narrows_learns_gates_and_keeps_to_its_budget(tmp_path) -> None:
    request = request_for(tmp_path, "0.5xMTL")
    ranking, gates, compact = METHODS["interrogate"].phases(request)
    before = ranking.begin(None)
    scattered(before.module)
    before.module.importance.uniform_()
    narrowed = gates.begin(before)
    supernet = narrowed.module
    # All streams start from what was ranked, less the channels that went.
    image = random_image(16)
    closed = supernet.eval().plain(image, own=False)
    for task, prediction in supernet.plain(image, own=True).items():
        torch.testing.assert_close(prediction, closed[task])
    hooks = gates.hooks(supernet.train())
    hooks.penalty(image, supernet(image)).backward()
    assert 0 < hooks.observe(1)["open.semseg"] <= 1
    network = compact.begin(narrowed).module
    cost = count_macs(network, (1, 3, 16, 16), cross_check=False)
    assert 0.98 <= request.spec.budgets[0].share(cost) <= 1
    assert_same_outputs(network, supernet, image)
    assert 2e-9 * cost.macs == pytest.approx(gates.current_gflops(supernet)())
    # A training that goes on builds the same shape again.
    described = json.loads(json.dumps(gates.describe(supernet)))
    (_, again, _) = METHODS["interrogate"].phases(request)
    rebuilt = again.rebuild(described)
    rebuilt.load_state_dict(supernet.state_dict())
    assert again.describe(rebuilt) == described
    assert_same_outputs(extract(rebuilt), network, image)


def test_a_warm_up_goes_on_as_the_ranked_network(tmp_path) -> None:
    overrides = ("interrogate.warmup=0.5",)
    study = tiny(tmp_path, *WIDE, *overrides)
    state = scattered(MultiTaskNet(parts_of(study))).state_dict()
    request = request_for(tmp_path, "0.5xMTL", *overrides, start=state)
    phases = METHODS["interrogate"].phases(request)
    assert [(phase.name, phase.span) for phase in phases] == [
        ("ranking", (2, 3)), ("gates", (3, 4)), ("compact", (4, 4))
    ]  # fmt: skip
    ranked = phases[0].begin(None).module
    for name, tensor in ranked.multi_task_state().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.slow("counts costs")
def test_budgets_reach_down_to_the_narrowest_network(tmp_path) -> None:
    study = check_study(tiny(tmp_path, *WIDE))
    least = least_cost(study)
    (budget,) = parse_budgets(study, (f"{1.01 * least.gflops:.9f}G",))
    assert mtl_parts_at(study, budget).cost.macs <= budget.limit
    with pytest.raises(UsageError, match=r"out of reach: .* GFLOPs \(interrogate\) to .* \(stl\)"):
        parse_budgets(study, (f"{0.99 * least.gflops:.9f}G",))
    network = MultiTaskNet(mtl_parts_at(study, budget).parts)
    assert network(random_image(16)).keys() == study.tasks.keys()


def test_the_one_shot_form_says_why_it_stops_at_mtl(tmp_path) -> None:
    study = check_study(tiny(tmp_path, *WIDE, 'tune=["one_shot"]'))
    with pytest.raises(UsageError, match=r"one supernet for all budgets .* found 0.5xMTL"):
        METHODS["one_shot"].check(study, ("0.5xMTL",))


def test_a_budget_below_the_narrowest_is_refused() -> None:
    whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.25))
    cost = NarrowCost(whole, (32, 32))
    with pytest.raises(UsageError, match="at least what the narrowest network costs, found"):
        kept_within(cost, np.ones(cost.groups.count), [Budget("1K", "macs", 1e3)], shared=0.8)
