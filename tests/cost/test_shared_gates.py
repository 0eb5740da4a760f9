"""Budgets, rounding, spread and alignment keep gates whole that several channels share."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatesearch.cost import (
    Budget,
    LatencyTable,
    PatternCost,
    align_tasks,
    count_macs,
    equalize_layer_shares,
    fit_latency,
    project,
    rounded,
)
from gatesearch.cost.events import ALL
from gatesearch.cost.projection import LEAST, _unit_prices, channel_price
from gatesearch.models import GatedSupernet
from gatesearch.models.channel_units import Units
from gatesearch.pruning import extract
from tests.models.test_shared_gates import SHAPE, supernet

Pattern = dict[str, Tensor]


def is_whole(values: Pattern, units: Units) -> bool:
    """Whether channels that share a gate have one value."""
    return all(
        len(x[:, torch.tensor(units[name]) == unit].unique(dim=1).T) == 1
        for name, x in values.items()
        for unit in set(units[name])
    )


@pytest.mark.slow("many networks")
@settings(max_examples=8, deadline=None)
@given(
    tasks=st.integers(1, 3),
    share=st.floats(0, 1),
    measure=st.sampled_from(["macs", "params"]),
    multiple=st.sampled_from([1, 4]),
    lean=st.floats(-2, 2),
    even=st.booleans(),
    align=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_projection_opens_whole_heads(
    tasks, share, measure, multiple, lean, even, align, seed
) -> None:
    model = supernet(tasks, seed, lean)
    cost = PatternCost.of(model, SHAPE)
    alpha = model.logits()
    least, most = (
        float(getattr(cost, measure)({n: torch.full(a.shape, on) for n, a in alpha.items()}))
        for on in (False, True)
    )
    budget = Budget("x", measure, least + share * (most - least))
    alpha = align_tasks(alpha, model.graph, model.units) if align else alpha
    alpha = equalize_layer_shares(alpha, cost, model.units) if even else alpha
    assert is_whole(alpha, model.units)
    gates = project(alpha, cost, [budget], multiple=multiple)
    assert is_whole(gates, model.units)
    model.set_gates(gates)
    counted = count_macs(extract(model), SHAPE, cross_check=False)
    assert budget.share(counted) == pytest.approx(float(cost.share(gates, [budget])))
    taken = budget.share(counted)
    assert taken <= 1
    if multiple == 1 and taken < LEAST:  # as near as heads allow: no other gate may open
        for name, task, channels in closed_gates(gates, model.units):
            more = {n: on.clone() for n, on in gates.items()}
            more[name][task, channels] = True
            share = float(cost.share(more, [budget]))
            assert share > 1 or share <= taken


def closed_gates(gates: Pattern, units: Units) -> list[tuple[str, int, Tensor]]:
    return [
        (name, task, torch.tensor(units[name]) == unit)
        for name, on in gates.items()
        for task in range(len(on))
        for unit in set(units[name])
        if not on[task, units[name].index(unit)]
    ]


def test_gates_for_channels_take_up_budgets_of_transformers() -> None:
    for seed in range(3):
        model = supernet(2, seed, granularity="conv")
        cost, alpha = PatternCost.of(model, SHAPE), model.logits()
        most = float(cost.macs({n: torch.ones_like(a) for n, a in alpha.items()}))
        budget = Budget("x", "macs", 0.8 * most)
        assert LEAST <= float(cost.share(project(alpha, cost, [budget]), [budget])) <= 1


def test_a_gate_costs_what_the_layer_before_it_does() -> None:
    """A linear layer of 8 inputs at 7 tokens, whatever norms, scales and sums follow it."""
    for granularity, node, inputs in (
        ("conv", "scale1", 8), ("conv", "gelu", 8), ("conv", "scale2", 16), ("block", "sum2", 16),
    ):  # fmt: skip
        cost = PatternCost.of(supernet(granularity=granularity), SHAPE)
        assert channel_price(cost, node) == 7 * inputs
    assert channel_price(cost, "places") == 6 * 3 * 4 * 4
    assert channel_price(cost, "map") == 1  # a norm over channels alone is free
    heads = PatternCost.of(supernet(), SHAPE)
    assert _unit_prices(heads, "qkv", 24) == [12 * 7 * 8] * 2


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_expected_cost_is_the_mean_over_drawn_heads(tasks: int, share: float) -> None:
    model = supernet(tasks)
    cost = PatternCost.of(model, SHAPE)
    torch.manual_seed(0)
    open_ = {n: torch.full((tasks, len(set(u))), share) for n, u in model.units.items()}
    for x in open_.values():
        x.requires_grad_()

    def of_channels(values: Pattern) -> Pattern:
        return {n: x[..., torch.tensor(model.units[n])] for n, x in values.items()}

    drawn = of_channels({n: x.detach().expand(4000, -1, -1).bernoulli() for n, x in open_.items()})
    apart = replace(cost, firsts=ALL)  # as if every channel had a gate of its own
    for measure in ("macs", "params"):
        costs = getattr(cost, measure)(drawn)
        assert torch.equal(costs, getattr(apart, measure)(drawn))
        expected = getattr(cost, measure)(of_channels(open_))
        assert expected.item() == pytest.approx(costs.mean().item(), rel=0.01)
    if tasks > 1 and share < 0.5:
        assert apart.macs(of_channels(open_)).item() > 1.05 * cost.macs(of_channels(open_)).item()
    expected.backward()
    assert all(x.grad.isfinite().all() for x in open_.values())


def test_rounding_leaves_heads_and_rounds_the_rest() -> None:
    model = supernet()
    gates = rounded(model.hard_gates(), model.logits(), multiple=4, units=model.units)
    assert torch.equal(gates["qkv"], model.hard_gates()["qkv"])
    assert all(int(n) % 4 == 0 for n in gates["mlp1"].sum(1))


def test_an_even_spread_opens_as_many_heads_as_channels() -> None:
    """Half of all gates are open, those of the first task; so is one of two heads."""
    model = supernet()
    alpha = {n: torch.linspace(1, 2, a.shape[1]).expand(a.shape) for n, a in model.logits().items()}
    alpha = {n: a * torch.tensor([[1], [-1]]) for n, a in alpha.items()}
    alpha["mlp1"] = -alpha["mlp1"]
    alpha["qkv"] = torch.tensor(model.units["qkv"]).float().expand(2, -1) + 1
    spread = equalize_layer_shares(alpha, None, model.units)
    assert is_whole(spread, model.units)
    share = float(torch.cat(list(alpha.values()), 1).gt(0)[1].float().mean())
    assert int((spread["qkv"][1] > 0).sum()) == 12 * round(2 * share)
    assert (spread["qkv"][1, 4:8] > 0).all()  # the head of the higher logits


def test_alignment_exchanges_heads_as_a_whole() -> None:
    model = supernet()
    with torch.no_grad():
        model.alpha["qkv"].copy_(torch.tensor([[3.0, -1.0], [-2.0, -4.0]]))
    aligned = align_tasks(model.logits(), model.graph, model.units)
    assert is_whole(aligned, model.units)
    assert aligned["qkv"][:, [0, 4]].tolist() == [[3.0, -1.0], [-2.0, -4.0]]
    with torch.no_grad():  # the second task's preference weighs more
        model.alpha["qkv"].copy_(torch.tensor([[1.0, 0.9], [-2.0, 4.0]]))
    aligned = align_tasks(model.logits(), model.graph, model.units)
    torch.testing.assert_close(aligned["qkv"][:, [0, 4]], torch.tensor([[0.9, 1.0], [-2.0, 4.0]]))


def test_latency_is_fitted_with_whole_heads() -> None:
    model = supernet()
    cost = replace(PatternCost.of(model, SHAPE), latency=table(model))
    ends = [
        float(cost.seconds({n: torch.full(a.shape, on) for n, a in model.logits().items()}))
        for on in (False, True)
    ]
    budget = Budget("x", "latency", sum(ends) / 2)
    gates = fit_latency(
        model.logits(), cost, [budget], measure=lambda g: 1.1 * float(cost.seconds(g))
    )
    assert is_whole(gates, model.units)
    assert 0.9 <= 1.1 * float(cost.seconds(gates)) / budget.limit <= 1


def table(model: GatedSupernet) -> LatencyTable:
    """A nanosecond for each output channel."""
    nodes = model.graph.nodes
    return LatencyTable(
        convs={n.name: ((n.outputs, 1e-9 * n.outputs),) for n in model.graph.weighted_nodes},
        elements={n.name: 1e-9 for n in nodes if not n.has_weights and n.routes is None},
        mixes=dict.fromkeys(model.mixed, 0.0),
        heads=0.0,
        ends=(0.0, 0.0),
    )
