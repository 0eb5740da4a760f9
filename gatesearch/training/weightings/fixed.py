"""Weights that nobody changes."""

from collections.abc import Mapping
from dataclasses import replace

from gatesearch.errors import UsageError, unknown
from gatesearch.training.weightings.weighting import Basis, Weighting


def uniform(basis: Basis) -> Weighting:
    """Σ_t ω_t L_t."""
    return Weighting(basis)


def scalar(basis: Basis, *, weights: Mapping[str, float] | None = None) -> Weighting:
    """Σ_t w_t L_t with weights that were searched.

    Args:
        basis: Tasks, with the weights of those that are not named.
        weights: Task -> w_t, in place of ω_t.

    Raises:
        UsageError: No such task, or a weight below 0.
    """
    weights = weights or {}
    for task, weight in weights.items():
        if task not in basis.omega:
            raise unknown("task of weighting scalar", task, basis.omega)
        if not 0 <= weight < float("inf"):
            raise UsageError(f"weights of weighting scalar are at least 0, found {task} = {weight}")
    return Weighting(replace(basis, omega={**basis.omega, **weights}))
