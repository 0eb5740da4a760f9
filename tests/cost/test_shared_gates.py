"""Budgets, rounding, spread and alignment keep gates whole that several channels share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatesearch.cost import (
    Budget,
    PatternCost,
    align_tasks,
    count_macs,
    equalize_layer_shares,
    fit_latency,
    project,
    rounded,
)
from gatesearch.cost.projection import LEAST
from gatesearch.pruning import extract
from tests.models.test_shared_gates import SHAPE, supernet


def is_whole(values: dict[str, Tensor], units: dict[str, tuple[int, ...]]) -> bool:
    """Whether channels that share a gate have one value."""
    return all(
        len(x[:, torch.tensor(units[name]) == unit].unique(dim=1).T) == 1
        for name, x in values.items()
        for unit in set(units[name])
    )


@pytest.mark.slow("many networks")
@settings(max_examples=25, deadline=None)
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
    taken = budget.share(count_macs(extract(model), SHAPE, cross_check=False))
    assert taken <= 1
    print(tasks, measure, multiple, taken)
