"""Gate estimators: logits α -> gate values G in [0, 1], hard in evaluation.

In evaluation all of them are replaced by `hard`. Which estimator the authors of InterroGate used
is not public.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Stretch of the hard concrete distribution (Louizos et al., 2018, section 4).
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def hard(alpha: Tensor) -> Tensor:
    """Return 1 where the gate chooses the task's channel, σ(α) > 1/2, else 0; same dtype as α."""
    return (alpha > 0).to(alpha.dtype)


def temperature_at(share: float, temperature: tuple[float, float]) -> float:
    """Return the temperature when a share of the training is done, annealed geometrically.

    Args:
        share: In [0, 1].
        temperature: (at the start, at the end).

    >>> temperature_at(0.5, (1.0, 0.01))
    0.1
    """
    start, end = temperature
    return start * (end / start) ** share


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


def chosen_probability(alpha: Tensor, temperature: float) -> Tensor:
    """Return σ(α), which the paper penalises; the temperature has no effect."""
    del temperature
    return alpha.sigmoid()


def hard_concrete_probability(alpha: Tensor, temperature: float) -> Tensor:
    """Return P(G > 0) of `hard_concrete`, σ(α - temperature log(0.1 / 1.1)).

    Equation 12 of Louizos et al.; its sum is their L0 penalty. It is above σ(α), because a drawn
    gate is rarely exactly 0 while the temperature is high, and tends to σ(α) with the temperature.
    """
    return (alpha - temperature * math.log(-STRETCH_LOW / STRETCH_HIGH)).sigmoid()


@dataclass(frozen=True)
class Estimator:
    """How gates are estimated in training.

    Attributes:
        gate: (α, temperature) -> G in [0, 1], of the shape of α.
        open_probability: (α, temperature) -> probability that a gate is open, of the shape of α;
            the regularisers bound its mean, or the cost that it leads to. For gates that are drawn
            it is P(G > 0). Others are 0 or 1 (`ste`) or always above 0 (`sigmoid`), and have σ(α).
    """

    gate: Callable[[Tensor, float], Tensor]
    open_probability: Callable[[Tensor, float], Tensor] = chosen_probability


ESTIMATORS: dict[str, Estimator] = {
    "ste": Estimator(ste),
    "sigmoid": Estimator(sigmoid),
    "hard_concrete": Estimator(hard_concrete, hard_concrete_probability),
}
