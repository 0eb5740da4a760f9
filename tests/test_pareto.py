"""Dominance and hypervolume against hand-worked numbers, brute force and optuna's own."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from gatesearch.errors import UsageError
from gatesearch.pareto import hypervolume, pareto_front


@st.composite
def clouds(draw, most=9):
    """Points on a coarse grid, so that ties and duplicates occur, with directions."""
    m = draw(st.integers(1, 4))
    n = draw(st.integers(0, most))
    grid = st.integers(0, 4).map(float)
    points = draw(st.lists(st.lists(grid, min_size=m, max_size=m), min_size=n, max_size=n))
    return points, draw(st.lists(st.booleans(), min_size=m, max_size=m))


def worst(maximize):
    return [-1.0 if high else 5.0 for high in maximize]


def dominates(a, b, maximize):
    pairs = [(x, y) if high else (-x, -y) for x, y, high in zip(a, b, maximize, strict=True)]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def inclusion_exclusion(points, reference, maximize):
    """Volume of a union of boxes, summed over all subsets with alternating signs."""
    sides = [
        [
            max(x - r if high else r - x, 0.0)
            for x, r, high in zip(p, reference, maximize, strict=True)
        ]
        for p in points
    ]
    total = 0.0
    for size in range(1, len(sides) + 1):
        for subset in combinations(sides, size):
            total -= (-1) ** size * np.prod(np.min(subset, axis=0))
    return total


class TestParetoFront:
    def test_poster_networks_are_one_front(self):
        # (Δ MTL, GFLOPs): InterroGate's three and MTL; STL, MTAN and Cross-stitch are dominated.
        points = [
            (0, 1149),
            (-3.04, 683),
            (-0.84, 684),
            (1.66, 1151),
            (2.04, 916),
            (1.16, 892),
            (-0.5, 794),
        ]
        assert pareto_front(points, [True, False]) == [1, 2, 4, 5, 6]

    def test_equal_points_stay_together(self):
        assert pareto_front([[1, 1], [0, 0], [1, 1]], [True, True]) == [0, 2]

    def test_no_points(self):
        assert pareto_front([], [True, False]) == []
        assert pareto_front(np.empty((0, 3)), [True] * 3) == []

    def test_infinity_is_worst_or_best(self):
        assert pareto_front([[np.inf, 1], [5, 1], [-np.inf, 0]], [True, False]) == [0, 2]

    @settings(max_examples=50)
    @given(clouds())
    def test_exactly_the_non_dominated(self, cloud):
        points, maximize = cloud
        expected = [
            i for i, a in enumerate(points) if not any(dominates(b, a, maximize) for b in points)
        ]
        assert pareto_front(points, maximize) == expected

    @settings(max_examples=50)
    @given(clouds(), st.randoms(use_true_random=False))
    def test_order_of_points_is_irrelevant(self, cloud, random):
        points, maximize = cloud
        order = list(range(len(points)))
        random.shuffle(order)
        front = pareto_front([points[i] for i in order], maximize)
        assert sorted(order[i] for i in front) == pareto_front(points, maximize)

    def test_the_callers_array_is_left_alone(self):
        points = np.array([[1.0, 2.0], [2.0, 1.0]])
        pareto_front(points, [True, True])
        assert points.tolist() == [[1.0, 2.0], [2.0, 1.0]]

    @pytest.mark.parametrize(
        ("points", "maximize", "found"),
        [
            ([[1.0, np.nan], [0.0, 0.0]], [True, False], "rows 0"),
            ([1.0, 2.0], [True, False], r"found \(2,\)"),
            ([[1.0, 2.0]], [True], r"found \(1, 2\)"),
            ([[1.0]], [], "found none"),
        ],
    )
    def test_says_the_rule_and_the_value(self, points, maximize, found):
        with pytest.raises(UsageError, match=found):
            pareto_front(points, maximize)


class TestHypervolume:
    def test_two_steps_by_hand(self):
        # Δ up from -4, GFLOPs down to 1000: 6 x 100 and the part of 3 x 300 left of it, 3 x 200.
        points = [(2.0, 900.0), (-1.0, 700.0)]
        assert hypervolume(points, (-4.0, 1000.0), [True, False]) == 6 * 100 + 3 * 200

    def test_three_boxes_by_hand(self):
        # Three 1 x 1 x 2 boxes along the axes share the unit cube: 3 x 2 - 3 x 1 + 1.
        points = [(2, 1, 1), (1, 2, 1), (1, 1, 2)]
        assert hypervolume(points, (0, 0, 0), [True] * 3) == 4.0

    def test_points_no_better_than_the_reference_add_nothing(self):
        assert hypervolume([(0, 5), (5, 0), (-1, 9)], (0, 0), [True, True]) == 0.0
        assert hypervolume([], (0, 0), [True, True]) == 0.0

    @settings(max_examples=50)
    @given(clouds(most=7))
    def test_agrees_with_inclusion_exclusion(self, cloud):
        points, maximize = cloud
        expected = inclusion_exclusion(points, worst(maximize), maximize)
        assert hypervolume(points, worst(maximize), maximize) == pytest.approx(expected)

    @settings(max_examples=50)
    @given(clouds())
    def test_agrees_with_optuna(self, cloud):
        points, maximize = cloud
        if not points:
            return
        sign = np.where(maximize, -1.0, 1.0)
        expected = compute_hypervolume(np.array(points) * sign, np.array(worst(maximize)) * sign)
        assert hypervolume(points, worst(maximize), maximize) == pytest.approx(expected)

    @settings(max_examples=50)
    @given(clouds())
    def test_grows_with_points_and_only_by_the_front(self, cloud):
        points, maximize = cloud
        corner = worst(maximize)
        volumes = [hypervolume(points[:i], corner, maximize) for i in range(len(points) + 1)]
        assert volumes == sorted(volumes)
        front = [points[i] for i in pareto_front(points, maximize)]
        assert hypervolume(front, corner, maximize) == pytest.approx(volumes[-1])

    @settings(max_examples=50)
    @given(clouds())
    def test_turning_an_objective_round_changes_nothing(self, cloud):
        points, maximize = cloud
        turned = [[-x for x in point] for point in points]
        assert hypervolume(
            turned, [-x for x in worst(maximize)], [not high for high in maximize]
        ) == pytest.approx(hypervolume(points, worst(maximize), maximize))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_refuses_what_has_no_volume(self, bad):
        with pytest.raises(UsageError, match="points must be finite, found rows 1"):
            hypervolume([(1.0, 1.0), (bad, 1.0)], (0.0, 0.0), [True, True])
        with pytest.raises(UsageError, match="reference must be finite"):
            hypervolume([(1.0, 1.0)], (0.0, bad), [True, True])
