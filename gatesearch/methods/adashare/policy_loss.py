"""The losses of a policy, and the curriculum by which its blocks are freed.

With α[l, k] the probability that task k selects block l of L, from the first block l = 1 to the
last, the paper (Sun et al., NeurIPS 2020) prints

    L_sparsity = Σ_l Σ_k log α[l, k]
    L_sharing  = Σ_k Σ_k' Σ_l (L - l) / L · |α[l, k] - α[l, k']|

over ordered pairs (k, k'), so that each pair of tasks counts twice. The authors' code has, with
z[l, k] the logit of selecting,

    L_sparsity = Σ_k mean_l -log(1 - α[l, k])
    L_sharing  = Σ_{k < k'} Σ_l l / L · |z[l, k] - z[l, k']|

so that the last blocks weigh most there and the first blocks in print. Blocks that are not freed
yet take no part.
"""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["printed", "code"]


def freed_blocks(share: float, *, blocks: int, curriculum: float) -> int:
    """Count the last blocks whose policy is learned; the first ones are selected by all tasks.

    Args:
        share: Share of the policy's training that is done, in [0, 1).
        blocks: L.
        curriculum: Share of it over which the blocks are freed, one after the other.

    >>> [freed_blocks(s, blocks=4, curriculum=0.4) for s in (0, 0.1, 0.25, 0.3, 0.9)]
    [1, 2, 3, 4, 4]
    """
    if share >= curriculum:
        return blocks
    # Shares are quotients of steps, which rounding must not bring below a whole number.
    return min(blocks, int(share / curriculum * blocks + 1e-9) + 1)


def block_weights(blocks: int, form: Form) -> Tensor:
    """Return (L,) weights of the blocks in L_sharing, from the first to the last.

    >>> block_weights(4, "printed").tolist(), block_weights(4, "code").tolist()
    ([0.75, 0.5, 0.25, 0.0], [0.25, 0.5, 0.75, 1.0])
    """
    number = torch.arange(1, blocks + 1, dtype=torch.float32)
    return (blocks - number) / blocks if form == "printed" else number / blocks


def sparsity_loss(logits: Tensor, *, freed: int, form: Form) -> Tensor:
    """Compute L_sparsity, a scalar.

    Args:
        logits: (T, L, 2) of selecting and skipping each block.
        freed: Number of the last blocks that take part.
        form: As printed, or as in the authors' code.
    """
    log_select, log_skip = logits[:, logits.shape[1] - freed :].log_softmax(-1).unbind(-1)
    return log_select.sum() if form == "printed" else -log_skip.mean(1).sum()


def sharing_loss(logits: Tensor, *, freed: int, form: Form) -> Tensor:
    """Compute L_sharing, a scalar; arguments as for `sparsity_loss`."""
    of = logits.softmax(-1)[..., 0] if form == "printed" else logits[..., 0]
    distances = (of[:, None] - of[None]).abs().sum((0, 1))
    if form == "code":
        distances = distances / 2  # each pair once
    weights = block_weights(logits.shape[1], form).to(logits)
    return (weights * distances)[logits.shape[1] - freed :].sum()
