"""The losses of a policy and its curriculum, worked out by hand."""

import math

import pytest
import torch

from gatesearch.methods.adashare.policy_loss import (
    block_weights,
    freed_blocks,
    sharing_loss,
    sparsity_loss,
)

# Two tasks, three blocks; probabilities of selecting.
ALPHA = torch.tensor([[0.5, 0.75, 0.2], [0.5, 0.25, 0.8]])


def logits(alpha: torch.Tensor) -> torch.Tensor:
    """(T, L) probabilities -> (T, L, 2) logits, those of skipping being 0."""
    return torch.stack([(alpha / (1 - alpha)).log(), torch.zeros_like(alpha)], 2)


def test_the_weights_of_blocks_from_first_to_last() -> None:
    assert block_weights(5, "printed").tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert block_weights(5, "code").tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_sharing_as_printed() -> None:
    # Both orders of the pair: 2 (2/3 · 0 + 1/3 · |.75 - .25| + 0 · .6) = 1/3
    loss = sharing_loss(logits(ALPHA), freed=3, form="printed")
    assert float(loss) == pytest.approx(1 / 3, rel=1e-6)
    # The last two blocks: the same, as the first one's distance is 0; the last alone weighs 0.
    assert float(sharing_loss(logits(ALPHA), freed=2, form="printed")) == pytest.approx(1 / 3)
    assert float(sharing_loss(logits(ALPHA), freed=1, form="printed")) == 0


def test_sharing_as_in_the_code_is_on_logits_with_rising_weights() -> None:
    # 2/3 |log 3 - log 1/3| + 1 |log 1/4 - log 4|
    expected = 2 / 3 * 2 * math.log(3) + 2 * math.log(4)
    assert float(sharing_loss(logits(ALPHA), freed=3, form="code")) == pytest.approx(expected)


def test_sharing_counts_every_pair_of_three_tasks() -> None:
    alpha = torch.tensor([[0.1, 0.5], [0.4, 0.5], [0.9, 0.5]])
    # First block of two weighs 1/2; distances .3, .8, .5, each twice.
    loss = sharing_loss(logits(alpha), freed=2, form="printed")
    assert float(loss) == pytest.approx(1.6)


def test_sparsity_as_printed_sums_the_log_probabilities() -> None:
    loss = sparsity_loss(logits(ALPHA), freed=3, form="printed")
    assert float(loss) == pytest.approx(math.log(0.5 * 0.75 * 0.2 * 0.5 * 0.25 * 0.8))
    last = sparsity_loss(logits(ALPHA), freed=1, form="printed")
    assert float(last) == pytest.approx(math.log(0.2 * 0.8))


def test_sparsity_as_in_the_code_averages_over_the_freed_blocks() -> None:
    loss = sparsity_loss(logits(ALPHA), freed=2, form="code")
    first, second = -math.log(0.25 * 0.8) / 2, -math.log(0.75 * 0.2) / 2
    assert float(loss) == pytest.approx(first + second)


@pytest.mark.parametrize("form", ["printed", "code"])
def test_sparsity_draws_towards_skipping(form: str) -> None:
    z = torch.zeros(2, 3, 2, requires_grad=True)
    sparsity_loss(z, freed=2, form=form).backward()
    assert (z.grad[:, 1:, 0] > 0).all(), "a step down lowers the logit of selecting"
    assert (z.grad[:, :1] == 0).all(), "the first block is not freed"


def test_blocks_are_freed_from_the_last_in_equal_shares() -> None:
    freed = [freed_blocks(i / 16, blocks=4, curriculum=0.5) for i in range(16)]
    assert freed == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert [freed_blocks(s, blocks=4, curriculum=0.0) for s in (0.0, 0.5)] == [4, 4]
    assert [freed_blocks(s, blocks=2, curriculum=1.0) for s in (0.0, 0.49, 0.5)] == [1, 1, 2]


def test_the_codes_curriculum_of_three_turns_per_block() -> None:
    # 333 policy turns, one more of 16 blocks after every three of them.
    for turn in range(333):
        share = (turn + 0.5) / 333
        assert freed_blocks(share, blocks=16, curriculum=48 / 333) == min(16, turn // 3 + 1)
