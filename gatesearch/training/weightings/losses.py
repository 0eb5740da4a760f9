"""Weights that depend on the losses, or on nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.training.weightings.outside import undisturbed
from gatesearch.training.weightings.torchjd_adapter import Drawn, from_torchjd
from gatesearch.training.weightings.weighting import Basis, Losses, Weighting


class Scalarized(Weighting):
    """w_t = ω_t ∂S/∂ℓ_t of a scalarization S(ℓ) of torchjd at ℓ_t = ω_t L_t.

    By the chain rule the network's gradients are those of S itself.

    Args:
        basis: Tasks with ω_t, device.
        scalarizer: (T,) -> scalar.
        learns: Whether the network's optimizer trains its parameters.
    """

    def __init__(self, basis: Basis, scalarizer: nn.Module, *, learns: bool = False) -> None:
        super().__init__(basis)
        self.scalarizer = scalarizer.to(basis.device)
        self.learns = learns

    def trained(self) -> list[nn.Parameter]:
        """Log-variances and their like."""
        return list(self.scalarizer.parameters()) if self.learns else []

    def backward(
        self, losses: Sequence[Tensor], *, share: float = 1.0, penalty: Tensor | None = None
    ) -> None:
        """See `Weighting.backward`; weights that S bends are those of the part."""
        values = self.omega * torch.stack(list(losses)).detach()
        slopes, *own = slopes_of(self.scalarizer, values, self.trained())
        for parameter, gradient in zip(self.trained(), own, strict=True):
            gradient = share * gradient
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.weights.copy_(slopes * self.omega)
        super().backward(losses, share=share, penalty=penalty)


def slopes_of(
    scalarizer: nn.Module, losses: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, ...]:
    """Derivatives of a scalarization by the losses, then by each parameter."""
    at = losses.clone().requires_grad_()
    return torch.autograd.grad(scalarizer(at), [at, *parameters])


def uncertainty(basis: Basis) -> Weighting:
    """Σ_t L_t / (2 e^{s_t}) + s_t / 2 with learned log-variances s_t, at first 0.

    Where gradients of s_t vanish, s_t = log L_t (Kendall et al., CVPR 2018, equation 7, with
    s = log σ²; https://arxiv.org/abs/1705.07115).
    """
    made = from_torchjd("uncertainty", lambda _, s: s.UW(len(basis.omega)))
    return Scalarized(basis, made, learns=True)


def imtl_l(basis: Basis) -> Weighting:
    """Σ_t e^{s_t} L_t - s_t with learned s_t, at first 0.

    Liu et al., ICLR 2021, section 3.2 (https://openreview.net/forum?id=IMPnRXEWpvr).
    """
    made = from_torchjd("imtl_l", lambda _, s: s.IMTLL(len(basis.omega)))
    return Scalarized(basis, made, learns=True)


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
        basis: Tasks with ω_t, seed of z, device.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__(basis)
        self.scalarizer = Drawn(from_torchjd("rlw", lambda _, s: s.Random()), basis.seed)

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Draw."""
        (drawn,) = slopes_of(self.scalarizer, torch.ones(len(self.tasks)), [])
        self.weights.copy_(self.omega * drawn.to(self.omega))


class DynamicWeightAverage(Weighting):
    """w_t(e) = ω_t T softmax_t(r_t / τ), r_t = L_t(e-1) / L_t(e-2) of the epochs' mean losses.

    ω in the first two epochs (Liu et al., CVPR 2019, equation 7, https://arxiv.org/abs/1803.10704).
    Of a task without loss in one of the two epochs, r_t = 1.

    Args:
        basis: Tasks with ω_t, device.
        temperature: τ.
    """

    _means: Tensor

    def __init__(self, basis: Basis, *, temperature: float = 2.0) -> None:
        super().__init__(basis)
        self.scalarizer: Any = from_torchjd("dwa", lambda _, s: s.DWA(temperature))
        self.register_buffer("_means", torch.full((2, len(self.tasks)), torch.nan).double())

    def end_epoch(self, means: Mapping[str, float]) -> dict[str, float]:
        """Weigh the next epoch."""
        curve = super().end_epoch(means)
        latest = torch.tensor([[means[task] for task in self.tasks]]).double()
        self._means.copy_(torch.cat([self._means[1:], latest]))
        if not self._means.isnan().any():
            self.scalarizer.reset()
            for row in torch.where((self._means > 0).all(0), self._means, 1.0):
                self.scalarizer(row)
                self.scalarizer.step()
            (slopes,) = slopes_of(self.scalarizer, torch.ones_like(latest[0]), [])
            self.weights.copy_(self.omega * slopes.to(self.omega))
        return curve


class FastAdaptive(Scalarized):
    """c Σ_t z_t log L_t, z = softmax(ξ); ξ learns from how much each step lowered each log L_t.

    Liu et al., NeurIPS 2023 (https://arxiv.org/abs/2306.03792). Costs one more forward
    pass a step, which leaves batch norm and random states alone.

    Args:
        basis: Tasks with ω_t, device.
        lr: Of ξ.
        weight_decay: Of ξ.
    """

    def __init__(self, basis: Basis, *, lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        tasks = len(basis.omega)
        made = from_torchjd("famo", lambda _, s: s.FAMO(tasks, lr=lr, weight_decay=weight_decay))
        super().__init__(basis, made)
        self._before = torch.zeros_like(self.omega)

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        super().combine(losses)
        self._before = self.omega * losses.to(self.omega)

    def after_step(self, *, losses: Losses) -> None:
        """Learn ξ."""
        with torch.no_grad(), undisturbed(self.training_seen.model):
            after = self.omega * losses()
        self.training_seen.average([after])
        famo: Any = self.scalarizer
        famo(self._before)
        famo.update(after)

    def get_extra_state(self) -> dict[str, Any]:
        """Moments of the optimizer of ξ, which torchjd keeps to itself."""
        famo: Any = self.scalarizer
        return {} if famo._optimizer is None else dict(famo._optimizer.state_dict()["state"][0])

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""
        famo: Any = self.scalarizer
        famo._optimizer = None
        if state:
            adam = torch.optim.Adam([famo._w], lr=famo.lr, weight_decay=famo.weight_decay)
            groups = adam.state_dict()["param_groups"]
            adam.load_state_dict({"state": {0: dict(state)}, "param_groups": groups})
            famo._optimizer = adam
