"""Weights that depend on the tasks' gradients of what they share.

Shared is every parameter that more than one task's loss reaches; it is found in the graph of each
batch. Of a multi-task network that is the encoder; of MTAN the encoder and the refinement (masks
are a task's own); of cross-stitch networks all encoders and stitches; of an InterroGate supernet
the shared stream, the gates, and each task's stream as far as the mix hands it on. All other
parameters, heads above all, get the gradient of their own task's ω_t L_t.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.outside import owned
from gatesearch.training.weightings.weighting import Basis, Weighting, refuse_nonfinite


class PerTask(Weighting):
    """Keeps the gradients g_t of ω_t L_t apart, one backward pass each, until all are in.

    A penalty is not weighed; its gradient is added to what becomes of them.

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
        self, losses: Sequence[Tensor], *, share: float = 1.0, penalty: Tensor | None = None
    ) -> None:
        """See `Weighting.backward`."""
        parameters = self.training_seen.parameters
        penalised = penalty is not None and penalty.requires_grad
        for t, (loss, omega) in enumerate(zip(losses, self.omega, strict=True)):
            kept = penalised or t + 1 < len(losses)
            gradients = torch.autograd.grad(
                loss, parameters, share * omega, retain_graph=kept, allow_unused=True
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    rows = self._rows.setdefault(parameter, {})
                    rows[t] = rows[t] + gradient if t in rows else owned(gradient)
        if penalty is not None and penalised:
            (share * penalty).backward()

    def pending(self) -> list[Tensor]:
        """See `Weighting.pending`."""
        return [row for rows in self._rows.values() for row in rows.values()]

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        refuse_nonfinite(losses, self.tasks, "loss")
        for parameter in [p for p, rows in self._rows.items() if len(rows) == 1]:
            (own,) = self._rows.pop(parameter).values()
            put(parameter, own)
        if self._rows:
            gramian = gramian_of(self._rows.values(), len(self.tasks))
            refuse_nonfinite(gramian.diagonal(), self.tasks, "squared gradient")
            factors = self.merge(self._rows, gramian)
            self.weights.copy_(self.omega * factors.to(self.omega))
        self.clear()
        super().combine(losses)

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """Add its gradient to each shared parameter, taking it out of `rows`: factors of g_t, (T,).

        Args:
            rows: Shared parameter -> index of a task -> gradient.
            gramian: (T, T) g_s · g_t over all of them, float64, on the processor.
        """
        raise NotImplementedError


class Combination(PerTask):
    """Σ_t w_t g_t with weights from the Gramian.

    Args:
        basis: Tasks with ω_t, device.
        rule: (T, T) -> (T,) on the processor, float64.
    """

    def __init__(self, basis: Basis, rule: nn.Module) -> None:
        super().__init__(basis)
        self.rule = rule

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """See `PerTask.merge`."""
        factors: Tensor = self.rule(gramian)
        for parameter, own in drained(rows):
            put(parameter, weighted(own, factors.tolist()))
        return factors


class Aggregation(PerTask):
    """Whatever a rule makes of the gradients' entries, each by itself.

    Args:
        basis: Tasks with ω_t, device.
        rule: (T, n) -> (n,).
    """

    def __init__(self, basis: Basis, rule: nn.Module) -> None:
        super().__init__(basis)
        self.rule = rule

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """See `PerTask.merge`; the factors are those of the nearest linear combination."""
        along = torch.zeros(len(self.tasks), dtype=torch.float64)
        for parameter, own in drained(rows):
            stacked = torch.stack([row.flatten() for row in own.values()])
            merged = self.rule(stacked)
            along[list(own)] += (stacked @ merged).cpu().double()
            put(parameter, merged.view(parameter.shape))
        return torch.linalg.pinv(gramian, hermitian=True) @ along


def gramian_of(shared: Iterable[Mapping[int, Tensor]], tasks: int) -> Tensor:
    """(T, T) sums of g_s · g_t, float64, on the processor; 0 for what does not reach.

    Args:
        shared: For each parameter, index of a task -> gradient.
        tasks: T.
    """
    pairs: list[tuple[int, int]] = []
    products: list[Tensor] = []
    for rows in shared:
        # Parts of a batch can lack labels, so that a later task's gradient came first.
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


def weighted(rows: Mapping[int, Tensor], factors: Sequence[float]) -> Tensor:
    """Σ_t w_t g_t."""
    (first, start), *others = rows.items()
    total = start * factors[first]
    for t, row in others:
        total.add_(row, alpha=factors[t])
    return total


def _flat(rows: Sequence[Tensor]) -> list[Tensor]:
    """Vectors in one order of entries, which for gradients of one layout are no copies."""
    order = sorted(range(rows[0].dim()), key=rows[0].stride, reverse=True)
    return [row.permute(order).reshape(-1).float() for row in rows]


def put(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to a parameter's gradient, in the memory layout that fused optimizers rely on."""
    if parameter.grad is not None:
        parameter.grad += gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


def drained(
    rows: dict[nn.Parameter, dict[int, Tensor]],
) -> Iterable[tuple[nn.Parameter, dict[int, Tensor]]]:
    """All items, each let go of before the next, so that memory is free for what it became."""
    while rows:
        yield rows.popitem()
