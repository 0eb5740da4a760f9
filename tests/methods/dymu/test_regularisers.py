"""The branching losses, preferences and affinity on examples worked out by hand."""

import math

import pytest
import torch

from gatesearch.methods.dymu.affinity import affinity, dissimilarities
from gatesearch.methods.dymu.regularisers import active_loss, active_tasks, inactive_loss

# Two blocks, three readers. Behind the first block readers 0 and 1 differ by (1, -1, 0), squared
# distance 2; behind the second they are equal. Reader 2 is at (0, 0, 1) behind both.
PROBABILITIES = torch.tensor(
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]],
    ]
)


def test_tasks_of_at_least_an_equal_share_are_active() -> None:
    assert active_tasks(torch.tensor([0.5, 0.3, 0.2]), 1.0).tolist() == [True, False, False]
    assert active_tasks(torch.tensor([0.5, 0.3, 0.2]), 0.9).tolist() == [True, True, False]
    assert active_tasks(torch.full((3,), 1 / 3), 1.0).all()


def test_active_loss_by_hand() -> None:
    related = torch.full((2, 3, 3), 0.5)
    two = torch.tensor([True, True, False])
    # one pair; weights of the blocks 1 and 1/2: 1 * 0.5 * 2 + 0.5 * 0.5 * 0
    assert active_loss(PROBABILITIES, related, two).item() == pytest.approx(1.0)
    # three pairs: 0.5 * (2 + 2 + 2) behind the first block, 0.5 * 0.5 * (0 + 1.5 + 1.5) behind the
    # second
    three = torch.ones(3, dtype=torch.bool)
    assert active_loss(PROBABILITIES, related, three).item() == pytest.approx(3.75)
    assert active_loss(PROBABILITIES, 0 * related, three).item() == 0, "strangers are left apart"
    assert active_loss(PROBABILITIES, related, torch.tensor([True, False, False])).item() == 0


def test_inactive_loss_by_hand() -> None:
    # Reader 2 follows the nearer of 0 and 1: distances 2 and 1.5 behind the two blocks.
    two = torch.tensor([True, True, False])
    assert inactive_loss(PROBABILITIES, two).item() == pytest.approx(2 + 1.5)
    # Readers 1 and 2 follow 0.
    one = torch.tensor([True, False, False])
    assert inactive_loss(PROBABILITIES, one).item() == pytest.approx(2 + 2 + 0 + 1.5)
    assert inactive_loss(PROBABILITIES, torch.ones(3, dtype=torch.bool)).item() == 0


def test_inactive_tasks_do_not_move_active_ones() -> None:
    probabilities = PROBABILITIES.clone().requires_grad_()
    inactive_loss(probabilities, torch.tensor([True, True, False])).backward()
    assert not probabilities.grad[:, :2].any()
    assert probabilities.grad[:, 2].any()


def test_dissimilarities_are_one_minus_correlations() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]], dtype=torch.float64)
    # pairs (0, 1), (0, 2), (1, 2): correlations -1, 1/2, -1/2
    torch.testing.assert_close(dissimilarities(rows), torch.tensor([2.0, 0.5, 1.5]).double())


def test_affinity_is_the_rank_correlation_of_dissimilarities() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]], dtype=torch.float64)
    other = rows[[2, 1, 0]]  # dissimilarities of its pairs: 1.5, 0.5, 2
    found = affinity([rows, 7 * rows + 1, other])
    # ranks (2, 0, 1) and (1, 0, 2): correlation 1 - 6 (1 + 0 + 1) / (3 (9 - 1)) = 1/2
    expected = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 1.0]]).double()
    torch.testing.assert_close(found, expected)


def test_affinity_of_opposite_or_constant_features_is_none() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]], dtype=torch.float64)
    against = rows[[0, 2, 1]]  # dissimilarities 0.5, 2, 1.5 where rows have 2, 0.5, 1.5
    found = affinity([rows, against, torch.ones_like(rows)])
    assert found[0, 1] == 0
    assert math.isfinite(found.sum())
