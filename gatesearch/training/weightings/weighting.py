"""The interface of all weightings of the tasks' losses, and the plain one: a weighted sum."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError
from gatesearch.training.optimizer import Optimizer


class Losses(Protocol):
    """Computes the losses of a batch with the network's parameters as they are when called."""

    def __call__(self, *, exact: bool = False) -> Tensor:
        """Return (T,) losses with their graph.

        Args:
            exact: Whether to compute in float32, whatever the precision of training.
        """


class UnbalancedError(GatesearchError):
    """A loss or a gradient that is not finite, so that tasks cannot be balanced.

    Attributes:
        task: Name of the task.
        what: What is not finite: `loss`, `gradient` and the like.
        value: Its value.
    """

    def __init__(self, task: str, what: str, value: float) -> None:
        super().__init__(f"the {what} of {task} became {value}")
        self.task, self.what, self.value = task, what, value


def refuse_nonfinite(values: Tensor, tasks: Iterable[str], what: str) -> None:
    """Refuse (T,) values if one is not finite.

    Raises:
        UnbalancedError: Names the first task whose value is not finite.
    """
    for task, value in zip(tasks, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise UnbalancedError(task, what, value)


@dataclass(frozen=True)
class Basis:
    """What every weighting is built from.

    Attributes:
        omega: Task -> ω_t, the study's weight of its loss. Weightings balance ω_t L_t.
        seed: Seed of the weighting's random numbers.
        device: Device of the losses.
    """

    omega: Mapping[str, float]
    seed: int = 0
    device: str = "cpu"


def _keep_values(tensors: Iterable[Tensor]) -> None:
    """Leave tensors as they are: the means over a single process."""


@dataclass(frozen=True)
class TrainingView:
    """What a weighting can use of a training, beside the losses.

    Attributes:
        model: Image -> task -> prediction.
        optimizer: Trains the model's parameters.
        average: Replaces tensors with their means over the processes that train together.
    """

    model: nn.Module
    optimizer: Optimizer
    average: Callable[[Iterable[Tensor]], None] = _keep_values

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the model that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


class Weighting(nn.Module):
    """Σ_t w_t L_t with constant w_t; all other weightings derive from this class.

    A training calls `attached` once. For each step it sets `present`, and calls `before_step`,
    `backward` for each part of the batch (`clear` if it repeats the step), `combine`, then the
    optimizer, then `after_step`. `state_dict` holds all that later steps depend on.

    A task is absent from a step if no frame of the batch has its labels; its loss is then the
    constant 0. Tasks are balanced over those present, and what is learned or kept of an absent task
    stays as it is.

    Args:
        basis: Tasks with ω_t, seed, device.

    Attributes:
        tasks: Names of the tasks, in the order of the losses.
        omega: (T,) ω_t.
        weights: (T,) factors of the losses in the last step in which the task was present; they
            include ω_t.
        present: (T,) bool on the processor, the tasks that are present in the step; None if every
            frame of its batch has labels of every task.
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
        self._view: TrainingView | None = None
        self.present: Tensor | None = None

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return parameters of the weighting that the network's optimizer trains, without decay."""
        return []

    @property
    def training_view(self) -> TrainingView:
        """The training to which the weighting is attached."""
        assert self._view is not None, "a weighting is attached before it is used"
        return self._view

    @contextmanager
    def attached(self, view: TrainingView) -> Iterator[None]:
        """Attach the weighting to a training."""
        self._view = view
        try:
            yield
        finally:
            self._view = self.present = None
            self.clear()

    def clear(self) -> None:
        """Forget what `backward` has kept of a batch, as the step is repeated."""

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Prepare the weights of the next step.

        Args:
            losses: Losses of its batch.
            held_out: Losses of a new random batch of the validation part on every call; 0 for tasks
                of which that batch has no labels.
        """

    def backward(
        self,
        losses: Sequence[Tensor],
        *,
        share: float = 1.0,
        shares: Tensor | None = None,
        penalty: Tensor | None = None,
    ) -> None:
        """Add the gradients of a part of the batch.

        Args:
            losses: One scalar per task, whose graphs meet only in what the tasks share.
            share: The part's share of the batch's frames.
            shares: (T,) the weight of its loss in each task's mean over the labelled frames of the
                batch (`LabelCounts.shares`), which replaces `share` for the losses; None if every
                frame of the batch has labels of every task.
            penalty: Added to the loss; no weight applies to it.
        """
        stacked = torch.stack(list(losses))
        weights = self.weights.to(stacked)
        if shares is None:
            loss = torch.dot(stacked, weights)
            if penalty is not None:
                loss = loss + penalty
            (share * loss).backward()
            return
        loss = torch.dot(stacked, weights * shares.to(stacked))
        if penalty is not None:
            loss = loss + share * penalty
        if loss.requires_grad:  # not where all tasks are absent
            loss.backward()

    def set_weights(self, weights: Tensor, *, of: Tensor | None) -> None:
        """Set the factors of the losses.

        Args:
            weights: (T,) factors.
            of: (T,) bool, the tasks whose factors are set; None sets those of all.
        """
        if of is not None:
            weights = torch.where(of.to(self.weights.device), weights, self.weights)
        self.weights.copy_(weights)

    def pending(self) -> list[Tensor]:
        """Return what must be averaged over the processes before `combine`, beside gradients."""
        return []

    def combine(self, losses: Tensor) -> None:
        """Complete the gradients after `backward` was called for all parts of the batch.

        Args:
            losses: (T,) means over the labelled frames of the batch, without graph; 0 for absent
                tasks.

        Raises:
            UnbalancedError: A loss or a task's gradient is not finite.
        """
        refuse_nonfinite(losses, self.tasks, "loss")
        self._summed += self.weights
        self._steps += 1

    def after_step(self, *, losses: Losses) -> None:
        """Learn from what the step has changed.

        Args:
            losses: Losses of its batch.
        """

    def end_epoch(self, means: Mapping[str, float]) -> dict[str, float]:
        """Close an epoch.

        Args:
            means: Task -> mean loss over the labelled frames of the epoch, without the tasks that
                had none.

        Returns:
            `weight.<task>` -> mean factor over the steps of the epoch, for the history.
        """
        averages = (self._summed / self._steps.clamp(min=1)).tolist()
        self._summed.zero_()
        self._steps.zero_()
        return {f"weight.{task}": w for task, w in zip(self.tasks, averages, strict=True)}
