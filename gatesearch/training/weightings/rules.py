"""Weights of torchjd from the Gramian of the tasks' gradients, (T, T) -> (T,), float64.

Where weights do not depend on the scale of the gradients, torchjd still compares it with fixed
constants (CAGrad takes gradients shorter than 0.01 for zero and stops), so Gramians come to it with
unit trace.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.training.weightings.gradients import Aggregation, Combination
from gatesearch.training.weightings.torchjd_adapter import Drawn, from_torchjd
from gatesearch.training.weightings.weighting import Basis, Weighting


class UnitTrace(nn.Module):
    """Applies a rule to the Gramian over its trace, among the tasks that have a gradient at all.

    A batch without a task's labels leaves that task no gradient, which would end every bargain.

    Args:
        rule: For any number of tasks.
        degree: The rule's weights grow with this power of the trace.
        every: Whether tasks without gradient take part too, for a rule that remembers each.
    """

    def __init__(self, rule: nn.Module, *, degree: float = 0.0, every: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.degree = degree
        self.every = every

    def forward(self, gramian: Tensor) -> Tensor:
        """Weights; 0 where there is no gradient."""
        weights = torch.zeros_like(gramian[0])
        trace = gramian.trace()
        if trace > 0:
            (some,) = torch.where((gramian.diagonal() > 0) | self.every)
            among = gramian[some[:, None], some] / trace
            weights[some] = self.rule(among) * trace**self.degree
        return weights


class Nash(nn.Module):
    """The rule of torchjd's NashMTL; its state, where the next solution starts, is kept.

    Its solver finds the bargain at trace 1 alone, so weights are scaled and cut here.

    Args:
        tasks: T.
        max_norm: Largest norm of the combined gradient; 0 for any.
        optim_niter: Iterations of the solver's linearisation.
    """

    def __init__(self, tasks: int, *, max_norm: float, optim_niter: int) -> None:
        super().__init__()
        self.max_norm = max_norm
        options = {"n_tasks": tasks, "max_norm": 0.0, "optim_niter": optim_niter}
        self.rule: Any = from_torchjd(
            "nash_mtl", lambda a, _: a.NashMTL(**options), extra="nash-mtl"
        )

    def forward(self, gramian: Tensor) -> Tensor:
        """Weights."""
        trace = gramian.trace()
        if trace == 0:
            return torch.zeros_like(gramian[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inaccurate solutions, which it expects
            weights: Tensor = self.rule.weighting(root(gramian / trace)) / trace.sqrt()
        norm = (weights @ gramian @ weights).sqrt()
        return weights * (self.max_norm / norm).clamp(max=1) if self.max_norm else weights

    def get_extra_state(self) -> dict[str, Tensor]:
        """The last solution."""
        return {"alpha": torch.from_numpy(np.array(self.rule.weighting.prvs_alpha))}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Go on from it."""
        self.rule.weighting.prvs_alpha = state["alpha"].numpy()


class ConflictFree(nn.Module):
    """The rule of torchjd's ConFIG, which turns with the gradients: any root of the Gramian does.

    Args:
        aggregator: (T, n) -> (n,), a combination of the rows.
    """

    def __init__(self, aggregator: nn.Module) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, gramian: Tensor) -> Tensor:
        """Weights."""
        rows = root(gramian)
        return torch.linalg.pinv(rows) @ self.aggregator(rows)


def root(gramian: Tensor) -> Tensor:
    """The symmetric (T, T) matrix whose square is the Gramian."""
    values, vectors = torch.linalg.eigh(gramian)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def pcgrad(basis: Basis) -> Weighting:
    """Each g_t less its projections on those it conflicts with, in random order; their sum.

    Yu et al., NeurIPS 2020, algorithm 1 (https://arxiv.org/abs/2001.06782).
    """
    rule = from_torchjd("pcgrad", lambda a, _: a.PCGradWeighting())
    return Combination(basis, UnitTrace(Drawn(rule, basis.seed)))


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


def mgda_rule(what: str) -> nn.Module:
    """Weights of the shortest convex combination.

    Désidéri, 2012, by the Frank-Wolfe algorithm of Sener & Koltun, NeurIPS 2018
    (https://arxiv.org/abs/1810.04650).

    Args:
        what: The weighting.
    """
    return UnitTrace(from_torchjd(what, lambda a, _: a.MGDAWeighting()))


def mgda(basis: Basis) -> Weighting:
    """The shortest convex combination of the gradients of the shared parameters."""
    return Combination(basis, mgda_rule("mgda"))


def imtl_g(basis: Basis) -> Weighting:
    """Σ_t w_t g_t with equal projections on all g_t, Σ_t w_t = 1.

    Liu et al., ICLR 2021, section 3.1 (https://openreview.net/forum?id=IMPnRXEWpvr).
    """
    return Combination(basis, UnitTrace(from_torchjd("imtl_g", lambda a, _: a.IMTLGWeighting())))


def upgrad(basis: Basis) -> Weighting:
    """Mean of the g_t, each projected on the cone of directions that no task objects to.

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
        max_norm: Of the combined gradient; 0 for any.
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
    """Each g_t turned until its cosine with the others is the usual one; their sum.

    Wang et al., ICLR 2021, algorithm 1 (https://arxiv.org/abs/2010.05874).

    Args:
        basis: Tasks with ω_t, seed of the order, device.
        beta: Share of the newest cosine in the usual one.
    """
    rule = Drawn(from_torchjd("gradvac", lambda a, _: a.GradVacWeighting(beta)), basis.seed)
    # Between orthogonal gradients the usual cosine stays 0, and torchjd makes the state to load.
    rule(torch.eye(len(basis.omega), dtype=torch.float64))
    return Combination(basis, UnitTrace(rule, every=True))


def config(basis: Basis) -> Weighting:
    """The direction with equal cosines with all g_t, as long as their projections on it together.

    Liu et al., ICLR 2025, equation 2 (https://arxiv.org/abs/2408.11104).
    """
    rule = ConflictFree(from_torchjd("config", lambda a, _: a.ConFIG()))
    return Combination(basis, UnitTrace(rule))


def graddrop(basis: Basis) -> Weighting:
    """Entry by entry, only the gradients of one sign, drawn by the share of that sign.

    Chen et al., NeurIPS 2020, algorithm 1 (https://arxiv.org/abs/2010.06808), on parameters.
    """
    return Aggregation(
        basis, Drawn(from_torchjd("graddrop", lambda a, _: a.GradDrop()), basis.seed)
    )
