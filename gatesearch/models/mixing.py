"""The weighted sum over tasks, channel by channel, with which streams are mixed."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mixing_sum(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Compute Σ_t w_t x_t of T activations x_t, (B, C, *positions), with weights w, (T, C)."""
    rows = channel_rows(weights, features[0])
    total = features[0] * rows[0]
    for x, row in zip(features[1:], rows[1:], strict=True):
        total = torch.addcmul(total, x, row)
    return total


def channel_rows(weights: Tensor, x: Tensor) -> Tensor:
    """Return weights (T, C) in the dtype of x, (B, C, *positions), as T rows that broadcast to x."""
    return weights.to(x.dtype)[(..., *(None,) * (x.dim() - 2))]
