"""Auto-λ: weights that would have lowered the loss on held-out data.

Liu et al., TMLR 2022, "Auto-Lambda: Disentangling Dynamic Task Relationships"
(https://arxiv.org/abs/2202.03091).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.temporary_changes import (
    keep_entries,
    materialize,
    preserve_state,
    replace_values,
    tensors_of,
)
from gatesearch.training.weightings.weighting import (
    Basis,
    Losses,
    TrainingView,
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
    m and δ are those of each parameter's group. m = 0 if the optimizer has no momentum buffer, as
    in the authors' code. That code multiplies by η at the end, which is the same if all parameters
    have one rate. A penalty takes no part in the virtual step. Dropout draws the same on both sides
    of θ. If its derivative is not finite, λ does not change. Tasks of which the held-out batch has
    no labels are not primary in that step.

    Args:
        basis: Tasks with ω_t, device.
        initial: λ_t in the first step.
        lr: Learning rate of λ, which Adam trains.

    Attributes:
        lambdas: (T,) λ_t.
    """

    def __init__(self, basis: Basis, *, initial: float = 0.1, lr: float = 1e-4) -> None:
        super().__init__(basis)
        self.lambdas = nn.Parameter(torch.full_like(self.omega, initial))
        self._adam = torch.optim.Adam([self.lambdas], lr=lr)
        self.weights.copy_(initial * self.omega)

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Change λ by one step of Adam."""
        if self.present is not None and not self.present.any():
            return
        training = self.training_view
        derivatives = self._lookahead(training, losses, held_out)
        if bool(derivatives.isfinite().all()):
            self.lambdas.grad = derivatives
            if self.present is None:
                self._adam.step()
            else:
                put_back = keep_entries(
                    self.lambdas,
                    ~self.present,
                    moments=lambda: tensors_of(self._adam, self.lambdas),
                )
                self._adam.step()
                put_back()
            self.weights.copy_(self.omega * self.lambdas.detach())

    def _lookahead(self, training: TrainingView, losses: Losses, held_out: Losses) -> Tensor:
        """Return ∂L'/∂λ, (T,); not finite if d is 0 or too long."""
        state = training.optimizer.state
        groups = {
            parameter: group
            for group in training.optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad  # others do not learn in this turn
        }
        parameters = list(groups)

        def compute_gradients(evaluate: Losses, weights: Tensor) -> tuple[Tensor, ...]:
            with preserve_state(training.model):
                loss = torch.dot(evaluate(), weights)
                if not loss.requires_grad:  # the held-out batch has no labels
                    return tuple(map(torch.zeros_like, parameters))
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            gradients = tuple(map(materialize, gradients))
            training.average(gradients)
            return gradients

        def losses_at(distance: Tensor) -> Tensor:
            values = [p + distance * d for p, d in zip(parameters, direction, strict=True)]
            with preserve_state(training.model), replace_values(parameters, values):
                return losses(exact=True)

        def step_ahead(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
            group = groups[parameter]
            momentum = state.get(parameter, {}).get("momentum_buffer")
            change = gradient + group["weight_decay"] * parameter
            if momentum is not None:
                change = change + group["momentum"] * momentum
            return parameter - group["lr"] * change

        gradients = compute_gradients(losses, self.weights)
        with torch.no_grad():
            virtual = [step_ahead(p, g) for p, g in zip(parameters, gradients, strict=True)]
        with replace_values(parameters, virtual):
            gradients = compute_gradients(held_out, self.omega)
        del virtual
        with torch.no_grad():
            direction = [groups[p]["lr"] * g for p, g in zip(parameters, gradients, strict=True)]
            length = torch.stack([d.norm() for d in direction]).norm()
            difference = losses_at(_RADIUS / length) - losses_at(-_RADIUS / length)
        training.average([difference])
        return -self.omega * difference * (length / (2 * _RADIUS))

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the moments of the optimizer of λ."""
        return dict(self._adam.state_dict()["state"].get(0, {}))

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the moments of the optimizer of λ."""
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict(
            {"state": {0: dict(state)} if state else {}, "param_groups": groups}
        )
