"""Estimators at their limits, and their gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.models.gates import ESTIMATORS, hard, hard_concrete, sigmoid, ste

logits = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(values=logits)
def test_straight_through_is_exactly_hard_with_the_gradient_of_the_sigmoid(values) -> None:
    alpha = torch.tensor(values, requires_grad=True)
    gate = ste(alpha, 1.0)
    assert set(gate.tolist()) <= {0.0, 1.0}
    assert torch.equal(gate, hard(alpha))
    gate.sum().backward()
    p = torch.tensor(values, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(alpha.grad.double(), p * (1 - p), rtol=1e-5, atol=1e-7)


def test_half_is_closed() -> None:
    assert hard(torch.tensor([0.0, -0.0, 1e-30, -1e-30])).tolist() == [0, 0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(values=logits, t=st.floats(1e-3, 10))
def test_annealed_sigmoid_tends_to_hard(values, t) -> None:
    alpha = torch.tensor(values)
    gap = (sigmoid(alpha, t) - hard(alpha)).abs()
    # |sigma(a / t) - [a > 0]| = sigma(-|a| / t), which shrinks with the temperature
    torch.testing.assert_close(gap, (-alpha.abs() / t).sigmoid(), rtol=1e-3, atol=1e-6)
    assert (sigmoid(alpha, t / 2) - hard(alpha)).abs().le(gap + 1e-6).all()


def test_hard_concrete_has_mass_at_both_ends() -> None:
    torch.manual_seed(0)
    t = 2 / 3
    sample = hard_concrete(torch.full((200_000,), 0.4), t)
    assert sample.min() == 0
    assert sample.max() == 1
    # Louizos et al., equation 11: P(s <= 0) = sigma(t log(0.1 / 1.1) - alpha)
    closed = 1 / (1 + math.exp(-(t * math.log(0.1 / 1.1) - 0.4)))
    opened = 1 / (1 + math.exp(-(t * math.log(0.1 / 1.1) + 0.4)))
    assert (sample == 0).double().mean().item() == pytest.approx(closed, abs=0.004)
    assert (sample == 1).double().mean().item() == pytest.approx(opened, abs=0.004)


@pytest.mark.parametrize("temperature", [0.05, 2 / 3])
def test_hard_concrete_is_sure_where_the_logit_is(temperature) -> None:
    alpha = torch.tensor([-40.0, 40.0], requires_grad=True)
    gate = hard_concrete(alpha, temperature)
    assert gate.tolist() == [0, 1]
    gate.sum().backward()
    assert alpha.grad.tolist() == [0, 0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_stays_within_0_and_1_and_keeps_the_dtype(name) -> None:
    alpha = torch.linspace(-100, 100, 201)
    for dtype in (torch.float32, torch.float64):
        for function in (ESTIMATORS[name].gate, ESTIMATORS[name].open_probability):
            gate = function(alpha.to(dtype), 0.1)
            assert gate.dtype == dtype
            assert gate.isfinite().all()
            assert ((gate >= 0) & (gate <= 1)).all()
            ends = torch.tensor([0.0, 1.0], dtype=dtype)
            torch.testing.assert_close(gate[[0, -1]], ends, atol=1e-40, rtol=0)


DRAWS = 400_000
LOGITS = (-3.0, -1.0, -0.1, 0.0, 0.4, 2.0)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2 / 3, 1.0, 2.0])
@pytest.mark.parametrize("alpha", LOGITS)
def test_drawn_gates_are_open_as_often_as_their_probability_says(alpha, temperature) -> None:
    torch.manual_seed(0)
    estimator = ESTIMATORS["hard_concrete"]
    opened = estimator.gate(torch.full((DRAWS,), alpha), temperature) > 0
    share = float(opened.double().mean())
    probability = float(estimator.open_probability(torch.tensor(alpha).double(), temperature))
    # five standard deviations of a binomial share, 0.004 at most
    assert abs(share - probability) < 5 * math.sqrt(probability * (1 - probability) / DRAWS)


def test_open_probability_of_hard_concrete_by_hand() -> None:
    # Louizos et al., equation 12, with α = 0.4, β = 2/3, γ = -0.1, ζ = 1.1:
    # σ(0.4 - 2/3 log(0.1 / 1.1)) = σ(0.4 + 2/3 2.397895) = σ(1.998597)
    probability = ESTIMATORS["hard_concrete"].open_probability(torch.tensor(0.4), 2 / 3)
    assert float(probability) == pytest.approx(0.880650, abs=1e-6)
    cold = ESTIMATORS["hard_concrete"].open_probability(torch.tensor(0.4), 1e-9)
    assert float(cold) == pytest.approx(1 / (1 + math.exp(-0.4)), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("name", ["ste", "sigmoid"])
def test_gates_that_are_not_drawn_have_the_papers_probability(name, temperature) -> None:
    alpha = torch.tensor(LOGITS)
    estimator = ESTIMATORS[name]
    probability = estimator.open_probability(alpha, temperature)
    assert torch.equal(probability, alpha.sigmoid())
    first, second = (estimator.gate(alpha, temperature) for _ in range(2))
    assert torch.equal(first, second)
    # both agree on which side of one half a gate is
    assert torch.equal(first > 0.5, probability > 0.5)


def test_which_estimators_the_temperature_changes() -> None:
    changed = []
    for name, estimator in ESTIMATORS.items():
        gates = []
        for temperature in (1.0, 0.1):
            torch.manual_seed(0)
            gates.append(estimator.gate(torch.tensor(LOGITS), temperature))
        if not torch.equal(*gates):
            changed.append(name)
    assert changed == ["sigmoid", "hard_concrete"]  # as `InterroGateOptions.temperature` says
