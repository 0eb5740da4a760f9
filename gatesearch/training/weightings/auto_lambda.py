"""Auto-λ: weights that would have helped on held-out data.

Liu et al., TMLR 2022, "Auto-Lambda: Disentangling Dynamic Task Relationships"
(https://arxiv.org/abs/2202.03091).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.outside import moved, owned, undisturbed
from gatesearch.training.weightings.weighting import (
    Basis,
    Losses,
    Training,
    Weighting,
)

_RADIUS = 0.01


class AutoLambda(Weighting):
    """λ follows the gradient of the primary loss one virtual step ahead.

        θ' = θ - η (m + ∇_θ Σ_t λ_t ω_t L_t + δ θ)          momentum m, decay δ of the optimizer
        ∂L'/∂λ_t = -∇_θ (ω_t L_t) · d,                       d = η ∇_θ' Σ_t ω_t L'_t
                 ~ -(ω_t L_t(θ + ε d) - ω_t L_t(θ - ε d)) / 2ε,        ε = 0.01 / ‖d‖

    L' are the losses on a batch of the validation part, where the authors' code
    (https://github.com/lorenmt/auto-lambda) takes other training batches; all tasks are primary. η,
    m and δ are those of each parameter's group, and m = 0 where the optimizer has no momentum
    buffer, as in that code, which multiplies by η at the end: the same with one rate for all. A
    penalty has no part in the virtual step. Dropout draws alike on both sides of θ. λ stays where
    its derivative is not finite.

    Args:
        basis: Tasks with ω_t, device.
        initial: λ_t at first.
        lr: Of λ, by Adam.

    Attributes:
        lambdas: (T,) λ_t.
    """

    def __init__(self, basis: Basis, *, initial: float = 0.1, lr: float = 1e-4) -> None:
        super().__init__(basis)
        self.lambdas = nn.Parameter(torch.full_like(self.omega, initial))
        self._adam = torch.optim.Adam([self.lambdas], lr=lr)
        self.weights.copy_(initial * self.omega)

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Move λ."""
        training = self.training_seen
        slopes = self._lookahead(training, losses, held_out)
        if bool(slopes.isfinite().all()):
            self.lambdas.grad = slopes
            self._adam.step()
            self.weights.copy_(self.omega * self.lambdas.detach())

    def _lookahead(self, training: Training, losses: Losses, held_out: Losses) -> Tensor:
        """∂L'/∂λ, (T,); not finite where d is 0, or too far away."""
        state = training.optimizer.state
        groups = {p: group for group in training.optimizer.param_groups for p in group["params"]}
        parameters = list(groups)

        def slopes_of(evaluate: Losses, weights: Tensor) -> tuple[Tensor, ...]:
            with undisturbed(training.model):
                loss = torch.dot(evaluate(), weights)
                found = torch.autograd.grad(loss, parameters, materialize_grads=True)
            slopes = tuple(map(owned, found))
            training.average(slopes)
            return slopes

        def losses_at(distance: Tensor) -> Tensor:
            values = [p + distance * d for p, d in zip(parameters, direction, strict=True)]
            with undisturbed(training.model), moved(parameters, values):
                return losses(exact=True)

        def ahead(parameter: nn.Parameter, slope: Tensor) -> Tensor:
            group = groups[parameter]
            momentum = state[parameter].get("momentum_buffer")
            change = slope + group["weight_decay"] * parameter
            if momentum is not None:
                change = change + group["momentum"] * momentum
            return parameter - group["lr"] * change

        slopes = slopes_of(losses, self.weights)
        with torch.no_grad():
            virtual = [ahead(p, slope) for p, slope in zip(parameters, slopes, strict=True)]
        with moved(parameters, virtual):
            slopes = slopes_of(held_out, self.omega)
        del virtual
        with torch.no_grad():
            direction = [groups[p]["lr"] * s for p, s in zip(parameters, slopes, strict=True)]
            length = torch.stack([d.norm() for d in direction]).norm()
            difference = losses_at(_RADIUS / length) - losses_at(-_RADIUS / length)
        training.average([difference])
        return -self.omega * difference * (length / (2 * _RADIUS))

    def get_extra_state(self) -> dict[str, Any]:
        """Moments of the optimizer of λ."""
        return dict(self._adam.state_dict()["state"].get(0, {}))

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict(
            {"state": {0: dict(state)} if state else {}, "param_groups": groups}
        )
