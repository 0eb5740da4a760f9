"""Metrics and predictions of a trained network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gatesearch.tasks import Task
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import Frames, normalised


@torch.no_grad()
def evaluate(
    model: nn.Module,
    frames: Frames,
    tasks: Mapping[str, Task],
    *,
    runtime: Runtime,
    batch_size: int,
) -> dict[str, float]:
    """Task -> value of its metric over all frames; NaN where no pixel had a label."""
    model.eval()
    meters = {name: task.meter() for name, task in tasks.items()}
    for batch in frames.in_order(batch_size):
        with runtime.autocast():
            outputs = model(runtime.image(normalised(batch["image"])))
        for name, meter in meters.items():
            meter.update(outputs[name].float().cpu(), batch[name])
    return {name: float(meter.compute()) for name, meter in meters.items()}


@torch.no_grad()
def predict(
    model: nn.Module, image: Tensor, tasks: Mapping[str, Task], *, runtime: Runtime
) -> dict[str, Tensor]:
    """Predictions in the encodings of the labels, for drawing.

    Args:
        model: The network.
        image: uint8 (B, 3, H, W).
        tasks: Task name -> task.
        runtime: Where to run it.
    """
    model.eval()
    with runtime.autocast():
        outputs = model(runtime.image(normalised(image)))
    return {name: task.decode(outputs[name].float().cpu()) for name, task in tasks.items()}
