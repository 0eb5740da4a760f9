"""Cost by formula: what fvcore counts on the extracted network, to the last multiply-add."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import Budget, PatternCost, count_macs
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT, Add, Conv, Route
from gatesearch.pruning import extract
from tests.pruning.test_extract import parts, put


def check_against_extraction(graph, *, granularity, tasks, size, seed, mix="tasks") -> None:
    model = GatedSupernet(parts(graph, tasks), granularity=granularity, mix=mix)
    put(model, np.random.default_rng(seed))
    shape = (1, 3, *size)
    counted = count_macs(extract(model), shape, cross_check=False)
    cost, gates = PatternCost.of(model, shape), model.hard_gates()
    assert int(cost.macs(gates)) == counted.macs
    assert int(cost.params(gates)) == counted.params


@pytest.mark.parametrize("granularity", ["conv", "block"])
def test_equals_the_count_of_one_extracted_network(granularity) -> None:
    graph = BACKBONES["resnet18"](output_stride=16, width=0.05)
    check_against_extraction(graph, granularity=granularity, tasks=2, size=(33, 50), seed=7)


@pytest.mark.slow("many networks")
@settings(max_examples=8, deadline=None)
@given(
    backbone=st.sampled_from(sorted(BACKBONES)),
    granularity=st.sampled_from(["conv", "block"]),
    stride=st.sampled_from([8, 16, 32]),
    tasks=st.integers(1, 3),
    height=st.integers(17, 70),
    width=st.integers(17, 70),
    mix=st.sampled_from(["tasks", "shared"]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_count_of_the_extracted_network(
    backbone, granularity, stride, tasks, height, width, mix, seed
) -> None:
    check_against_extraction(
        BACKBONES[backbone](output_stride=stride, width=0.05),
        granularity=granularity, tasks=tasks, size=(height, width), seed=seed, mix=mix,
    )  # fmt: skip


def chain() -> tuple[GatedSupernet, PatternCost]:
    """Image 3 -> one (2 channels, 1x1) -> two (2 channels, 1x1), two tasks, on 4x5 pixels."""
    nodes = (Conv("one", INPUT, 3, 2, 1), Conv("two", "one", 2, 2, 1))
    model = GatedSupernet(parts(Graph(nodes, stride=1), 2))
    return model, PatternCost.of(model, (1, 3, 4, 5))


def test_a_batch_by_hand() -> None:
    _, cost = chain()
    closed, opened = torch.zeros(2, 2), torch.ones(2, 2)
    a_owns = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    gates = {
        "one": torch.stack([closed, opened, a_owns, a_owns]),
        "two": torch.stack([closed, opened, closed, a_owns]),
    }
    backbone = (cost.macs(gates) - cost.head_macs) / 20
    # One encoder: 2 of 3 inputs, 2 of 2. Two of them. At one a's and shared, for the mix; at two
    # shared. At two a's too, which reads its own at one; the shared one still reads the mix.
    assert backbone.tolist() == [6 + 4, 2 * (6 + 4), 2 * 6 + 4, 2 * 6 + 2 * 4]


def test_expectation_of_a_soft_gate() -> None:
    # At two, task a's one open channel is its own with probability p; all else is shared.
    _, cost = chain()
    p = torch.tensor(0.25, requires_grad=True)
    two = torch.zeros(2, 2)
    two = torch.cat([torch.cat([p[None], two[0, 1:]])[None], two[1:]])
    expected = (cost.macs({"one": torch.zeros(2, 2), "two": two}) - cost.head_macs) / 20
    # b reads the shared channel anyway: a's own costs 2 more, drawn with p
    assert expected.item() == pytest.approx(6 + 4 + 2 * 0.25)
    expected.backward()
    assert p.grad.item() == pytest.approx(2.0)


def test_overrun_is_a_hinge() -> None:
    model, cost = chain()
    model.set_gates({name: torch.ones(2, 2, dtype=torch.bool) for name in model.gated})
    half = {name: torch.full((2, 2), 0.5, requires_grad=True) for name in model.gated}
    most = float(cost.macs({name: torch.ones(2, 2) for name in model.gated}))
    expected = cost.macs(half).item()
    for limit in (most, 2 * most):
        assert cost.budget_hinge(half, [Budget("x", "macs", limit)]).item() == pytest.approx(
            max(0.0, expected / limit - 1)
        )
    tight = cost.budget_hinge(
        half, [Budget("x", "macs", most), Budget("y", "macs", expected / 1.5)]
    )
    assert tight.item() == pytest.approx(0.5)
    tight.backward()
    assert all(gate.grad.abs().sum() > 0 for gate in half.values())


def test_open_gates_between_equal_values_mix_nothing() -> None:
    """Sums of features that all tasks read from the shared stream are equal, whatever the gates."""
    nodes = (
        Conv("one", INPUT, 3, 4, 1),
        Conv("two", "one", 4, 4, 1),
        Add("sum", "two", "one", 4),
        Conv("three", "sum", 4, 4, 1, stage=1, ends_block=True),
    )
    model = GatedSupernet(parts(Graph(nodes, stride=1), 2), granularity="block")
    cost = PatternCost.of(model, (1, 3, 8, 8))
    closed = {name: torch.zeros(2, 4, dtype=torch.bool) for name in model.gated}
    opened = closed | {"sum": torch.ones(2, 4, dtype=torch.bool)}
    assert set(closed) == {"one", "two", "sum", "three"}
    assert cost.params(opened) == cost.params(closed)
    model.set_gates(opened)
    assert count_macs(extract(model), (1, 3, 8, 8)).params == int(cost.params(opened))


def test_patterns_at_once_are_priced_where_gates_meet_a_route() -> None:
    """One source of the route differs by pattern, the other in none."""
    nodes = (
        Conv("one", INPUT, 3, 2, 1),
        Route("both", ("one", INPUT), (2, 3), ((0, 0), (0, 1), (1, 0))),
        Conv("two", "both", 3, 3, 1),
        Add("sum", "two", "both", 3),
        Conv("three", "sum", 3, 3, 1, stage=1, ends_block=True),
    )
    model = GatedSupernet(parts(Graph(nodes, stride=1), 2), granularity="block")
    cost = PatternCost.of(model, (1, 3, 8, 8))
    many = {n: torch.stack([g, ~g]) for n, g in model.hard_gates().items()}
    each = [cost.macs({n: g[i] for n, g in many.items()}) for i in range(2)]
    assert cost.macs(many).tolist() == [int(x) for x in each]
