"""A batch through a network: predictions, and the tasks' losses on them."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatesearch.tasks import Task
from gatesearch.training.label_counts import LabelCounts
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import LABELLED, Batch, normalize


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

    def losses(
        self, outputs: Mapping[str, Tensor], part: Batch, *, present: Tensor | None = None
    ) -> list[Tensor]:
        """Return one scalar per task, in the order of the tasks.

        A task of which the part has no labels, but another part of its batch has some, has the loss
        0 with the graph of its prediction, so that all parts give gradients to the same parameters.

        Args:
            outputs: Task -> float32 prediction.
            part: The batch that was predicted, or a part of one.
            present: (T,) bool, the tasks with labels in the whole batch; None if all have some. The
                loss of any other is the constant 0, whatever its prediction.
        """
        if present is None:
            return [task.loss(outputs[name], part[name]) for name, task in self.tasks.items()]
        return [
            task.loss(outputs[name], part[name]) if has_labels else outputs[name].new_zeros(())
            for (name, task), has_labels in zip(self.tasks.items(), present.tolist(), strict=True)
        ]

    @torch.no_grad()
    def frame_losses(self, outputs: Mapping[str, Tensor], part: Batch) -> Tensor:
        """Return the (B, T) losses of each frame by itself, NaN where it has no labels of a task.

        Args:
            outputs: Task -> float32 prediction.
            part: The batch that was predicted, or a part of one.
        """
        rows = [
            torch.stack(
                [
                    task.loss(outputs[name][i : i + 1], part[name][i : i + 1])
                    for name, task in self.tasks.items()
                ]
            )
            for i in range(len(part["image"]))
        ]
        losses = torch.stack(rows)
        if LABELLED not in part:
            return losses
        return losses.masked_fill(~part[LABELLED].to(losses.device), math.nan)

    def current_losses(
        self, part: Batch, *, counts: LabelCounts | None = None, exact: bool = False
    ) -> Tensor:
        """Return the (T,) losses of a part with the parameters as they are now.

        Args:
            part: A process's slice of a batch.
            counts: Labelled frames of the batch, if some are not; losses are then weighted so that
                their means over the processes are means over labelled frames.
            exact: Whether to compute in float32, whatever the precision of training.
        """
        outputs = self.predict(part, exact=exact)[1]
        if counts is None:
            return torch.stack(self.losses(outputs, part))
        losses = torch.stack(self.losses(outputs, part, present=counts.present))
        return losses * counts.shares(part).to(losses)
