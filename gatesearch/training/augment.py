"""Augmentation of whole batches: one geometric warp per sample, which labels follow."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks import Task, Warp
from gatesearch.training.split_data import Batch, channel_statistics


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

    Images are sampled bilinearly, labels by nearest neighbour. Pixels from outside the frame get
    the mean colour in the image and "unknown" in every label. A zoom z takes a random window of 1/z
    of the frame, as moving closer would: depth is divided by z. A scale s only resizes.

    Args:
        batch: `image` uint8 (B, 3, H, W) and labels, all on one device.
        tasks: Task name -> task.
        flip: Whether to mirror half of the samples.
        zoom: Factors z, of which one is drawn for each sample.
        scale: Range of s, drawn uniformly.
        rotate: Largest angle in both directions, degrees.
        generator: Source of all draws, on the processor, so that every device has the same.

    Returns:
        `image` float32 in 0..255, and labels in their encodings.
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
    size = 1 / (warp.zoom * uniform(*scale))  # side of the window over side of the frame
    shift_x, shift_y = ((1 - size).clamp(min=0) * uniform(-1, 1) for _ in range(2))
    labels = {name: batch[name] for name in tasks}
    if not (warp.flip.any() or (size != 1).any() or rotate):
        return {"image": image.float(), **labels}

    cos, sin = warp.angle.cos() * size, warp.angle.sin() * size
    mirror = torch.where(warp.flip, -1.0, 1.0)
    # Maps places of the output to places of the input, both in [-1, 1]: mirrors, then turns,
    # scales and shifts.
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
    mean, _ = channel_statistics(device)
    moved = {"image": F.grid_sample(image.float() - mean, grid, align_corners=False) + mean}
    for name, task in tasks.items():
        target = labels[name]
        planes = target if target.ndim == 4 else target[:, None]
        # `grid_sample` puts zeros outside the frame; labels are shifted so that 0 is "unknown".
        sampled = F.grid_sample(
            planes.float() - task.unknown_value, grid, mode="nearest", align_corners=False
        )
        target = (sampled + task.unknown_value).reshape(target.shape).to(target.dtype)
        moved[name] = task.transform_labels(target, warp)
    return moved
