"""A batch through a network: predictions, and the tasks' losses on them."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatesearch.tasks import Task
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import Batch, normalize


@dataclass(frozen=True)
class Forward:
    """Forward passes of a training.

    Attributes:
        model: Image (B, 3, H, W) -> task -> (B, channels, H, W).
        tasks: Task name -> task.
        runtime: Device and precision.
    """

    model: nn.Module
    tasks: Mapping[str, Task]
    runtime: Runtime

    def predict(self, part: Batch, *, exact: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images as the network reads them, and task -> float32 prediction.

        Args:
            part: A batch or a part of one, on the device.
            exact: Whether to compute in float32, whatever the precision of training.
        """
        with nullcontext() if exact else self.runtime.autocast():
            image = self.runtime.image(normalize(part["image"]))
            return image, {task: scores.float() for task, scores in self.model(image).items()}

    def losses(self, outputs: Mapping[str, Tensor], part: Batch) -> list[Tensor]:
        """Return one scalar per task, in the order of the tasks."""
        return [task.loss(outputs[name], part[name]) for name, task in self.tasks.items()]

    def current_losses(self, part: Batch, *, exact: bool = False) -> Tensor:
        """Return the (T,) losses of a part with the parameters as they are now."""
        return torch.stack(self.losses(self.predict(part, exact=exact)[1], part))
