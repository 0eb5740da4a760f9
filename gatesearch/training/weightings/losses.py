"""Weights that depend on the losses, or are drawn at random."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.temporary_changes import preserve_state
from gatesearch.training.weightings.torchjd_adapter import SeededDraws, from_torchjd
from gatesearch.training.weightings.weighting import Basis, Losses, Weighting

if TYPE_CHECKING:
    from torchjd.scalarization import DWA, FAMO


class Scalarized(Weighting):
    """w_t = ω_t ∂S/∂ℓ_t of a scalarization S(ℓ) of torchjd at ℓ_t = ω_t L_t.

    By the chain rule the network's gradients are those of S itself.

    Args:
        basis: Tasks with ω_t, device.
        scalarizer: S, (T,) -> scalar.
        learns: Whether the network's optimizer trains the parameters of S.
    """

    def __init__(self, basis: Basis, scalarizer: nn.Module, *, learns: bool = False) -> None:
        super().__init__(basis)
        self.scalarizer = scalarizer.to(basis.device)
        self.learns = learns

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of S, such as log-variances, if they are learned."""
        return list(self.scalarizer.parameters()) if self.learns else []

    def backward(
        self, losses: Sequence[Tensor], *, share: float = 1.0, penalty: Tensor | None = None
    ) -> None:
        """See `Weighting.backward`; each part of a batch has the weights of its own losses."""
        values = self.omega * torch.stack(list(losses)).detach()
        learned = self.learned_parameters()
        derivatives, *gradients = differentiate(self.scalarizer, values, learned)
        for parameter, gradient in zip(learned, gradients, strict=True):
            gradient = share * gradient
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.weights.copy_(derivatives * self.omega)
        super().backward(losses, share=share, penalty=penalty)


def differentiate(
    scalarizer: nn.Module, losses: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, ...]:
    """Differentiate a scalarization by the losses, then by each parameter."""
    leaf = losses.clone().requires_grad_()
    return torch.autograd.grad(scalarizer(leaf), [leaf, *parameters])


def uncertainty(basis: Basis) -> Weighting:
    """Σ_t L_t / (2 e^{s_t}) + s_t / 2 with learned log-variances s_t, which are 0 at first.

    Where gradients of s_t are 0, s_t = log L_t (Kendall et al., CVPR 2018, equation 7, with
    s = log σ²; https://arxiv.org/abs/1705.07115).
    """
    scalarizer = from_torchjd("uncertainty", lambda _, s: s.UW(len(basis.omega)))
    return Scalarized(basis, scalarizer, learns=True)


def imtl_l(basis: Basis) -> Weighting:
    """Σ_t e^{s_t} L_t - s_t with learned s_t, which are 0 at first.

    Liu et al., ICLR 2021, section 3.2 (https://openreview.net/forum?id=IMPnRXEWpvr).
    """
    scalarizer = from_torchjd("imtl_l", lambda _, s: s.IMTLL(len(basis.omega)))
    return Scalarized(basis, scalarizer, learns=True)


def stch(basis: Basis, *, mu: float = 0.1) -> Weighting:
    """μ log Σ_t exp(L_t / (T μ)), a smooth maximum.

    Lin et al., ICML 2024 (https://arxiv.org/abs/2402.19078).

    Args:
        basis: Tasks with ω_t, device.
        mu: μ; the paper tries 0.01 to 1.
    """
    return Scalarized(basis, from_torchjd("stch", lambda _, s: s.STCH(mu)))


class RandomLossWeighting(Weighting):
    """w = ω softmax(z), z ~ N(0, I) in each step.

    Lin et al., TMLR 2022, algorithm 2 (https://arxiv.org/abs/2111.10603).

    Args:
        basis: Tasks with ω_t, the seed of z, device.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__(basis)
        self.scalarizer = SeededDraws(from_torchjd("rlw", lambda _, s: s.Random()), basis.seed)

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Draw the weights."""
        (drawn,) = differentiate(self.scalarizer, torch.ones(len(self.tasks)), [])
        self.weights.copy_(self.omega * drawn.to(self.omega))


class DynamicWeightAverage(Weighting):
    """w_t(e) = ω_t T softmax_t(r_t / τ), r_t = L_t(e-1) / L_t(e-2) of the epochs' mean losses.

    w = ω in the first two epochs (Liu et al., CVPR 2019, equation 7,
    https://arxiv.org/abs/1803.10704). r_t = 1 if the task's loss was 0 in one of the two epochs.

    Args:
        basis: Tasks with ω_t, device.
        temperature: τ.
    """

    _means: Tensor

    def __init__(self, basis: Basis, *, temperature: float = 2.0) -> None:
        super().__init__(basis)
        scalarizer = from_torchjd("dwa", lambda _, s: s.DWA(temperature))
        self.scalarizer = cast("DWA", scalarizer)
        self.register_buffer("_means", torch.full((2, len(self.tasks)), torch.nan).double())

    def end_epoch(self, means: Mapping[str, float]) -> dict[str, float]:
        """See `Weighting.end_epoch`; sets the weights of the next epoch."""
        curve = super().end_epoch(means)
        latest = torch.tensor([[means[task] for task in self.tasks]]).double()
        self._means.copy_(torch.cat([self._means[1:], latest]))
        if not self._means.isnan().any():
            self.scalarizer.reset()
            for row in torch.where((self._means > 0).all(0), self._means, 1.0):
                self.scalarizer(row)
                self.scalarizer.step()
            (factors,) = differentiate(self.scalarizer, torch.ones_like(latest[0]), [])
            self.weights.copy_(self.omega * factors.to(self.omega))
        return curve


class FastAdaptive(Scalarized):
    """c Σ_t z_t log L_t, z = softmax(ξ); ξ learns from how much each step lowered each log L_t.

    Liu et al., NeurIPS 2023 (https://arxiv.org/abs/2306.03792). Costs one more forward pass per
    step, which changes neither batch norm nor random states.

    Args:
        basis: Tasks with ω_t, device.
        lr: Learning rate of ξ.
        weight_decay: Decay of ξ.
    """

    def __init__(self, basis: Basis, *, lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        tasks = len(basis.omega)
        scalarizer = from_torchjd(
            "famo", lambda _, s: s.FAMO(tasks, lr=lr, weight_decay=weight_decay)
        )
        super().__init__(basis, scalarizer)
        self._before = torch.zeros_like(self.omega)

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        super().combine(losses)
        self._before = self.omega * losses.to(self.omega)

    def after_step(self, *, losses: Losses) -> None:
        """Learn ξ."""
        with torch.no_grad(), preserve_state(self.training_view.model):
            after = self.omega * losses()
        self.training_view.average([after])
        self._famo(self._before)
        self._famo.update(after)

    @property
    def _famo(self) -> "FAMO":
        return cast("FAMO", self.scalarizer)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the moments of the optimizer of ξ, which torchjd keeps in a private attribute."""
        adam = self._famo._optimizer
        return {} if adam is None else dict(adam.state_dict()["state"][0])

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the moments of the optimizer of ξ."""
        famo = self._famo
        famo._optimizer = None
        if state:
            adam = torch.optim.Adam([famo._w], lr=famo.lr, weight_decay=famo.weight_decay)
            groups = adam.state_dict()["param_groups"]
            adam.load_state_dict({"state": {0: dict(state)}, "param_groups": groups})
            famo._optimizer = adam
