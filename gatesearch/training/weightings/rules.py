"""Rules of torchjd: Gramian of the tasks' gradients (T, T) -> weights (T,), float64.

Even rules whose weights do not depend on the scale of the gradients compare it with fixed constants
in torchjd (CAGrad takes gradients shorter than 0.01 for zero and stops). So Gramians are divided by
their trace before.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.training.weightings.gradients import Aggregation, Combination
from gatesearch.training.weightings.torchjd_adapter import SeededDraws, from_torchjd
from gatesearch.training.weightings.weighting import Basis, Weighting

if TYPE_CHECKING:
    from torchjd.aggregation import GradVacWeighting, NashMTL


class UnitTrace(nn.Module):
    """Applies a rule to the Gramian over its trace, leaving out tasks whose gradient is 0.

    A task has no gradient if a batch has none of its labels, and some rules could then find no
    weights.

    Args:
        rule: A rule for any number of tasks.
        degree: The rule's weights grow with this power of the trace.
        state_of: For a rule that keeps a state of each task, restricts it for a while to that of
            some tasks, given by their indices. Such a rule also gets tasks that are present and
            have no gradient.
    """

    def __init__(
        self,
        rule: nn.Module,
        *,
        degree: float = 0.0,
        state_of: Callable[[Tensor], AbstractContextManager[None]] | None = None,
    ) -> None:
        super().__init__()
        self.rule = rule
        self.degree = degree
        self.state_of = state_of

    def forward(self, gramian: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute the weights; 0 for tasks without gradient.

        Args:
            gramian: (T, T).
            present: (T,) bool, the tasks with labels in the batch; None if all have some.
        """
        weights = torch.zeros_like(gramian[0])
        trace = gramian.trace()
        if trace > 0:
            every = torch.ones(len(gramian), dtype=torch.bool) if present is None else present
            (chosen,) = torch.where(every if self.state_of else gramian.diagonal() > 0)
            normalized = gramian[chosen[:, None], chosen] / trace
            with self.state_of(chosen) if self.state_of else nullcontext():
                weights[chosen] = self.rule(normalized) * trace**self.degree
        return weights


class Nash(nn.Module):
    """The rule of torchjd's NashMTL; keeps the last solution, where the solver starts next.

    The solver finds the bargain only for Gramians of trace 1, so weights are scaled and clipped
    here.

    Args:
        tasks: T.
        max_norm: Largest norm of the combined gradient; 0 for no bound.
        optim_niter: Iterations of the solver's linearisation.
    """

    def __init__(self, tasks: int, *, max_norm: float, optim_niter: int) -> None:
        super().__init__()
        self.max_norm = max_norm
        self.optim_niter = optim_niter
        self.rule = self._solver(tasks)
        # Number of tasks -> solver for as many of the T.
        self._of_some: dict[int, NashMTL] = {}

    def forward(self, gramian: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute the weights; see `UnitTrace.forward`."""
        trace = gramian.trace()
        if trace == 0:
            return torch.zeros_like(gramian[0])
        if present is None:
            return self._weights(self.rule, gramian)
        (chosen,) = torch.where(present & (gramian.diagonal() > 0))
        count = len(chosen)
        solver = self._of_some.get(count) or self._solver(count)
        self._of_some[count] = solver
        last = self.get_extra_state()["alpha"].double()
        solver.weighting.prvs_alpha = last[chosen].numpy()
        weights = torch.zeros_like(gramian[0])
        weights[chosen] = self._weights(solver, gramian[chosen[:, None], chosen])
        last[chosen] = torch.from_numpy(solver.weighting.prvs_alpha).double()
        self.set_extra_state({"alpha": last})
        return weights

    def _solver(self, tasks: int) -> "NashMTL":
        options = {"n_tasks": tasks, "max_norm": 0.0, "optim_niter": self.optim_niter}
        rule = from_torchjd("nash_mtl", lambda a, _: a.NashMTL(**options), extra="nash-mtl")
        return cast("NashMTL", rule)

    def _weights(self, solver: "NashMTL", gramian: Tensor) -> Tensor:
        trace = gramian.trace()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the solver's, of inaccurate solutions; expected
            weights: Tensor = solver.weighting(root(gramian / trace)) / trace.sqrt()
        norm = (weights @ gramian @ weights).sqrt()
        return weights * (self.max_norm / norm).clamp(max=1) if self.max_norm else weights

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the last solution."""
        return {"alpha": torch.from_numpy(np.array(self.rule.weighting.prvs_alpha))}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore the last solution."""
        self.rule.weighting.prvs_alpha = state["alpha"].numpy()


class ConflictFree(nn.Module):
    """The rule of torchjd's ConFIG, applied to a root of the Gramian in place of the gradients.

    Its weights do not change if all gradients are rotated, so any root gives the same.

    Args:
        aggregator: Gradients (T, n) -> a combination of them (n,).
    """

    def __init__(self, aggregator: nn.Module) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, gramian: Tensor) -> Tensor:
        """Compute the weights."""
        rows = root(gramian)
        return torch.linalg.pinv(rows) @ self.aggregator(rows)


def root(gramian: Tensor) -> Tensor:
    """Compute the symmetric (T, T) matrix whose square is the Gramian."""
    values, vectors = torch.linalg.eigh(gramian)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def pcgrad(basis: Basis) -> Weighting:
    """Sum of the g_t, each less its projections on those it conflicts with, in random order.

    Yu et al., NeurIPS 2020, algorithm 1 (https://arxiv.org/abs/2001.06782).
    """
    rule = from_torchjd("pcgrad", lambda a, _: a.PCGradWeighting())
    return Combination(basis, UnitTrace(SeededDraws(rule, basis.seed)))


def cagrad(basis: Basis, *, c: float = 0.4) -> Weighting:
    """g_0 + c ‖g_0‖ g_w / ‖g_w‖, g_0 the mean gradient, g_w = Σ_t w_t g_t of the dual's w.

    w minimises g_w · g_0 + c ‖g_0‖ ‖g_w‖ on the simplex (Liu et al., NeurIPS 2021, algorithm 1,
    https://arxiv.org/abs/2110.14048; its code divides by 1 + c² and multiplies by T).

    Args:
        basis: Tasks with ω_t, device.
        c: Radius of the ball around g_0, in ‖g_0‖.
    """
    rule = from_torchjd("cagrad", lambda a, _: a.CAGradWeighting(c), extra="cagrad")
    return Combination(basis, UnitTrace(rule))


def mgda_rule(weighting: str) -> nn.Module:
    """Build the rule of the shortest convex combination.

    Désidéri, 2012, by the Frank-Wolfe algorithm of Sener & Koltun, NeurIPS 2018
    (https://arxiv.org/abs/1810.04650).

    Args:
        weighting: Name of the weighting that needs it.
    """
    return UnitTrace(from_torchjd(weighting, lambda a, _: a.MGDAWeighting()))


def mgda(basis: Basis) -> Weighting:
    """The shortest convex combination of the gradients of the shared parameters."""
    return Combination(basis, mgda_rule("mgda"))


def imtl_g(basis: Basis) -> Weighting:
    """Σ_t w_t g_t with equal projections on all g_t, Σ_t w_t = 1.

    Liu et al., ICLR 2021, section 3.1 (https://openreview.net/forum?id=IMPnRXEWpvr).
    """
    return Combination(basis, UnitTrace(from_torchjd("imtl_g", lambda a, _: a.IMTLGWeighting())))


def upgrad(basis: Basis) -> Weighting:
    """Mean of the g_t, each projected on the cone of directions that raise no task's loss.

    Quinton & Rey, 2024 (https://arxiv.org/abs/2406.16232).
    """
    rule = from_torchjd("upgrad", lambda a, _: a.UPGradWeighting(), extra="quadprog-projector")
    return Combination(basis, UnitTrace(rule))


def aligned_mtl(basis: Basis) -> Weighting:
    """Mean gradient after the principal components of the g_t are scaled to the smallest one.

    Senushkin et al., CVPR 2023, algorithm 1 (https://arxiv.org/abs/2305.19000).
    """
    return Combination(
        basis, UnitTrace(from_torchjd("aligned_mtl", lambda a, _: a.AlignedMTLWeighting()))
    )


def nash_mtl(basis: Basis, *, max_norm: float = 1.0, optim_niter: int = 20) -> Weighting:
    """The bargain in which (G w)_t = 1 / w_t; no longer than `max_norm`.

    Navon et al., ICML 2022, algorithm 1 (https://arxiv.org/abs/2202.01017).

    Args:
        basis: Tasks with ω_t, device.
        max_norm: Largest norm of the combined gradient; 0 for no bound.
        optim_niter: Iterations of the solver's linearisation.

    Raises:
        UsageError: A negative norm.
    """
    if max_norm < 0:
        raise UsageError(f"max_norm of weighting nash_mtl is at least 0, found {max_norm}")
    rule = Nash(len(basis.omega), max_norm=max_norm, optim_niter=optim_niter)
    return Combination(basis, rule)


def fairgrad(basis: Basis, *, alpha: float = 1.0) -> Weighting:
    """Weights with (G w)_t = w_t^(-1/α).

    Ban & Ji, ICML 2024, equation 4 (https://arxiv.org/abs/2402.15638).

    Args:
        basis: Tasks with ω_t, device.
        alpha: α; 0 is the mean, 1 proportional fairness, ∞ the worst task.
    """
    rule = from_torchjd("fairgrad", lambda a, _: a.FairGradWeighting(alpha), extra="fairgrad")
    return Combination(basis, UnitTrace(rule, degree=-alpha / (1 + alpha)))


def gradvac(basis: Basis, *, beta: float = 0.5) -> Weighting:
    """Sum of the g_t, each turned until its cosine with the others is the usual one.

    Wang et al., ICLR 2021, algorithm 1 (https://arxiv.org/abs/2010.05874).

    Args:
        basis: Tasks with ω_t, the seed of the order, device.
        beta: Share of the newest cosine in the usual one.
    """
    rule = from_torchjd("gradvac", lambda a, _: a.GradVacWeighting(beta))
    seeded = SeededDraws(rule, basis.seed)
    # A first call on orthogonal gradients leaves the usual cosine at 0, and has torchjd create the
    # state that a checkpoint is loaded into.
    seeded(torch.eye(len(basis.omega), dtype=torch.float64))
    state_of = partial(_usual_cosines_of, cast("GradVacWeighting", rule))
    return Combination(basis, UnitTrace(seeded, state_of=state_of))


@contextmanager
def _usual_cosines_of(rule: "GradVacWeighting", chosen: Tensor) -> Iterator[None]:
    """Restrict the usual cosines, which torchjd keeps in private attributes, to some tasks."""
    whole = cast(Tensor, rule._phi_t)

    def replace(cosines: Tensor) -> None:
        rule._buffers["_phi_t"] = cosines
        rule._state_key = len(cosines), cosines.dtype

    some = whole[chosen[:, None], chosen]
    if len(some) < len(whole):
        replace(some)
    yield
    if len(some) < len(whole):
        whole[chosen[:, None], chosen] = some  # which the rule has changed in place
        replace(whole)


def config(basis: Basis) -> Weighting:
    """The direction with equal cosines with all g_t, as long as their projections on it add up to.

    Liu et al., ICLR 2025, equation 2 (https://arxiv.org/abs/2408.11104).
    """
    rule = ConflictFree(from_torchjd("config", lambda a, _: a.ConFIG()))
    return Combination(basis, UnitTrace(rule))


def graddrop(basis: Basis) -> Weighting:
    """In each entry the sum of the gradients of one sign, drawn with the share of that sign.

    Chen et al., NeurIPS 2020, algorithm 1 (https://arxiv.org/abs/2010.06808), on parameters.
    """
    return Aggregation(
        basis, SeededDraws(from_torchjd("graddrop", lambda a, _: a.GradDrop()), basis.seed)
    )
