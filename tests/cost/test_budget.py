"""Budgets as a user writes them, and gates projected into them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import (
    Budget,
    Cost,
    PatternCost,
    align_tasks,
    count_macs,
    equalize_layer_shares,
    macs_of_tasks,
    measure_of,
    name_of,
    parse_budget,
    project,
)
from gatesearch.cost.budget import task_of
from gatesearch.errors import UsageError
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT, Add, Conv
from gatesearch.pruning import extract
from tests.pruning.test_extract import parts

MTL = Cost(macs=300 * 10**9, backbone_macs=0, params=10 * 10**6)
STL = Cost(macs=500 * 10**9, backbone_macs=0, params=30 * 10**6)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("892G", Budget("892G", "macs", 446e9)),
        (" 892 GFLOPs", Budget("892GFLOPs", "macs", 446e9)),
        ("446gmac", Budget("446gmac", "macs", 446e9)),
        ("20M", Budget("20M", "params", 20e6)),
        ("1.3xMTL", Budget("1.3xMTL", "macs", 390e9)),
        ("0.80XSTL", Budget("0.8xSTL", "macs", 400e9)),
        ("1xSTL", Budget("1xSTL", "macs", 500e9)),
        ("1xmtl", Budget("1xMTL", "macs", 300e9)),
        ("12 ms", Budget("12ms", "latency", 0.012)),
        ("0.05s", Budget("0.05s", "latency", 0.05)),
        ("depth:0.60xSTL", Budget("depth:0.6xSTL", "macs", 300e9, "depth")),
        (" my task : 500 GMAC", Budget("my task:500GMAC", "macs", 500e9, "my task")),
    ],
)
def test_forms(text: str, budget: Budget) -> None:
    alone = {"depth": 200e9, "my task": 250e9}
    assert parse_budget(text, mtl=MTL, stl=STL, latency=(0.01, 0.05), alone=alone) == budget
    assert (measure_of(text), task_of(text)) == (budget.measure, budget.task)


@pytest.mark.parametrize(
    "text",
    ["", "892", "G", "-3G", "1,3xMTL", "12us", "3 parsecs", "1.3xMTAN", ":3G", "depth:", "depth:3"],
)
def test_no_budget(text: str) -> None:
    for read in (measure_of, lambda text: parse_budget(text, mtl=MTL, stl=STL)):
        with pytest.raises(UsageError, match="a budget must be a number with a unit, such as 892G"):
            read(text)


def test_a_latency_needs_measured_networks() -> None:
    with pytest.raises(UsageError, match="found '12ms' where nothing is measured; bound FLOPs"):
        parse_budget("12ms", mtl=MTL, stl=STL)
    budget = parse_budget("12ms", mtl=MTL, stl=STL, latency=(0.01, 0.05))
    assert budget.share(MTL, seconds=0.009) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="budget 12ms bounds latency; found none"):
        budget.share(MTL)


def test_a_budget_of_one_task_is_a_share_of_what_it_costs_alone() -> None:
    budget = parse_budget("depth:0.6xSTL", mtl=MTL, stl=STL, alone={"depth": 1.0})
    assert budget.share(replace(MTL, task_macs={"depth": 240 * 10**9})) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="bounds what depth costs alone; found no such figure"):
        budget.share(MTL)


@pytest.mark.parametrize(
    ("text", "alone", "message"),
    [
        ("dept:20G", {"depth": 1.0}, "unknown task 'dept'; did you mean 'depth'"),
        ("depth:20M", {"depth": 1.0}, "of one task bounds its FLOPs, .*0.6xSTL, found 'depth:20M'"),
        ("depth:9ms", {"depth": 1.0}, "of one task bounds its FLOPs, .* found 'depth:9ms'"),
        ("depth:1G", {"depth": 1e9}, r"from 2 GFLOPs \(mtl, depth alone\) to 1000 GFLOPs \(stl"),
        ("depth:1xMTL", None, "bounds what one task costs, and .* budgets of all tasks here"),
    ],
)
def test_budgets_of_one_task_that_cannot_be(text, alone, message) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(text, mtl=MTL, stl=STL, alone=alone)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("599G", r"599 GFLOPs, out of reach: .* from 600 GFLOPs \(mtl\) to 1000 GFLOPs \(stl\)"),
        ("1.1xSTL", "1100 GFLOPs, out of reach"),
        ("0G", "0 GFLOPs, out of reach"),
        ("1e999G", "inf GFLOPs, out of reach"),
        ("9ms", r"9 ms, out of reach: .* from 10 ms \(mtl\) to 50 ms \(stl\)"),
        ("0.1s", "0.1s is 100 ms, out of reach"),
        ("31M", r"from 10 M parameters \(mtl\) to 30 M parameters \(stl\)"),
    ],
)
def test_out_of_reach(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(text, mtl=MTL, stl=STL, latency=(0.01, 0.05))


def test_the_name_of_several_does_not_depend_on_their_order() -> None:
    one, two = (parse_budget(text, mtl=MTL, stl=STL) for text in ("892G", "20M"))
    assert name_of([one, two]) == name_of([two, one, one]) == "20M+892G"
    assert name_of([]) == ""


@pytest.mark.slow("many networks")
@settings(max_examples=6, deadline=None)
@given(
    granularity=st.sampled_from(["conv", "block"]),
    share=st.floats(0, 1),
    measure=st.sampled_from(["macs", "params"]),
    lean=st.floats(-2, 2),
    even=st.booleans(),
    align=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_projection_takes_a_budget_up(granularity, share, measure, lean, even, align, seed) -> None:
    graph = BACKBONES["resnet18"](output_stride=8, width=0.2)
    model = GatedSupernet(parts(graph), granularity=granularity)
    shape = (1, 3, 40, 56)
    cost = PatternCost.of(model, shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for alpha in model.alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=generator) + lean)
    ends = [
        {name: torch.full_like(alpha, value) for name, alpha in model.logits().items()}
        for value in (0.0, 1.0)
    ]
    least, most = (float(getattr(cost, measure)(gates)) for gates in ends)
    budget = Budget("x", measure, least + share * (most - least))
    alpha = align_tasks(model.logits(), graph) if align else model.logits()
    alpha = equalize_layer_shares(alpha, cost) if even else alpha
    model.set_gates(project(alpha, cost, [budget]))
    counted = count_macs(extract(model), shape, cross_check=False)
    assert 0.98 <= budget.share(counted) <= 1


def test_projection_leaves_gates_alone_that_are_inside() -> None:
    model = GatedSupernet(parts(BACKBONES["resnet18"](output_stride=32, width=0.1)))
    cost = PatternCost.of(model, (1, 3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in model.alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    learned = model.hard_gates()
    macs = float(cost.macs(learned))
    for limit in (macs, macs / 0.99):
        gates = project(model.logits(), cost, [Budget("x", "macs", limit)])
        assert all(torch.equal(gates[name], learned[name]) for name in learned)
    # what is closed for a tighter one are the gates of least logit a multiply-add
    tight = project(model.logits(), cost, [Budget("x", "macs", 0.9 * macs)])
    assert all(not (tight[name] & ~learned[name]).any() for name in learned)
    ratio = {n: a.detach().double() / cost.macs_per_channel[n] for n, a in model.logits().items()}
    kept = min(float(ratio[n][tight[n]].min()) for n in learned if tight[n].any())
    closed = {n: learned[n] & ~tight[n] for n in learned}
    lost = max(float(ratio[n][closed[n]].max()) for n in learned if closed[n].any())
    assert lost <= kept


def test_an_even_spread_by_hand() -> None:
    # The first task has half of its gates open, the second a third of them.
    alpha = {
        "wide": torch.tensor([[3.0, 1.0, 2.0, -9.0], [-1.0, 5.0, -2.0, -3.0]]),
        "thin": torch.tensor([[-1.0, -2.0], [0.5, -0.5]]),
    }
    opened = {name: (a > 0).tolist() for name, a in equalize_layer_shares(alpha, None).items()}
    assert opened == {
        "wide": [[True, False, True, False], [False, True, False, False]],
        "thin": [[True, False], [True, False]],
    }


def test_an_even_spread_stays_even_within_a_budget() -> None:
    model = GatedSupernet(parts(BACKBONES["resnet18"](output_stride=32, width=0.25)))
    cost = PatternCost.of(model, (1, 3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in model.alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
            alpha[1] += 0.7
    macs = float(cost.macs(model.hard_gates()))
    gates = project(
        equalize_layer_shares(model.logits(), cost), cost, [Budget("x", "macs", 0.8 * macs)]
    )
    counts = torch.stack([on.sum(1) for on in gates.values()])
    widths = torch.tensor([on.shape[1] for on in gates.values()])[:, None]
    common = counts.sum(0) / widths.sum()
    assert ((counts - common * widths).abs() <= 1).all()
    assert common[1] > common[0]


def test_aligned_gates_by_hand() -> None:
    graph = Graph(
        (
            Conv("stem", INPUT, 3, 3, 3),
            Conv("one", "stem", 3, 4, 3),
            Conv("two", "one", 4, 3, 3),
            Add("sum", "two", "stem", 3),
        ),
        stride=1,
    )
    alpha = {
        "stem": torch.tensor([[9.0, -9.0, -9.0], [-9.0, -9.0, 1.0]]),
        "one": torch.tensor([[-1.0, -2.0, 3.0, -3.0], [1.0, 1.5, 3.0, 4.0]]),
        "two": torch.tensor([[9.0, 8.0, -9.0], [9.0, -9.0, 7.0]]),
    }
    # Σ σ(α) of stem and two, which meet in the sum: 3.0, 1.0, 1.7; of one: 1.0, 0.9, 1.9, 1.03.
    found = {name: a.tolist() for name, a in align_tasks(alpha, graph).items()}
    assert found == {
        "stem": [[9.0, -9.0, -9.0], [1.0, -9.0, -9.0]],
        "one": [[-2.0, -3.0, 3.0, -1.0], [1.5, 1.0, 4.0, 3.0]],
        "two": [[9.0, -9.0, 8.0], [9.0, -9.0, 7.0]],
    }


@pytest.mark.parametrize("granularity", ["conv", "block"])
def test_aligned_gates_cost_less_for_the_same_shares(granularity) -> None:
    graph = BACKBONES["resnet18"](output_stride=8, width=0.25)
    model = GatedSupernet(parts(graph), granularity=granularity)
    cost = PatternCost.of(model, (1, 3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in model.alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    patterns = []
    for alpha in (model.logits(), align_tasks(model.logits(), graph)):
        model.set_gates({name: a > 0 for name, a in equalize_layer_shares(alpha, None).items()})
        patterns.append((model.hard_gates(), extract(model)))
    (before, plain), (after, tidy) = patterns
    assert all(torch.equal(before[name].sum(1), after[name].sum(1)) for name in before)
    assert float(cost.macs(after)) < 0.95 * float(cost.macs(before))
    for group in graph.coupled_channel_groups():
        # of any two rows of a residual stream one is part of the other
        rows = [row for name in after if name in group for row in after[name]]
        assert all(bool((a & b).eq(a).all() or (a & b).eq(b).all()) for a in rows for b in rows)
    pieces = [
        sum(len(source) for step in network.description.steps for source in step.sources)
        for network in (plain, tidy)
    ]
    assert pieces[1] < 0.9 * pieces[0]


def test_projection_into_less_than_all_gates_closed_is_refused() -> None:
    model = GatedSupernet(parts(BACKBONES["resnet18"](output_stride=32, width=0.1)))
    cost = PatternCost.of(model, (1, 3, 32, 32))
    least = float(cost.macs({name: torch.zeros_like(a) for name, a in model.logits().items()}))
    with pytest.raises(UsageError, match="found x, of which they take 2; raise the budget"):
        project(model.logits(), cost, [Budget("x", "macs", least / 2)])


def blocks() -> Graph:
    """A stem, two blocks of a sum each, and the end; gates for whole blocks mix at three places."""
    nodes = [Conv("stem", INPUT, 3, 8, 3)]
    for i in range(3):
        before = nodes[-1].name
        nodes += [
            Conv(f"conv{i}", before, 8, 8, 3, relu=False),
            Add(f"sum{i}", f"conv{i}", before, 8),
        ]
    return Graph(tuple(nodes), stride=1)


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(
    ("whole", "own"), [(2.0, 1.2), (1.5, 3.0), (None, 1.3)], ids=["task", "all", "task alone"]
)
def test_projection_keeps_to_budgets_of_one_task(whole, own, multiple) -> None:
    model = GatedSupernet(parts(blocks(), 2))
    cost = PatternCost.of(model, (1, 3, 8, 8), tasks=["a"])
    with torch.no_grad():
        for index, alpha in enumerate(model.alpha.values()):
            generator = torch.Generator().manual_seed(index)
            alpha.copy_(torch.randn(alpha.shape, generator=generator) + 1)
    closed = {name: torch.zeros_like(alpha) for name, alpha in model.logits().items()}
    least = float(cost.alone["a"].macs(closed))
    budgets = [Budget("a", "macs", own * least, "a")]
    budgets += [] if whole is None else [Budget("x", "macs", whole * float(cost.macs(closed)))]
    learned = float(cost.share({n: a > 0 for n, a in model.logits().items()}, budgets))
    assert learned > 1 or (whole, own) == (1.5, 3.0)
    model.set_gates(project(model.logits(), cost, budgets, multiple=multiple))
    gates = model.hard_gates()
    compact = extract(model)
    counted = count_macs(compact, (1, 3, 8, 8), cross_check=False)
    alone = macs_of_tasks(compact, (1, 3, 8, 8), whole=counted.macs)
    assert alone["a"] == int(cost.alone["a"].macs(gates)) <= own * least
    assert all(b.share(replace(counted, task_macs=alone)) <= 1 for b in budgets)
    if whole == 1.5:
        assert budgets[1].share(counted) >= 0.9


def test_the_hinge_of_one_task_by_its_own_cost() -> None:
    model = GatedSupernet(parts(blocks(), 2))
    cost = PatternCost.of(model, (1, 3, 8, 8), tasks=["b"])
    opened = {name: torch.ones_like(alpha) for name, alpha in model.logits().items()}
    own = float(cost.alone["b"].macs(opened))
    assert own < 0.6 * float(cost.macs(opened))
    hinge = cost.budget_hinge(opened, [Budget("b:1G", "macs", own / 1.25, "b")])
    assert float(hinge) == pytest.approx(0.25)
