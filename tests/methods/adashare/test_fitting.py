"""Policies that are made to fit budgets, and the choice among those that were drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import Budget
from gatesearch.methods.adashare.choice import best_of, draw_policies
from gatesearch.methods.adashare.fitting import fit_policy
from gatesearch.methods.adashare.policy_cost import PolicyCost
from gatesearch.methods.adashare.supernet import PolicySupernet
from gatesearch.models.backbones import BACKBONES
from tests.methods.toys import parts

GRAPH = BACKBONES["resnet18"](output_stride=32, width=0.05)
COST = PolicyCost.of(parts(GRAPH), (32, 32))
SEPARATE = PolicyCost.of(parts(GRAPH), (32, 32), separate=True)
ALL = (True,) * 8


def skipping(*blocks: int) -> tuple[bool, ...]:
    return tuple(i not in blocks for i in range(8))


def budget(measure: str, limit: float) -> Budget:
    return Budget(f"{limit:g}", measure, limit)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_fitted_policy_never_exceeds_a_budget_and_selects_nothing_new(data) -> None:
    cost = data.draw(st.sampled_from([COST, SEPARATE]))
    policy = data.draw(st.tuples(*[st.tuples(*[st.booleans()] * 8)] * 2))
    margins = torch.tensor(data.draw(st.lists(
        st.lists(st.floats(-5, 5), min_size=8, max_size=8), min_size=2, max_size=2)))  # fmt: skip
    budgets = []
    for measure in data.draw(st.sets(st.sampled_from(["macs", "params"]), min_size=1)):
        low, high = cost.measure(cost.least, measure), cost.measure((ALL, ALL), measure)
        budgets.append(budget(measure, low + data.draw(st.floats(0, 1)) * (high - low)))
    fitted = fit_policy(policy, margins, cost, budgets)
    assert all(cost.measure(fitted, b.measure) <= b.limit for b in budgets)
    for old, new in zip(policy, fitted, strict=True):
        assert all(was or not now for was, now in zip(old, new, strict=True))


def test_a_policy_within_the_budgets_stays() -> None:
    policy = (ALL, skipping(3))
    limit = budget("macs", COST.macs(policy))
    assert fit_policy(policy, torch.zeros(2, 8), COST, [limit]) == policy
    assert fit_policy(policy, torch.zeros(2, 8), COST, []) == policy


def test_the_least_wanted_block_goes_first() -> None:
    policy, margins = (ALL, ALL), torch.full((2, 8), 3.0)
    margins[:, 5] = 0.1
    limit = budget("macs", COST.macs((ALL, ALL)) - 1)
    assert fit_policy(policy, margins, COST, [limit]) == (skipping(5), skipping(5))


def test_one_task_alone_does_not_skip_what_others_still_compute() -> None:
    # Task b wants block 2 least, but to skip it alone would part the tasks there, at a cost.
    margins = torch.full((2, 8), 3.0)
    margins[1, 2] = 0.0
    limit = budget("macs", COST.macs((ALL, ALL)) - 1)
    fitted = fit_policy((ALL, ALL), margins, COST, [limit])
    assert fitted[0] == fitted[1]


def test_drawn_policies_follow_the_probabilities_and_are_drawn_again() -> None:
    net = PolicySupernet(parts(GRAPH))
    with torch.no_grad():
        net.logits[0][:, 0] = 50.0
        net.logits[1][:, 1] = 50.0
    net.freed = 5
    drawn = draw_policies(net, samples=4, seed=1)
    assert drawn == [(ALL, skipping(3, 4, 5, 6, 7))] * 4
    with torch.no_grad():
        net.logits[1].zero_()
    net.freed = 8
    drawn = draw_policies(net, samples=200, seed=1)
    assert drawn == draw_policies(net, samples=200, seed=1)
    assert drawn != draw_policies(net, samples=200, seed=2)
    share = sum(sum(policy[1]) for policy in drawn) / 1600
    assert share == pytest.approx(0.5, abs=0.04)


def test_the_best_of_several_by_the_mean_relative_gain() -> None:
    higher = {"seg": True, "depth": False}
    measured = [{"seg": 0.2, "depth": 1.0}, {"seg": 0.4, "depth": 1.5}, {"seg": 0.3, "depth": 0.4}]
    # Means .3 and .9667: -.333 - .034, +.333 - .552, 0 + .586
    assert best_of(measured, higher) == 2
    assert best_of([measured[0]] * 3, higher) == 0
    undefined = [{"seg": 0.0, "depth": 2.0}, {"seg": 0.0, "depth": 1.0}]
    assert best_of(undefined, higher) == 1
    assert best_of([{"seg": float("nan"), "depth": 2.0}, {"seg": 0.1, "depth": 1.0}], higher) == 1
