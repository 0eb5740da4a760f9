"""Augmentation of whole batches: one geometric warp a sample, labels following it."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks import Task, Warp
from gatesearch.training.split_data import Batch, statistics


def augment(
    batch: Batch,
    tasks: Mapping[str, Task],
    *,
    flip: bool,
    zoom: Sequence[float],
    scale: tuple[float, float],
    rotate: float,
    generator: torch.Generator,
) -> Batch:
    """Warp each sample of a batch at random.

    Images are sampled bilinearly, labels by nearest neighbour; what comes from outside the frame
    is the mean colour in the image and "unknown" in every label. A zoom z takes a random window of
    1/z of the frame, as moving closer would: depth is divided by z. A scale s only resizes.

    Args:
        batch: `image` uint8 (B, 3, H, W) and labels, on any one device.
        tasks: Task name -> task.
        flip: Mirror half of the samples.
        zoom: Factors, one drawn a sample.
        scale: Range of s, drawn uniformly.
        rotate: Largest angle either way, degrees.
        generator: Source of all draws, on the processor, so that they are the same everywhere.

    Returns:
        `image` float32 in 0..255, labels in their encodings.
    """
    image = batch["image"]
    count, _, height, width = image.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    warp = Warp(
        flip=(uniform(0, 1) < 0.5) & flip,
        zoom=torch.tensor(zoom)[torch.randint(len(zoom), (count,), generator=generator)],
        angle=uniform(-rotate, rotate) * (math.pi / 180),
    )
    size = 1 / (warp.zoom * uniform(*scale))  # of the window, in frames
    shift_x, shift_y = ((1 - size).clamp(min=0) * uniform(-1, 1) for _ in range(2))
    labels = {name: batch[name] for name in tasks}
    if not (warp.flip.any() or (size != 1).any() or rotate):
        return {"image": image.float(), **labels}

    cos, sin = warp.angle.cos() * size, warp.angle.sin() * size
    mirror = torch.where(warp.flip, -1.0, 1.0)
    # Output place -> input place in [-1, 1]: turn, scale, shift, and first of all mirror.
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin * height / width, shift_x], 1),
            torch.stack([sin * mirror * width / height, cos, shift_y], 1),
        ],
        1,
    )
    device = image.device
    warp = Warp(warp.flip.to(device), warp.zoom.to(device), warp.angle.to(device))
    grid = F.affine_grid(theta.to(device), [count, 1, height, width], align_corners=False)
    mean, _ = statistics(device)
    moved = {"image": F.grid_sample(image.float() - mean, grid, align_corners=False) + mean}
    for name, task in tasks.items():
        target = labels[name]
        planes = target if target.ndim == 4 else target[:, None]
        # Zeros come from outside, so labels are shifted to have "unknown" there.
        sampled = F.grid_sample(
            planes.float() - task.unknown_value, grid, mode="nearest", align_corners=False
        )
        target = (sampled + task.unknown_value).reshape(target.shape).to(target.dtype)
        moved[name] = task.transform_labels(target, warp)
    return moved
