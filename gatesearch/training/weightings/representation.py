"""MGDA-UB: weights from the gradients of the shared representation, one pass through the encoder.

Sener & Koltun, NeurIPS 2018, section 3.3 (https://arxiv.org/abs/1810.04650).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.gradients import gramian_of, put, weighted
from gatesearch.training.weightings.rules import mgda_rule
from gatesearch.training.weightings.weighting import Basis, Training, Weighting, refuse_nonfinite


class UpperBound(Weighting):
    """Weights w of the shortest Σ_t w_t ∂ω_t L_t / ∂Z; the encoder gets Σ_t w_t ∂ω_t L_t / ∂θ.

    Z is all that the heads read: of a multi-task network the encoder's features. Where every head
    reads features of its own (MTAN, cross-stitch, InterroGate), Z is all of them together, their
    gradients are orthogonal, and w_t ~ 1 / ‖∂ω_t L_t / ∂Z‖². Heads get the gradient of ω_t L_t.
    Each part of a batch is weighed by itself.

    Args:
        basis: Tasks with ω_t, device.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__(basis)
        self.rule = mgda_rule("mgda_ub")
        self._read: dict[int, Tensor] = {}
        self._squares = torch.zeros(len(self.tasks), dtype=torch.float64)

    @contextmanager
    def attached(self, training: Training) -> Iterator[None]:
        """See `Weighting.attached`; meanwhile it sees what the heads read."""
        heads = heads_of(training.model).values()
        hooks = [head.register_forward_pre_hook(self._see) for head in heads]
        try:
            with super().attached(training):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0]
        if features.requires_grad:  # not a teacher's
            self._read[id(features)] = features

    def clear(self) -> None:
        """See `Weighting.clear`."""
        self._read = {}
        self._squares.zero_()

    def backward(
        self, losses: Sequence[Tensor], *, share: float = 1.0, penalty: Tensor | None = None
    ) -> None:
        """See `Weighting.backward`."""
        heads = heads_of(self.training_seen.model)
        penalised = penalty is not None and penalty.requires_grad
        read, self._read = list(self._read.values()), {}
        rows: list[dict[int, Tensor]] = [{} for _ in read]
        for t, (loss, omega) in enumerate(zip(losses, self.omega, strict=True)):
            own = [p for p in heads[self.tasks[t]].parameters() if p.requires_grad]
            gradients = torch.autograd.grad(
                loss, [*read, *own], share * omega, retain_graph=penalised, allow_unused=True
            )
            for features, gradient in zip(rows, gradients, strict=False):
                if gradient is not None:
                    features[t] = gradient
            for parameter, gradient in zip(own, gradients[len(read) :], strict=True):
                if gradient is not None:
                    put(parameter, gradient)
        gramian = gramian_of(rows, len(self.tasks))
        self._squares += gramian.diagonal()
        factors = torch.ones(len(self.tasks), dtype=torch.float64)
        if len(self.tasks) > 1 and bool(gramian.isfinite().all()):
            factors = self.rule(gramian)
        self.weights.copy_(self.omega * factors.to(self.omega))
        roots = [z for z, own in zip(read, rows, strict=True) if own]
        slopes = [weighted(own, factors.tolist()) for own in rows if own]
        if penalty is not None and penalised:
            roots.append(share * penalty)
            slopes.append(torch.ones_like(penalty))
        torch.autograd.backward(roots, slopes)

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        refuse_nonfinite(losses, self.tasks, "loss")
        refuse_nonfinite(self._squares, self.tasks, "squared gradient of the representation")
        self.clear()
        super().combine(losses)


def heads_of(model: nn.Module) -> nn.ModuleDict:
    """Task -> head of a network of `gatesearch.models`, or of one that wraps it."""
    return next(
        cast(nn.ModuleDict, module)
        for name, module in model.named_modules()
        if name.split(".")[-1] == "heads"
    )
