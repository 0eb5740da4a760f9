"""The weighted sum over tasks, channel by channel, with which streams are mixed."""

from collections.abc import Sequence

from torch import Tensor

from gatesearch.models.channel_ops import at_positions


def mixing_sum(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Compute Σ_t w_t x_t of T activations x_t, (B, C, *positions), with weights w, (T, C)."""
    rows = at_positions(weights.to(features[0].dtype), features[0])
    total = features[0] * rows[0]
    for x, row in zip(features[1:], rows[1:], strict=True):
        total.addcmul_(x, row)
    return total
