"""Dividing frames into parts: shares, groups, strata, the same whatever the order."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.datasets.folder.splits import draw_parts, make_units

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def draw(features, groups=None, seed=0, shares=SHARES):
    units = make_units(features, groups=groups or {}, features=features)
    return draw_parts(units, shares, seed=seed)


def test_shares_are_exact_where_frames_are_alike():
    parts = draw({f"{i:03}": ["mask"] for i in range(240)})
    assert Counter(parts.values()) == {"train": 168, "validation": 24, "test": 48}


def test_the_order_of_the_frames_makes_no_difference_but_the_seed_does():
    features = {f"{i}": ["a"] * (i % 3 == 0) + ["b"] * (i % 7 == 0) for i in range(100)}
    shuffled = list(features)
    random.Random(1).shuffle(shuffled)
    assert draw(features) == draw({i: features[i] for i in shuffled})
    assert draw(features) != draw(features, seed=1)


def test_every_part_has_each_label_and_class_of_which_there_are_three():
    features = {f"{i}": ["mask"] for i in range(200)}
    for i in (3, 50, 120):
        features[f"{i}"].append("rare")
    parts = draw(features)
    assert Counter(parts[f"{i}"] for i in (3, 50, 120)) == {"train": 1, "validation": 1, "test": 1}


def test_as_many_groups_as_parts_fill_all_of_them():
    groups = {f"{i:02}": f"{i // 4}" for i in range(12)}
    for seed in range(9):
        units = make_units(groups, groups=groups, features={})
        parts = draw_parts(units, SHARES, seed=seed)
        assert Counter(parts.values()) == {"train": 4, "validation": 4, "test": 4}


def test_classes_are_shared_out_like_the_frames():
    features = {f"{i}": [f"class {i % 4}"] for i in range(400)}
    counts = Counter((parts, int(i) % 4) for i, parts in draw(features).items())
    assert {counts["train", c] for c in range(4)} == {70}
    assert {counts["validation", c] for c in range(4)} == {10}


def test_disjoint_labels_are_in_every_part():
    features = {f"{i}": [f"task {i // 10}"] for i in range(80)}
    counts = Counter((part, int(i) // 10) for i, part in draw(features).items())
    assert all(counts[part, task] >= 1 for part in SHARES for task in range(8))


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=80),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_groups_are_never_torn_and_no_frame_is_lost(members, seed):
    features = {f"{i}": ["mask"] for i in range(len(members))}
    groups = {f"{i}": f"patient {group}" for i, group in enumerate(members) if group}
    parts = draw(features, groups, seed)
    assert set(parts) == set(features)
    for group in set(groups.values()):
        assert len({parts[i] for i, g in groups.items() if g == group}) == 1


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_few_frames_give_every_part_one(count):
    assert set(draw({f"{i}": ["mask"] for i in range(count)}).values()) == set(SHARES)


def test_a_part_without_a_share_gets_none():
    shares = {"train": 0.8, "validation": 0.0, "test": 0.2}
    parts = draw({f"{i}": [] for i in range(10)}, shares=shares)
    assert Counter(parts.values()) == {"train": 8, "test": 2}


def test_one_large_group_leaves_the_others_to_the_small_parts():
    groups = {f"{i}": "big" if i < 60 else f"g{i // 5}" for i in range(100)}
    counts = Counter(draw({i: ["mask"] for i in groups}, groups).values())
    assert counts == {"train": 70, "validation": 10, "test": 20}


def test_values_of_which_there_is_one_each_do_not_fill_one_part():
    features = {f"{i}": ["age", f"age {i}"] for i in range(50)}
    assert Counter(draw(features).values()) == {"train": 35, "validation": 5, "test": 10}


def test_hundreds_of_classes_take_no_time_and_keep_the_shares():
    features = {f"{i}": [f"{name}{i % (name + 2)}" for name in range(40)] for i in range(5000)}
    counts = Counter(draw(features).values())
    assert counts["train"] == pytest.approx(3500, abs=100)
