"""The validation part: a partition by its seed alone, in which every task has its share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.errors import DataError
from gatesearch.training import split_validation


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 60), data=st.data(), seed=st.integers(0, 2**63 - 1))
def test_validation_is_a_partition_by_its_seed_alone(count, data, seed) -> None:
    validation = data.draw(st.integers(1, count))
    if count - validation < 2:
        with pytest.raises(DataError, match=f"{validation} of {count} are carved off"):
            split_validation(count, validation=validation, seed=seed)
        return
    torch.manual_seed(data.draw(st.integers(0, 5)))
    train, held = split_validation(count, validation=validation, seed=seed)
    assert len(held) == validation
    assert sorted(train + held) == list(range(count))
    assert (train, held) == (sorted(train), sorted(held))
    assert split_validation(count, validation=validation, seed=seed) == (train, held)


def test_two_seeds_split_differently() -> None:
    assert split_validation(50, validation=10, seed=0) != split_validation(
        50, validation=10, seed=1
    )


@pytest.mark.parametrize("seed", range(5))
def test_few_labels_of_many_tasks_reach_both_parts(seed) -> None:
    # Nearly every frame has another set of labels, or none.
    labelled = np.random.default_rng(seed).random((60, 7)) < 0.1
    train, held = split_validation(60, validation=20, seed=seed, labelled=labelled)
    assert len(held) == 20
    assert sorted(train + held) == list(range(60))
    count, in_held = labelled.sum(0), labelled[held].sum(0)
    assert (abs(in_held - count / 3) <= 1).all(), (count, in_held)


@pytest.mark.parametrize(("few", "validation"), [(2, 3), (3, 1), (10, 2)])
def test_disjoint_tasks_reach_both_parts(few, validation) -> None:
    labelled = np.zeros((100, 2), bool)
    labelled[:few, 0] = labelled[few:, 1] = True
    _, held = split_validation(100, validation=validation, seed=0, labelled=labelled)
    assert labelled[held].sum(0).tolist() == [1, validation - 1]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(4, 40), data=st.data(), seed=st.integers(0, 99))
def test_stratified_parts_are_a_partition(count, data, seed) -> None:
    validation = data.draw(st.integers(1, count - 2))
    rows = st.lists(st.booleans(), min_size=3, max_size=3)
    labelled = np.array(data.draw(st.lists(rows, min_size=count, max_size=count)))
    train, held = split_validation(count, validation=validation, seed=seed, labelled=labelled)
    assert len(held) == validation
    assert sorted(train + held) == list(range(count))
