"""Measures of controllability, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatesearch.controllability import (
    budgets_hit,
    even_requests,
    preference_hypervolume,
    relative_losses,
    uniformity,
)
from gatesearch.errors import UsageError

HIGHER = {"seg": True, "depth": False}
losses = st.lists(st.floats(0.01, 3), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"seg": 50.0, "depth": 1.0}, [40 / 50, 2.0]),
        ({"seg": 0.0, "depth": 0.0}, [math.inf, 0.0]),
        ({"seg": 40.0}, [1.0, math.nan]),
        ({"seg": math.nan, "depth": math.inf}, [math.nan, math.nan]),
        ({"seg": -1.0, "depth": 0.5}, [math.nan, 1.0]),
    ],
)
def test_losses_relative_to_single_task_networks(metrics, expected) -> None:
    found = relative_losses(metrics, {"seg": 40.0, "depth": 0.5}, HIGHER)
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("rows", "volume"),
    [
        ([], 0.0),
        ([[1.0, 1.0, 1.0]], 1.0),
        ([[0.5, 1.5], [1.5, 0.5], [1.6, 1.6]], 2 * 1.5 * 0.5 - 0.5 * 0.5),
        ([[1.0, 1.0], [1.0, 1.0]], 1.0),
        ([[2.0, 0.1], [0.1, 2.5]], 0.0),  # no better than the reference in one task
        ([[1.0, 1.0], [math.nan, 0.0], [math.inf, 0.0]], 1.0),
    ],
)
def test_hypervolume(rows, volume) -> None:
    assert preference_hypervolume(rows) == pytest.approx(volume)


def test_a_hypervolume_that_would_take_too_long_is_undefined() -> None:
    many = [[1 + (i == j) * (0.5 - i / 100) for j in range(12)] for i in range(12)]
    assert math.isnan(preference_hypervolume(many))
    assert preference_hypervolume(many[:1]) == pytest.approx(0.5)


def test_uniformity() -> None:
    # Preferences 2 : 1 and losses 1 : 1 give p = (2/3, 1/3).
    by_hand = 1 - (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    assert uniformity([1.0, 1.0], [0.6, 0.3]) == pytest.approx(by_hand)
    assert uniformity([0.5, 1.0], [0.6, 0.3]) == pytest.approx(1)
    assert uniformity([1.0, 1.0], [0.0, 0.0]) == pytest.approx(1), "all alike"
    assert math.isnan(uniformity([0.0, 1.0], [1.0, 0.0]))
    assert math.isnan(uniformity([math.inf, 1.0], [1.0, 1.0]))
    for values, weights in (([1.0], [1.0, 2.0]), ([1.0, 1.0], [-1.0, 1.0])):
        with pytest.raises(UsageError, match="uniformity takes a loss and a preference"):
            uniformity(values, weights)


@given(losses, losses, st.floats(0.1, 10))
def test_uniformity_is_bounded_and_knows_no_scale(values, weights, scale) -> None:
    found = uniformity(values, weights)
    assert 1 - math.log(3) - 1e-9 <= found <= 1 + 1e-9
    assert uniformity(values, [scale * w for w in weights]) == pytest.approx(found)
    assert uniformity(values, [1 / value for value in values]) == pytest.approx(1)


def test_budgets_hit() -> None:
    assert budgets_hit([0.9, 1.0, 0.89, 1.0001]) == 0.5
    assert math.isnan(budgets_hit([]))
    assert budgets_hit([math.nan, 1.0]) == 0.5
    assert even_requests([]) == []
    assert even_requests([3.0], count=2) == [1.0, 1.0]
    # Budgets 2, 4 and 6 with networks of 2, 5 and 6.
    assert even_requests([6.0, 2.0, 5.0], count=3) == [1.0, 0.5, 1.0]
