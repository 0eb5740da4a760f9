"""Weights that stay the same."""

from collections.abc import Mapping
from dataclasses import replace

from gatesearch.errors import UsageError, unknown
from gatesearch.training.weightings.weighting import Basis, Weighting


def uniform(basis: Basis) -> Weighting:
    """Build Σ_t ω_t L_t."""
    return Weighting(basis)


def scalar(basis: Basis, *, weights: Mapping[str, float] | None = None) -> Weighting:
    """Build Σ_t w_t L_t with weights that a search has chosen.

    Args:
        basis: Tasks with ω_t.
        weights: Task -> w_t, which replaces ω_t; tasks that are not named keep theirs.

    Raises:
        UsageError: There is no such task, or a weight is below 0.
    """
    weights = weights or {}
    for task, weight in weights.items():
        if task not in basis.omega:
            raise unknown("task of weighting scalar", task, basis.omega)
        if not 0 <= weight < float("inf"):
            raise UsageError(f"weights of weighting scalar are at least 0, found {task} = {weight}")
    return Weighting(replace(basis, omega={**basis.omega, **weights}))
