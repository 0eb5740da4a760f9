"""Gate estimators: logits α -> gate values G in [0, 1], hard in evaluation.

Each is a function `(alpha, temperature) -> G`, of the shape of α, for training; in evaluation all
are replaced by `hard`. Which estimator the authors of InterroGate used is not public.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Stretch of the hard concrete distribution (Louizos et al., 2018, section 4).
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def hard(alpha: Tensor) -> Tensor:
    """Return 1 where the gate chooses the task's channel, σ(α) > 1/2, else 0; same dtype as α."""
    return (alpha > 0).to(alpha.dtype)


def ste(alpha: Tensor, temperature: float) -> Tensor:
    """Hard forward, gradient of σ(α) backward (Bengio et al., 2013, https://arxiv.org/abs/1308.3432).

    The temperature has no effect.
    """
    del temperature
    probability = alpha.sigmoid()
    # Written so that the forward value is exactly 0 or 1.
    return hard(alpha) + (probability - probability.detach())


def sigmoid(alpha: Tensor, temperature: float) -> Tensor:
    """Compute σ(α / temperature), which approaches `hard` as the temperature goes to 0."""
    return (alpha / temperature).sigmoid()


def hard_concrete(alpha: Tensor, temperature: float) -> Tensor:
    """Draw a stretched, clipped binary concrete sample (Louizos et al., ICLR 2018, 1712.01312).

    s = σ((log u - log(1 - u) + α) / temperature), G = clip(s (1.1 + 0.1) - 0.1, 0, 1).
    """
    u = torch.rand_like(alpha).clamp(1e-6, 1 - 1e-6)
    s = ((u.log() - (-u).log1p() + alpha) / temperature).sigmoid()
    return (s * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)


ESTIMATORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ste": ste,
    "sigmoid": sigmoid,
    "hard_concrete": hard_concrete,
}
