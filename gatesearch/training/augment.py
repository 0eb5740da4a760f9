"""Augmentation of whole batches: random changes of colours, and of geometry that labels follow."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gatesearch.tasks import Task, Warp
from gatesearch.training.colour import jitter
from gatesearch.training.split_data import LABELLED, Batch
from gatesearch.training.warping import place, warp_by_axes, warp_by_grid


def augment(
    batch: Batch,
    tasks: Mapping[str, Task],
    *,
    flip: bool,
    zoom: Sequence[float],
    scale: tuple[float, float],
    rotate: float,
    crop: tuple[float, float] = (1.0, 1.0),
    colour: Mapping[str, float] | None = None,
    generator: torch.Generator,
) -> Batch:
    """Change colours and geometry of each sample of a batch at random.

    The content is turned, then a window of it is resized to the frame, then it is mirrored. The
    window lies anywhere in the frame. Its sides over those of the frame are

        width = c_x / (z s),  height = c_y / (z s)

    A zoom z is as moving closer would be: depth is divided by z. A scale s and a crop (c_x, c_y)
    only resize. A crop with c_x != c_y changes the shapes of things, and their normals would need
    another camera to be exact: like the change of the field of view by a zoom, it leaves them as
    they are.

    An option at its default draws nothing, so that the draws of the others stay the same.

    Args:
        batch: `image` uint8 (B, 3, H, W) and labels, all on one device, and `LABELLED` where it is
            there, which stays as it is.
        tasks: Task name -> task.
        flip: Whether to mirror half of the samples.
        zoom: Factors z, of which one is drawn for each sample.
        scale: Range of s, drawn uniformly.
        rotate: Largest angle in both directions, degrees.
        crop: Range of c_x and c_y, each drawn uniformly by itself.
        colour: Options of `gatesearch.training.colour.jitter`.
        generator: Source of all draws, on the processor, so that every device has the same.

    Returns:
        `image` float32 in 0..255, and labels in their encodings.
    """
    image = batch["image"]
    count = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    flipped = (uniform(0, 1) < 0.5) & flip
    factor = torch.tensor(zoom)[torch.randint(len(zoom), (count,), generator=generator)]
    angle = uniform(-rotate, rotate) * (math.pi / 180)
    side = 1 / (factor * uniform(*scale))
    unit_x, unit_y = uniform(-1, 1), uniform(-1, 1)
    width, height = side, side
    if tuple(crop) != (1.0, 1.0):
        width, height = side * uniform(*crop), side * uniform(*crop)
    kept = {LABELLED: batch[LABELLED]} if LABELLED in batch else {}
    if colour:
        batch = {**batch, "image": jitter(image, generator=generator, **colour)}

    # A zoom divides depths, also where a scale gives the window the size of the frame again.
    moved = flipped | (width != 1) | (height != 1) | (factor != 1)
    if not (moved.any() or rotate):
        return {"image": batch["image"].float(), **{name: batch[name] for name in tasks}, **kept}
    placement = place(
        flip=flipped,
        angle=angle,
        window=(width, height),
        shift=((1 - width).clamp(min=0) * unit_x, (1 - height).clamp(min=0) * unit_y),
        size=(image.shape[-2], image.shape[-1]),
    )
    warp = Warp(flip=flipped, zoom=factor, angle=angle, matrix=placement.inverse())
    warp_batch = warp_by_grid if rotate or image.device.type != "cpu" else warp_by_axes
    return {**warp_batch(batch, tasks, warp, placement), **kept}
