"""MGDA-UB: weights from the gradients of the shared representation, one pass through the encoder.

Sener & Koltun, NeurIPS 2018, section 3.3 (https://arxiv.org/abs/1810.04650).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.gradients import (
    add_gradient,
    compute_gramian,
    weighted_sum,
)
from gatesearch.training.weightings.rules import mgda_rule
from gatesearch.training.weightings.weighting import (
    Basis,
    TrainingView,
    Weighting,
    refuse_nonfinite,
)


class UpperBound(Weighting):
    """Weights w of the shortest Σ_t w_t ∂ω_t L_t / ∂Z; the encoder gets Σ_t w_t ∂ω_t L_t / ∂θ.

    Z is all that the heads read: in a multi-task network the encoder's features. If every head
    reads features of its own (MTAN, cross-stitch, supernets), Z is all of them together, their
    gradients are orthogonal, and w_t ~ 1 / ‖∂ω_t L_t / ∂Z‖². Heads get the gradient of ω_t L_t.
    Each part of a batch has weights of its own.

    Args:
        basis: Tasks with ω_t, device.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__(basis)
        self.rule = mgda_rule("mgda_ub")
        self._features: dict[int, Tensor] = {}  # by id, as several heads may read the same
        self._squares = torch.zeros(len(self.tasks), dtype=torch.float64)

    @contextmanager
    def attached(self, view: TrainingView) -> Iterator[None]:
        """See `Weighting.attached`; meanwhile hooks keep what the heads read."""
        heads = heads_of(view.model).values()
        hooks = [head.register_forward_pre_hook(self._keep_features) for head in heads]
        try:
            with super().attached(view):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_features(
        self, head: nn.Module, inputs: tuple[Tensor | list[Tensor], ...]
    ) -> tuple[Tensor | list[Tensor], ...]:
        features, *rest = inputs
        if isinstance(features, list):
            return ([self._direct(x) for x in features], *rest)
        if not features.requires_grad:  # those of a teacher
            return inputs
        return (self._features.setdefault(id(features), features), *rest)

    def _direct(self, x: Tensor) -> Tensor:
        """Return a map as heads alone read it: later maps, which are computed from it, do not."""
        if not x.requires_grad:
            return x
        return self._features.setdefault(id(x), x.view_as(x))

    def clear(self) -> None:
        """See `Weighting.clear`."""
        self._features = {}
        self._squares.zero_()

    def backward(
        self,
        losses: Sequence[Tensor],
        *,
        share: float = 1.0,
        shares: Tensor | None = None,
        penalty: Tensor | None = None,
    ) -> None:
        """See `Weighting.backward`."""
        chosen = None if shares is None else shares > 0
        scaled = share * self.omega if shares is None else shares.to(self.omega) * self.omega
        heads = heads_of(self.training_view.model)
        penalised = penalty is not None and penalty.requires_grad
        read, self._features = list(self._features.values()), {}
        # For each of the features, index of a task -> gradient.
        rows: list[dict[int, Tensor]] = [{} for _ in read]
        for t, (loss, slope) in enumerate(zip(losses, scaled, strict=True)):
            if not loss.requires_grad:  # the task is absent, or all that it depends on is frozen
                continue
            head = [p for p in heads[self.tasks[t]].parameters() if p.requires_grad]
            gradients = torch.autograd.grad(
                loss, [*read, *head], slope, retain_graph=penalised, allow_unused=True
            )
            for row, gradient in zip(rows, gradients, strict=False):
                if gradient is not None:
                    row[t] = gradient
            for parameter, gradient in zip(head, gradients[len(read) :], strict=True):
                if gradient is not None:
                    add_gradient(parameter, gradient)
        gramian = compute_gramian([row for row in rows if row], len(self.tasks))
        self._squares += gramian.diagonal()
        factors = torch.ones(len(self.tasks), dtype=torch.float64)
        if len(self.tasks) > 1 and bool(gramian.isfinite().all()):
            factors = self.rule(gramian)
        self.set_weights(self.omega * factors.to(self.omega), of=chosen)
        roots = [features for features, row in zip(read, rows, strict=True) if row]
        slopes = [weighted_sum(row, factors.tolist()) for row in rows if row]
        if penalty is not None and penalised:
            roots.append(share * penalty)
            slopes.append(torch.ones_like(penalty))
        if roots:
            torch.autograd.backward(roots, slopes)

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        refuse_nonfinite(losses, self.tasks, "loss")
        refuse_nonfinite(self._squares, self.tasks, "squared gradient of the representation")
        self.clear()
        super().combine(losses)


def heads_of(model: nn.Module) -> nn.ModuleDict:
    """Find task -> head in a network of `gatesearch.models`, or in one that wraps it."""
    return next(
        cast(nn.ModuleDict, module)
        for name, module in model.named_modules()
        if name.split(".")[-1] == "heads"
    )
