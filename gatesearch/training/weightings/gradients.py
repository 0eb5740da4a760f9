"""Weights that depend on the tasks' gradients of the parameters that they share.

A parameter is shared if more than one task's loss depends on it, which the graph of each batch
tells. In a multi-task network that is the encoder; in MTAN the encoder and the refinement (each
mask serves one task); in cross-stitch networks all encoders and stitches; in a gated
supernet the shared stream, the gates, and each task's stream up to its last mix. All other
parameters, such as heads, get the gradient of ω_t L_t of the one task that depends on them.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.temporary_changes import materialize
from gatesearch.training.weightings.weighting import Basis, Weighting, refuse_nonfinite


class PerTask(Weighting):
    """Keeps the gradients g_t of ω_t L_t apart, with one backward pass for each, until `combine`.

    A penalty has no weight; its gradient is added to the combined one.

    Args:
        basis: Tasks with ω_t, device.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__(basis)
        # Parameter -> index of a task whose loss reaches it -> gradient.
        self._rows: dict[nn.Parameter, dict[int, Tensor]] = {}

    def clear(self) -> None:
        """See `Weighting.clear`."""
        self._rows = {}

    def backward(
        self,
        losses: Sequence[Tensor],
        *,
        share: float = 1.0,
        shares: Tensor | None = None,
        penalty: Tensor | None = None,
    ) -> None:
        """See `Weighting.backward`."""
        parameters = self.training_view.parameters
        slopes = share * self.omega if shares is None else shares.to(self.omega) * self.omega
        penalised = penalty is not None and penalty.requires_grad
        for t, (loss, slope) in enumerate(zip(losses, slopes, strict=True)):
            if not loss.requires_grad:  # the task is absent, or all that it depends on is frozen
                continue
            reused = penalised or t + 1 < len(losses)
            gradients = torch.autograd.grad(
                loss, parameters, slope, retain_graph=reused, allow_unused=True
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    rows = self._rows.setdefault(parameter, {})
                    rows[t] = rows[t] + gradient if t in rows else materialize(gradient)
        if penalty is not None and penalised:
            (share * penalty).backward()

    def pending(self) -> list[Tensor]:
        """See `Weighting.pending`."""
        return [row for rows in self._rows.values() for row in rows.values()]

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        refuse_nonfinite(losses, self.tasks, "loss")
        for parameter in [p for p, rows in self._rows.items() if len(rows) == 1]:
            (gradient,) = self._rows.pop(parameter).values()
            add_gradient(parameter, gradient)
        if self._rows:
            gramian = compute_gramian(self._rows.values(), len(self.tasks))
            refuse_nonfinite(gramian.diagonal(), self.tasks, "squared gradient")
            factors = self.merge(self._rows, gramian)
            self.set_weights(self.omega * factors.to(self.omega), of=self.present)
        elif self.present is not None:  # perhaps one task alone, of which others are the weights
            self.set_weights(self.omega, of=self.present)
        self.clear()
        super().combine(losses)

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """Add its combined gradient to each shared parameter, and remove the parameter from `rows`.

        Args:
            rows: Shared parameter -> index of a task -> gradient.
            gramian: (T, T) g_s · g_t over all shared parameters, float64, on the processor.

        Returns:
            (T,) factors of g_t in the combined gradient.
        """
        raise NotImplementedError


class Combination(PerTask):
    """Σ_t w_t g_t with weights from the Gramian.

    Args:
        basis: Tasks with ω_t, device.
        rule: Gramian (T, T), and the tasks that are present (T,) or None -> weights (T,), float64
            on the processor. An absent task has a Gramian of zeros.
    """

    def __init__(self, basis: Basis, rule: nn.Module) -> None:
        super().__init__(basis)
        self.rule = rule

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """See `PerTask.merge`."""
        factors: Tensor = self.rule(gramian, self.present)
        for parameter, gradients in pop_all(rows):
            add_gradient(parameter, weighted_sum(gradients, factors.tolist()))
        return factors


class Aggregation(PerTask):
    """Combines the gradients entry by entry.

    Args:
        basis: Tasks with ω_t, device.
        rule: Gradients (T, n) -> their combination (n,).
    """

    def __init__(self, basis: Basis, rule: nn.Module) -> None:
        super().__init__(basis)
        self.rule = rule

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """See `PerTask.merge`; the factors are those of the nearest linear combination."""
        projections = torch.zeros(len(self.tasks), dtype=torch.float64)
        for parameter, gradients in pop_all(rows):
            stacked = torch.stack([gradient.flatten() for gradient in gradients.values()])
            merged = self.rule(stacked)
            projections[list(gradients)] += (stacked @ merged).cpu().double()
            add_gradient(parameter, merged.view(parameter.shape))
        return torch.linalg.pinv(gramian, hermitian=True) @ projections


def compute_gramian(shared: Iterable[Mapping[int, Tensor]], tasks: int) -> Tensor:
    """Sum g_s · g_t over parameters; a task whose loss does not depend on one adds 0.

    Args:
        shared: For each parameter, index of a task -> gradient.
        tasks: T.

    Returns:
        (T, T) float64, on the processor.
    """
    pairs: list[tuple[int, int]] = []
    products: list[Tensor] = []
    for rows in shared:
        # A part of a batch can lack a task's labels, so that a later task's gradient came first.
        names = sorted(rows)
        flat = _flat([rows[t] for t in names])
        pairs += itertools.combinations_with_replacement(names, 2)
        both = itertools.combinations_with_replacement(flat, 2)
        products += [torch.dot(s, t) for s, t in both]
    gramian = torch.zeros(tasks, tasks, dtype=torch.float64)
    if products:
        first, second = torch.tensor(pairs).T
        values = torch.stack(products).cpu().double()
        gramian.index_put_((first, second), values, accumulate=True)
        gramian += gramian.triu(1).T
    return gramian


def weighted_sum(rows: Mapping[int, Tensor], factors: Sequence[float]) -> Tensor:
    """Compute Σ_t w_t g_t."""
    (first, start), *others = rows.items()
    total = start * factors[first]
    for t, row in others:
        total.add_(row, alpha=factors[t])
    return total


def _flat(rows: Sequence[Tensor]) -> list[Tensor]:
    """Flatten gradients in one order of entries, without copies if all have the same layout."""
    order = sorted(range(rows[0].dim()), key=rows[0].stride, reverse=True)
    return [row.permute(order).reshape(-1).float() for row in rows]


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to a parameter's gradient, in the memory layout that fused optimizers expect."""
    if parameter.grad is not None:
        parameter.grad += gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


def pop_all(
    rows: dict[nn.Parameter, dict[int, Tensor]],
) -> Iterable[tuple[nn.Parameter, dict[int, Tensor]]]:
    """Remove and yield each item, so that its memory is free once it is combined."""
    while rows:
        yield rows.popitem()
