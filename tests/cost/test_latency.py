"""Latency of patterns from a table, and gates fitted to what is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatesearch.cost import (
    Budget,
    LatencyTable,
    PatternCost,
    fit_latency,
    measure_layers,
    median_latency,
)
from gatesearch.cost.live import distinct_elements
from gatesearch.errors import UsageError
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.nodes import AddStep, PoolStep
from gatesearch.pruning import extract
from gatesearch.training import Runtime
from tests.cost.test_pattern import chain
from tests.pruning.test_extract import parts, put

SHAPE = (1, 3, 32, 32)
CHAIN = LatencyTable(
    convs={"one": ((1, 2.0), (2, 3.0)), "two": ((2, 4.0),)},
    elements={},
    mixes={"one": 0.5},
    heads=1.0,
    ends=(0.0, 0.0),
    scale=2.0,
)


def test_a_table_by_hand() -> None:
    cost = replace(chain()[1], latency=CHAIN)
    closed, opened = torch.zeros(2, 2), torch.ones(2, 2)
    a_owns, a_owns_one = (torch.tensor([[1.0, n], [0.0, 0.0]]) for n in (1.0, 0.0))
    gates = {
        "one": torch.stack([closed, opened, a_owns, a_owns, a_owns_one]),
        "two": torch.stack([closed, opened, closed, a_owns, a_owns]),
    }
    # Heads 1; a stream takes 3 at one (one channel 2) and 4 at two, a dead one nothing, a mixed
    # channel 1/2. What a owns at one is mixed for the shared stream, if that goes on to two.
    sums = [1 + 3 + 4, 1 + 2 * (3 + 4), 1 + 2 * 3 + 4 + 1, 1 + 2 * (3 + 4) + 1, 1 + 5 + 8 + 0.5]
    assert cost.seconds(gates).tolist() == [2 * total for total in sums]
    limits = [Budget("x", "latency", 60.0), Budget("y", "macs", 1e9)]
    assert cost.share(gates, limits).tolist() == [total / 30 for total in sums]


def test_a_soft_gate_has_the_slope_of_the_table() -> None:
    cost = replace(chain()[1], latency=CHAIN)
    p = torch.tensor(0.25, requires_grad=True)
    two = torch.stack([torch.stack([p, torch.zeros(())]), torch.zeros(2)])
    seconds = cost.seconds({"one": torch.zeros(2, 2), "two": two})
    # a quarter of a's one channel at two, on the way from 0 to 4 in two channels
    assert seconds.item() == pytest.approx(2 * (1 + 3 + 4 + 0.25 * 4 / 2))
    seconds.backward()
    assert p.grad.item() == pytest.approx(2 * 4 / 2)


def test_every_gate_gets_a_gradient() -> None:
    cost = replace(chain()[1], latency=CHAIN)
    half = {name: torch.full((2, 2), 0.5, requires_grad=True) for name in cost.gated}
    cost.budget_hinge(half, [Budget("x", "latency", 1.0)]).backward()
    assert all(bool((gate.grad != 0).all()) for gate in half.values())


def test_without_a_table_no_latency_is_known() -> None:
    closed = {name: torch.zeros(2, 2) for name in ("one", "two")}
    with pytest.raises(ValueError, match=r"pass `latency` to PatternCost\.of"):
        chain()[1].share(closed, [Budget("x", "latency", 1.0)])


@pytest.mark.slow("many networks")
@settings(max_examples=6, deadline=None)
@given(
    backbone=st.sampled_from(["resnet18", "resnet50", "efficientnet_lite0"]),
    granularity=st.sampled_from(["conv", "block"]),
    tasks=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_elements_are_those_of_the_extracted_network(backbone, granularity, tasks, seed) -> None:
    graph = BACKBONES[backbone](output_stride=32, width=0.05)
    model = GatedSupernet(parts(graph, tasks), granularity=granularity)
    put(model, np.random.default_rng(seed))
    cost, gates = PatternCost.of(model, SHAPE), model.hard_gates()
    found = distinct_elements(graph, gates, cost.live(gates).elements, mixed=cost.mixed)
    steps = extract(model).description.steps
    sources = [step.left for step in steps if isinstance(step, AddStep)]
    sources += [step.source for step in steps if isinstance(step, PoolStep)]
    widths = [len(p.channels or range(p.start, p.stop)) for source in sources for p in source]
    assert sum(count.item() for count in found.values()) == sum(widths)


def linear(granularity: str = "conv", seed: int = 0) -> tuple[dict[str, torch.Tensor], PatternCost]:
    """Random logits of a small ResNet-18, whose table takes a second for 1e9 multiply-adds."""
    graph = BACKBONES["resnet18"](output_stride=32, width=0.1)
    model = GatedSupernet(parts(graph), granularity=granularity)
    cost = PatternCost.of(model, SHAPE)
    weights = cost.macs_per_channel
    table = LatencyTable(
        convs={
            c.name: ((c.outputs, 1e-9 * c.outputs * weights[c.name]),) for c in graph.weighted_nodes
        },
        elements={node.name: 0.0 for node in graph if not node.has_weights},
        mixes=dict.fromkeys(cost.mixed, 0.0),
        heads=1e-9 * cost.head_macs,
        ends=(0.0, 0.0),
    )
    generator = torch.Generator().manual_seed(seed)
    alpha = {n: torch.randn(a.shape, generator=generator) for n, a in model.logits().items()}
    return alpha, replace(cost, latency=table)


def ends(alpha, measure) -> tuple[float, float]:
    least, most = (
        measure({n: torch.full(a.shape, own) for n, a in alpha.items()}) for own in (False, True)
    )
    return least, most


@pytest.mark.slow("many networks")
@settings(max_examples=6, deadline=None)
@given(
    granularity=st.sampled_from(["conv", "block"]),
    share=st.floats(0, 1),
    factor=st.floats(0.2, 5),
    offset=st.floats(-0.8, 3),
    power=st.floats(0.8, 1.5),
    multiple=st.sampled_from([1, 4]),
    seed=st.integers(0, 2**31),
)
@example(granularity="block", share=0.75, factor=1.0, offset=0.0, power=1.5, multiple=4, seed=5)
def test_fit_takes_up_a_latency_that_the_table_does_not_know(
    granularity, share, factor, offset, power, multiple, seed
) -> None:
    alpha, cost = linear(granularity, seed)
    base = ends(alpha, cost.seconds)[0]

    def measure(gates) -> float:
        return factor * float(base * (cost.seconds(gates) / base) ** power + offset * base)

    least, most = ends(alpha, measure)
    budget = Budget("x", "latency", least + share * (most - least))
    gates = fit_latency(alpha, cost, [budget], measure=measure, multiple=multiple)
    # Four channels at a tenth of the width are a step of many hundredths.
    least_taken = 0.9 if multiple == 1 else 0.8
    assert least_taken * budget.limit <= measure(gates) <= budget.limit


@pytest.mark.slow("many networks")
@settings(max_examples=6, deadline=None)
@given(share=st.floats(0.1, 1), noise=st.floats(0, 0.3), seed=st.integers(0, 2**31))
def test_fit_returns_what_was_measured_inside_whatever_the_noise(share, noise, seed) -> None:
    alpha, cost = linear()
    rng, seen = np.random.default_rng(seed), []
    least, most = ends(alpha, cost.seconds)
    budget = Budget("x", "latency", float(least + share * (most - least)))

    def measure(gates) -> float:
        factor = 1 + noise * rng.uniform(-1, 1) if any(g.any() for g in gates.values()) else 1
        seen.append((gates, factor * float(cost.seconds(gates))))
        return seen[-1][1]

    gates = fit_latency(alpha, cost, [budget], measure=measure)
    assert len(seen) <= 9
    assert any(gates is known and seconds <= budget.limit for known, seconds in seen)


def test_fit_holds_other_budgets_too() -> None:
    alpha, cost = linear()
    least, most = ends(alpha, cost.macs)
    macs = Budget("x", "macs", float(least + (most - least) / 4))
    slack = Budget("y", "latency", 1e-9 * float(most))
    gates = fit_latency(
        alpha, cost, [slack, macs], measure=lambda gates: float(cost.seconds(gates))
    )
    assert 0.98 <= cost.share(gates, [macs]) <= 1
    plain = fit_latency(alpha, cost, [macs], measure=lambda gates: 1 / 0)
    assert all(torch.equal(plain[name], gates[name]) for name in gates)


def test_a_latency_below_all_gates_closed_is_refused() -> None:
    alpha, cost = linear()

    def measure(gates) -> float:
        return 0.02 + 0.001 * sum(float(gate.float().mean()) for gate in gates.values())

    message = r"budget 19ms must leave room .* from 20 ms \(all closed\) to 40 ms \(all open\)"
    with pytest.raises(UsageError, match=message):
        fit_latency(alpha, cost, [Budget("19ms", "latency", 0.019)], measure=measure)


@pytest.mark.slow("latency")
def test_measured_layers_and_networks() -> None:
    model = GatedSupernet(parts(BACKBONES["resnet18"](output_stride=32, width=0.05), 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runtime, drawn = Runtime("cpu", "fp32", "nhwc"), torch.get_rng_state()
    table = measure_layers(model, SHAPE, runtime)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (
        table.convs["layer1.0.conv2"] is table.convs["layer1.1.conv2"]
    )  # one shape, measured once
    # 26 channels: an eighth, a quarter, a half, three quarters, all
    assert [count for count, _ in table.convs["layer4.0.conv1"]] == [3, 6, 13, 20, 26]
    cost = PatternCost.of(model, SHAPE, latency=table)
    # The table is right for the sum of both ends.
    assert sum(ends(model.logits(), cost.seconds)) == pytest.approx(sum(table.ends))
    seen = []

    def measure(gates) -> float:
        model.set_gates(gates)
        seen.append((gates, median_latency(extract(model), SHAPE, runtime, runs=3, span=0)))
        return seen[-1][1]

    # Room enough for whatever else the machine does.
    budget = Budget("x", "latency", 10 * max(table.ends))
    gates = fit_latency(model.logits(), cost, [budget], measure=measure)
    assert any(gates is known and seconds <= budget.limit for known, seconds in seen)
