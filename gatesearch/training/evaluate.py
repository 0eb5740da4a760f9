"""Metrics and predictions of a trained network."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatesearch.tasks import Task
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import FrameData, normalize


@dataclass(frozen=True)
class Figures:
    """Figures of a network on a part of the data; NaN where no frame had labels.

    Attributes:
        metrics: Task -> the metric that ranks networks.
        details: Task -> further figures by name; without those tasks that have none.
    """

    metrics: dict[str, float]
    details: dict[str, dict[str, float]]


def evaluate(
    model: nn.Module,
    frames: FrameData,
    tasks: Mapping[str, Task],
    *,
    runtime: Runtime,
    batch_size: int,
) -> dict[str, float]:
    """Compute each task's metric over all frames; NaN where no pixel had a label."""
    figures = measure(model, frames, tasks, runtime=runtime, batch_size=batch_size, details=False)
    return figures.metrics


@torch.no_grad()
def measure(
    model: nn.Module,
    frames: FrameData,
    tasks: Mapping[str, Task],
    *,
    runtime: Runtime,
    batch_size: int,
    details: bool = True,
) -> Figures:
    """Compute each task's metric over all frames, and further figures.

    Args:
        model: The network.
        frames: The part of the data.
        tasks: Task name -> task.
        runtime: Device and precision.
        batch_size: Number of frames at a time.
        details: Whether to compute further figures.
    """
    model.eval()
    meters = {name: task.meter(details=details) for name, task in tasks.items()}
    for batch in frames.in_order(batch_size):
        with runtime.autocast():
            outputs = model(runtime.image(normalize(batch["image"])))
        for name, meter in meters.items():
            meter.update(outputs[name].float().cpu(), batch[name])
    told = {name: meter.details() for name, meter in meters.items()} if details else {}
    return Figures(
        metrics={name: float(meter.compute()) for name, meter in meters.items()},
        details={name: figures for name, figures in told.items() if figures},
    )


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
