"""The branching regularisers of the edge hypernetwork.

ν_i^l, (T,), are the probabilities with which reader i reads each stream behind block l, counted
from 0 to L - 1. A is the set of active tasks, those whose preference is at least a threshold.

    active   = Σ_l w_l Σ_{i<j in A} a_ij^l |ν_i^l - ν_j^l|²,   w_l = (L - l) / L
    inactive = Σ_l Σ_{j not in A} min_{i in A} |ν_j^l - ν_i^l|²
    Ω        = c λ_A active + λ_I inactive

The active loss draws related tasks to the same branch, in early blocks most, and the more the
higher the cost weight c is. The inactive loss lets a task that matters little follow the nearest
one that matters, whose own branch it does not change (no gradient flows to ν_i). The public facts
about the paper state both losses, the weighting by affinity and λ only in words: the squared
distance, the weights w_l, and c as a factor of the active loss alone are our reading of them.
"""

import torch
from torch import Tensor


def active_tasks(preference: Tensor, threshold: float) -> Tensor:
    """Return (T,) bool, the tasks whose preference is at least `threshold` / T."""
    # An equal share is a quotient that is rounded, and counts as one.
    return preference * len(preference) >= threshold - 1e-5


def active_loss(probabilities: Tensor, affinity: Tensor, active: Tensor) -> Tensor:
    """Return the distances between the branches of active tasks, weighted by affinity.

    Args:
        probabilities: ν, (L, T readers, T streams).
        affinity: a, (L, T, T) in [0, 1].
        active: (T,) bool.
    """
    blocks, tasks, _ = probabilities.shape
    weights = 1 - torch.arange(blocks, device=probabilities.device) / blocks
    pairs = torch.ones(tasks, tasks, device=probabilities.device).triu(1)
    pairs = pairs * active[:, None] * active
    return (weights[:, None, None] * affinity * pairs * _distances(probabilities)).sum()


def inactive_loss(probabilities: Tensor, active: Tensor) -> Tensor:
    """Return the distances of inactive tasks' branches from the nearest active task's.

    Args:
        probabilities: ν, (L, T readers, T streams).
        active: (T,) bool, of which one is True.
    """
    distances = _distances(probabilities, probabilities.detach())
    nearest = distances.masked_fill(~active, torch.inf).min(2).values
    return (nearest * ~active).sum()


def _distances(left: Tensor, right: Tensor | None = None) -> Tensor:
    """Squared distances of all pairs of rows, (L, T, T)."""
    right = left if right is None else right
    return (left[:, :, None] - right[:, None]).square().sum(3)
