"""What every weighting of the tasks' losses provides, and the plain one: a weighted sum."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError


class Losses(Protocol):
    """Losses of a batch at whatever the network's parameters are at the moment."""

    def __call__(self, *, exact: bool = False) -> Tensor:
        """(T,) with their graph, in the precision of training, or exactly: in float32."""


class UnbalancedError(GatesearchError):
    """A loss or a gradient that cannot be weighed.

    Attributes:
        task: Whose it is.
        what: `loss`, `gradient` and the like.
        value: What was found.
    """

    def __init__(self, task: str, what: str, value: float) -> None:
        super().__init__(f"the {what} of {task} became {value}")
        self.task, self.what, self.value = task, what, value


def refuse_nonfinite(values: Tensor, tasks: Iterable[str], what: str) -> None:
    """Refuse (T,) values of which one is not finite.

    Raises:
        UnbalancedError: Names the first such task.
    """
    for task, value in zip(tasks, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise UnbalancedError(task, what, value)


@dataclass(frozen=True)
class Basis:
    """What every weighting is built from.

    Attributes:
        omega: Task -> ω_t, the study's weight of its loss. Weightings balance ω_t L_t.
        seed: Of whatever the weighting draws.
        device: Of the losses.
    """

    omega: Mapping[str, float]
    seed: int = 0
    device: str = "cpu"


def _alone(tensors: Iterable[Tensor]) -> None:
    pass


@dataclass(frozen=True)
class Training:
    """What a weighting sees of a training beside the losses.

    Attributes:
        model: Image -> task -> prediction.
        optimizer: Of its parameters.
        average: Replaces tensors by their means over the processes that train together.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Callable[[Iterable[Tensor]], None] = _alone

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the model that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


class Weighting(nn.Module):
    """Σ_t w_t L_t with given w_t; what balances otherwise is derived from it.

    A training calls `attached` once, and for each step `before_step`, `backward` for each part of
    the batch (`clear` where it begins anew), `combine`, the optimizer and `after_step`. All that
    later steps depend on is in `state_dict`.

    Args:
        basis: Tasks with ω_t, seed, device.

    Attributes:
        tasks: Names of the tasks, in the order of the losses.
        omega: (T,) ω_t.
        weights: (T,) factors of the losses in the last step, ω_t among them.
    """

    omega: Tensor
    weights: Tensor
    _summed: Tensor
    _steps: Tensor

    def __init__(self, basis: Basis) -> None:
        super().__init__()
        self.tasks = tuple(basis.omega)
        omega = torch.tensor([float(w) for w in basis.omega.values()], device=basis.device)
        self.register_buffer("omega", omega, persistent=False)
        self.register_buffer("weights", omega.clone())
        self.register_buffer("_summed", torch.zeros_like(omega))
        self.register_buffer("_steps", torch.zeros((), dtype=torch.int64))
        self._training: Training | None = None

    def trained(self) -> list[nn.Parameter]:
        """What the network's optimizer trains along, without weight decay."""
        return []

    @property
    def training_seen(self) -> Training:
        """The training that it is attached to."""
        assert self._training is not None, "a weighting is attached before it is used"
        return self._training

    @contextmanager
    def attached(self, training: Training) -> Iterator[None]:
        """Serve a training."""
        self._training = training
        try:
            yield
        finally:
            self._training = None
            self.clear()

    def clear(self) -> None:
        """Forget the parts of a batch whose step begins anew."""

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Prepare the weights of the next step.

        Args:
            losses: Of its batch.
            held_out: Of a batch of the validation part.
        """

    def backward(
        self, losses: Sequence[Tensor], *, share: float = 1.0, penalty: Tensor | None = None
    ) -> None:
        """Add the gradients of a part of the batch.

        Args:
            losses: One scalar a task, each with a graph of its own down to what tasks share.
            share: Of the batch's frames.
            penalty: Added to the loss as it is; never weighed.
        """
        stacked = torch.stack(list(losses))
        loss = torch.dot(stacked, self.weights.to(stacked))
        if penalty is not None:
            loss = loss + penalty
        (share * loss).backward()

    def pending(self) -> list[Tensor]:
        """What has to be averaged over the processes before `combine`, beside the gradients."""
        return []

    def combine(self, losses: Tensor) -> None:
        """Complete the gradients, once all parts of the batch are in.

        Args:
            losses: (T,) means over the batch, without graph.

        Raises:
            UnbalancedError: A loss or a task's gradient is not finite.
        """
        refuse_nonfinite(losses, self.tasks, "loss")
        self._summed += self.weights
        self._steps += 1

    def after_step(self, *, losses: Losses) -> None:
        """Look at what the step has changed.

        Args:
            losses: Of its batch.
        """

    def end_epoch(self, means: Mapping[str, float]) -> dict[str, float]:
        """Close an epoch: `weight.<task>`, the mean factors of its steps, for the curves.

        Args:
            means: Task -> mean loss over the epoch.
        """
        averages = (self._summed / self._steps.clamp(min=1)).tolist()
        self._summed.zero_()
        self._steps.zero_()
        return {f"weight.{task}": w for task, w in zip(self.tasks, averages, strict=True)}
