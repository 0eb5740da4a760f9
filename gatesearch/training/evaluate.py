"""Metrics and predictions of a trained network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gatesearch.tasks import Task
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import FrameData, normalize


@torch.no_grad()
def evaluate(
    model: nn.Module,
    frames: FrameData,
    tasks: Mapping[str, Task],
    *,
    runtime: Runtime,
    batch_size: int,
) -> dict[str, float]:
    """Compute each task's metric over all frames; NaN where no pixel had a label."""
    model.eval()
    meters = {name: task.meter() for name, task in tasks.items()}
    for batch in frames.in_order(batch_size):
        with runtime.autocast():
            outputs = model(runtime.image(normalize(batch["image"])))
        for name, meter in meters.items():
            meter.update(outputs[name].float().cpu(), batch[name])
    return {name: float(meter.compute()) for name, meter in meters.items()}


@torch.no_grad()
def predict(
    model: nn.Module, image: Tensor, tasks: Mapping[str, Task], *, runtime: Runtime
) -> dict[str, Tensor]:
    """Predict every task in the encoding of its labels, for drawing.

    Args:
        model: The network.
        image: uint8 (B, 3, H, W).
        tasks: Task name -> task.
        runtime: Device and precision.
    """
    model.eval()
    with runtime.autocast():
        outputs = model(runtime.image(normalize(image)))
    return {name: task.decode(outputs[name].float().cpu()) for name, task in tasks.items()}
