"""Weights that depend on the losses, or are drawn at random."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatesearch.training.weightings.temporary_changes import (
    keep_entries,
    preserve_state,
    tensors_of,
)
from gatesearch.training.weightings.torchjd_adapter import SeededDraws, from_torchjd
from gatesearch.training.weightings.weighting import Basis, Losses, Weighting

if TYPE_CHECKING:
    from torchjd.scalarization import DWA, FAMO


class Scalarized(Weighting):
    """w_t = ω_t ∂S/∂ℓ_t of a scalarization S(ℓ) of torchjd at ℓ_t = ω_t L_t.

    By the chain rule the network's gradients are those of S itself. Without labels of some tasks, S
    is that of the others: its parameters have entries for these alone.

    Args:
        basis: Tasks with ω_t, device.
        scalarizer: S, (T,) -> scalar.
        learns: Whether the network's optimizer trains the parameters of S.
    """

    def __init__(self, basis: Basis, scalarizer: nn.Module, *, learns: bool = False) -> None:
        super().__init__(basis)
        self.scalarizer = scalarizer.to(basis.device)
        self.learns = learns
        self._put_back: list[Callable[[], None]] = []

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of S, such as log-variances, if they are learned."""
        return list(self.scalarizer.parameters()) if self.learns else []

    def backward(
        self,
        losses: Sequence[Tensor],
        *,
        share: float = 1.0,
        shares: Tensor | None = None,
        penalty: Tensor | None = None,
    ) -> None:
        """See `Weighting.backward`; each part of a batch has the weights of its own losses."""
        values = self.omega * torch.stack(list(losses)).detach()
        learned = self.learned_parameters()
        scale: float | Tensor = share
        chosen = None
        if shares is None:
            derivatives, *gradients = differentiate(self.scalarizer, values, learned)
        else:
            scale, chosen = shares.to(values), shares > 0
            if self.learns and self.present is not None:
                # Every term of S is of one task, so its derivatives do not depend on the part.
                chosen = self.present
            derivatives, *gradients = differentiate_some(self.scalarizer, values, learned, chosen)
        if self.present is None or self.present.any():
            for parameter, gradient in zip(learned, gradients, strict=True):
                gradient = scale * gradient
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.set_weights(derivatives * self.omega, of=chosen)
        super().backward(losses, share=share, shares=shares, penalty=penalty)

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`; the optimizer then leaves what is learned of absent tasks."""
        super().combine(losses)
        if self.present is None:
            return
        for parameter in self.learned_parameters():
            moments = partial(tensors_of, self.training_view.optimizer, parameter)
            self._put_back.append(keep_entries(parameter, ~self.present, moments=moments))

    def after_step(self, *, losses: Losses) -> None:
        """Put back what is learned of absent tasks."""
        while self._put_back:
            self._put_back.pop()()


def differentiate(
    scalarizer: nn.Module, losses: Tensor, parameters: list[nn.Parameter]
) -> tuple[Tensor, ...]:
    """Differentiate a scalarization by the losses, then by each parameter."""
    leaf = losses.clone().requires_grad_()
    return torch.autograd.grad(scalarizer(leaf), [leaf, *parameters])


def differentiate_some(
    scalarizer: nn.Module, losses: Tensor, parameters: list[nn.Parameter], chosen: Tensor
) -> tuple[Tensor, ...]:
    """Differentiate a scalarization of some losses alone; 0 by the others, and by their entries.

    Args:
        scalarizer: Any number of losses -> scalar, with parameters and buffers (T,) or none.
        losses: (T,) of which the others may have any value.
        parameters: Parameters of the scalarizer.
        chosen: (T,) bool, which losses.

    Returns:
        Derivatives (T,) by the losses, then by each parameter.
    """
    zeros = torch.zeros_like(losses)
    if not chosen.any():
        return (zeros, *map(torch.zeros_like, parameters))
    chosen = chosen.to(losses.device)
    tensors = [*scalarizer.named_parameters(), *scalarizer.named_buffers()]
    leaf = losses[chosen].requires_grad_()
    value = functional_call(scalarizer, {name: t[chosen] for name, t in tensors}, (leaf,))
    derivatives, *gradients = torch.autograd.grad(value, [leaf, *parameters])
    return (zeros.masked_scatter(chosen, derivatives), *gradients)


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
        """Draw the weights of the tasks that are present."""
        if self.present is None:
            (drawn,) = differentiate(self.scalarizer, torch.ones(len(self.tasks)), [])
        elif self.present.any():
            ones = torch.ones(len(self.tasks))
            (drawn,) = differentiate_some(self.scalarizer, ones, [], self.present)
        else:
            return
        self.set_weights(self.omega * drawn.to(self.omega), of=self.present)


class DynamicWeightAverage(Weighting):
    """w_t(e) = ω_t T softmax_t(r_t / τ), r_t = L_t(e-1) / L_t(e-2) of the epochs' mean losses.

    w = ω in the first two epochs (Liu et al., CVPR 2019, equation 7,
    https://arxiv.org/abs/1803.10704). r_t = 1 if the task's loss was 0 in one of the two epochs.
    Epochs without labels of a task do not count for it; r_t = 1 until two have counted. Softmax and
    T are those of the tasks that are present in the step.

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
        self._of_all = self.weights.clone()

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Weigh the tasks that are present, until the step is combined."""
        self._of_all.copy_(self.weights)
        if self.present is not None and self.present.any():
            weights = self.weights.clone()
            weights[self.present] = self._balanced(self.present)
            self.weights.copy_(weights)

    def combine(self, losses: Tensor) -> None:
        """See `Weighting.combine`."""
        super().combine(losses)
        self.weights.copy_(self._of_all)

    def end_epoch(self, means: Mapping[str, float]) -> dict[str, float]:
        """See `Weighting.end_epoch`; sets the weights of the next epoch."""
        curve = super().end_epoch(means)
        latest = torch.tensor([[means.get(task, torch.nan) for task in self.tasks]]).double()
        shifted = torch.cat([self._means[1:], latest])
        self._means.copy_(torch.where(latest.isnan(), self._means, shifted))
        self.weights.copy_(self._balanced(torch.ones(len(self.tasks), dtype=torch.bool)))
        return curve

    def _balanced(self, chosen: Tensor) -> Tensor:
        """Return the weights of some tasks, balanced over these; ω where no r_t is known."""
        means = self._means[:, chosen.to(self._means.device)]
        omega = self.omega[chosen.to(self.omega.device)]
        if means.isnan().any(0).all():
            return omega
        self.scalarizer.reset()
        for row in torch.where((means > 0).all(0), means, 1.0):
            self.scalarizer(row)
            self.scalarizer.step()
        (factors,) = differentiate(self.scalarizer, torch.ones_like(means[0]), [])
        return omega * factors.to(omega)


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
        """Learn ξ of the tasks that are present."""
        super().after_step(losses=losses)
        if self.present is not None and not self.present.any():
            return
        with torch.no_grad(), preserve_state(self.training_view.model):
            after = self.omega * losses()
        self.training_view.average([after])
        if self.present is None:
            self._famo(self._before)
            self._famo.update(after)
            return
        logits = self._famo._w
        absent = ~self.present.to(logits.device)
        put_back = keep_entries(logits, absent, moments=self._moments)
        logits.data[absent] = -torch.inf  # no part in the softmax
        self._famo(self._before.masked_fill(absent, 1.0))
        self._famo.update(after.masked_fill(absent, 1.0))
        put_back()

    def _moments(self) -> Iterable[Tensor]:
        adam = self._famo._optimizer
        return () if adam is None else tensors_of(adam, self._famo._w)

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
