"""A network of one shared and T own layers, and one step of a weighting on whatever gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.training.weightings import TrainingView, Weighting, build_weighting

TASKS = ("a", "b", "c")


class Linear(nn.Module):
    """Linear body with batch norm and dropout, a linear head a task."""

    def __init__(self, tasks: Sequence[str] = TASKS, *, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(dropout))
            self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in tasks})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {task: head(features) for task, head in self.heads.items()}


class Run:
    """Steps of a training, as the loop takes them.

    Args:
        name: Of the weighting.
        tasks: Names of the tasks.
        scale: Task -> factor of its loss.
        options: Of the weighting.

    Attributes:
        present: Tasks that the batches have labels of; None for those with all labels.
    """

    present: Sequence[str] | None = None

    def __init__(
        self, name: str, tasks: Sequence[str] = TASKS, *, scale: Any = None, **options: Any
    ) -> None:
        self.model = Linear(tasks)
        self.weighting = build_weighting(name, dict.fromkeys(tasks, 1.0), seed=3, options=options)
        groups: list[dict[str, Any]] = [{"params": self.model.parameters()}]
        if self.weighting.learned_parameters():
            groups.append({"params": self.weighting.learned_parameters(), "weight_decay": 0.0})
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, lr=1e-2)
        self.scale = dict.fromkeys(tasks, 1.0) | (scale or {})
        self.data = torch.Generator().manual_seed(1)

    def losses(self, x: Tensor) -> list[Tensor]:
        outputs = self.model(x)
        return [
            self.scale[task] * (output - 1 - TASKS.index(task)).square().mean()
            if self.present is None or task in self.present
            else torch.zeros(())
            for task, output in outputs.items()
        ]

    def gradients(self) -> None:
        """Those of the next batch."""
        self.x = torch.randn(8, 4, generator=self.data)
        held_out = torch.randn(8, 4, generator=self.data)
        shares = None
        if self.present is not None:
            self.weighting.present = torch.tensor([t in self.present for t in self.weighting.tasks])
            shares = self.weighting.present.double()
        self.weighting.before_step(
            losses=lambda exact=False: torch.stack(self.losses(self.x)),
            held_out=lambda exact=False: torch.stack(self.losses(held_out)),
        )
        losses = self.losses(self.x)
        self.optimizer.zero_grad(set_to_none=True)
        self.weighting.backward(losses, shares=shares)
        self.weighting.combine(torch.stack(losses).detach().double())

    def epoch(self, steps: int = 2) -> dict[str, float]:
        with self.weighting.attached(TrainingView(self.model, self.optimizer)):
            for _ in range(steps):
                self.gradients()
                self.optimizer.step()
                self.weighting.after_step(
                    losses=lambda exact=False: torch.stack(self.losses(self.x))
                )
        with torch.no_grad():
            means = torch.stack(self.losses(self.x)).tolist()
        named = dict(zip(self.weighting.tasks, means, strict=True))
        counted = self.weighting.tasks if self.present is None else self.present
        return self.weighting.end_epoch({task: named[task] for task in counted})


class Point(nn.Module):
    """A shared vector at the origin."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(size))


def combined(
    weighting: Weighting, rows: Sequence[Sequence[float]], *, penalty: Tensor | None = None
) -> Tensor:
    """What a weighting makes of the gradients `rows`."""
    gradients = torch.tensor(rows)
    point = Point(gradients.shape[1])
    training = TrainingView(point, torch.optim.SGD(point.parameters(), lr=1.0))
    with weighting.attached(training):
        weighting.before_step(losses=_never, held_out=_never)
        weighting.backward([row @ point.at for row in gradients])
        weighting.combine(torch.ones(len(rows), dtype=torch.float64))
    assert point.at.grad is not None
    return point.at.grad


def _never(*, exact: bool = False) -> Tensor:
    raise AssertionError


def built(name: str, count: int, **options: Any) -> Weighting:
    omega = dict.fromkeys(TASKS[:count], 1.0)
    return build_weighting(name, omega, seed=5, options=options)
