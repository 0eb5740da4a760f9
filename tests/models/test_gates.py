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
        gate = ESTIMATORS[name](alpha.to(dtype), 0.1)
        assert gate.dtype == dtype
        assert gate.isfinite().all()
        assert ((gate >= 0) & (gate <= 1)).all()
        assert torch.equal(gate[[0, -1]], torch.tensor([0.0, 1.0], dtype=dtype))
