"""Augmentation of whole batches: one geometric warp per sample, which labels follow."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks import Task, Warp
from gatesearch.training.split_data import LABELLED, Batch, channel_statistics


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

    Without rotation, rows and columns are resampled one after the other, sample by sample. On a
    processor this is several times faster than a grid of places, which rotation and GPUs use; both
    read the same pixels.

    Args:
        batch: `image` uint8 (B, 3, H, W) and labels, all on one device; and `LABELLED`, which stays
            as it is, where some frame lacks labels.
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
    count = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    warp = Warp(
        flip=(uniform(0, 1) < 0.5) & flip,
        zoom=torch.tensor(zoom)[torch.randint(len(zoom), (count,), generator=generator)],
        angle=uniform(-rotate, rotate) * (math.pi / 180),
    )
    size = 1 / (warp.zoom * uniform(*scale))  # side of the window over side of the frame
    shift_x, shift_y = ((1 - size).clamp(min=0) * uniform(-1, 1) for _ in range(2))
    kept = {LABELLED: batch[LABELLED]} if LABELLED in batch else {}
    # A zoom divides depths, also where a scale gives the window the size of the frame again.
    if not (warp.flip.any() or (size != 1).any() or (warp.zoom != 1).any() or rotate):
        return {"image": image.float(), **{name: batch[name] for name in tasks}, **kept}
    if rotate or image.device.type != "cpu":
        return _warp_by_grid(batch, tasks, warp, size=size, shift=(shift_x, shift_y)) | kept
    return _warp_by_axes(batch, tasks, warp, size=size, shift=(shift_x, shift_y)) | kept


def _warp_by_grid(
    batch: Batch, tasks: Mapping[str, Task], warp: Warp, *, size: Tensor, shift: tuple[Tensor, ...]
) -> Batch:
    """Warp all samples of a batch at once, by a grid that gives each output pixel its place.

    Args:
        batch: See `augment`.
        tasks: Task name -> task.
        warp: The warp of each sample.
        size: (B,) side of each sample's window over that of the frame.
        shift: x and y of the window's centre, (B,) each, in -1..1 from border to border.
    """
    image = batch["image"]
    height, width = image.shape[-2:]
    device = image.device
    cos, sin = warp.angle.cos() * size, warp.angle.sin() * size
    mirror = torch.where(warp.flip, -1.0, 1.0)
    # Maps places of the output to places of the input, both in [-1, 1]: mirrors, then turns,
    # scales and shifts. Written out, because `F.affine_grid` takes four times as long.
    factors = (cos * mirror, -sin * height / width, sin * mirror * width / height, cos, *shift)
    xx, xy, yx, yy, shift_x, shift_y = (f.to(device)[:, None, None] for f in factors)
    x, y = _centres(width, device), _centres(height, device)[:, None]
    grid = torch.stack([xx * x + xy * y + shift_x, yx * x + yy * y + shift_y], 3)
    warp = Warp(warp.flip.to(device), warp.zoom.to(device), warp.angle.to(device))
    mean, _ = channel_statistics(device)
    moved = {"image": F.grid_sample(image.float() - mean, grid, align_corners=False) + mean}
    for name, task in tasks.items():
        target = batch[name]
        planes = target if target.ndim == 4 else target[:, None]
        # `grid_sample` puts zeros outside the frame; labels are shifted so that 0 is "unknown".
        sampled = F.grid_sample(
            planes.float() - task.unknown_value, grid, mode="nearest", align_corners=False
        )
        target = (sampled + task.unknown_value).reshape(target.shape).to(target.dtype)
        moved[name] = task.transform_labels(target, warp)
    return moved


def _warp_by_axes(
    batch: Batch, tasks: Mapping[str, Task], warp: Warp, *, size: Tensor, shift: tuple[Tensor, ...]
) -> Batch:
    """Warp samples that are not rotated one by one, first along x, then along y.

    The arguments are those of `_warp_by_grid`.
    """
    height, width = batch["image"].shape[-2:]
    mean, _ = channel_statistics(batch["image"].device)
    mirror = torch.where(warp.flip, -1.0, 1.0)
    columns = _pixels(size * mirror, shift[0], width)
    rows = _pixels(size, shift[1], height)

    image = torch.empty(batch["image"].shape, dtype=torch.float32)
    for i, planes in enumerate(batch["image"]):
        if size[i] == 1:
            image[i] = planes.flip(-1) if warp.flip[i] else planes
        else:
            _bilinear(planes, rows[i], columns[i], outside=mean, out=image[i])

    def moved(name: str, i: int) -> Tensor:
        planes, task = batch[name][i], tasks[name]
        if size[i] != 1:
            planes = _nearest(planes, rows[i], columns[i], outside=task.unknown_value)
        elif warp.flip[i]:
            planes = planes.flip(-1)
        one = Warp(*(part[i : i + 1] for part in (warp.flip, warp.zoom, warp.angle)))
        return task.transform_labels(planes[None], one)[0]

    count = len(size)
    labels = {name: _stacked((moved(name, i) for i in range(count)), count) for name in tasks}
    return {"image": image, **labels}


def _stacked(samples: Iterator[Tensor], count: int) -> Tensor:
    """Stack samples as they come, so that only one is in memory beside the stack."""
    first = next(samples)
    stack = first.new_empty((count, *first.shape))
    stack[0] = first
    for i, sample in enumerate(samples, start=1):
        stack[i] = sample
    return stack


def _centres(length: int, device: torch.device) -> Tensor:
    """Return the centres of pixels along an axis, (length,) in -1..1 from border to border."""
    return torch.linspace(-1, 1, length, device=device) * (length - 1) / length


def _pixels(scale: Tensor, shift: Tensor, length: int) -> Tensor:
    """Return for each output pixel along an axis its place in the input, (B, length), in pixels.

    The centre of the first pixel is at 0. Rounded as `F.grid_sample` does, so that labels are read
    from the same pixels.
    """
    places = scale[:, None] * _centres(length, scale.device) + shift[:, None]
    return (places + 1) * (length / 2) - 0.5


def _bilinear(
    image: Tensor, rows: Tensor, columns: Tensor, *, outside: Tensor, out: Tensor
) -> None:
    """Sample an image (C, H, W) at rows (H',) x columns (W').

    Args:
        image: The image.
        rows: Places along y, in pixels.
        columns: Places along x, in pixels.
        outside: (C, 1, 1) float32 colour around the image.
        out: (C, H', W') float32, which receives the samples.
    """
    top, left = rows.floor(), columns.floor()
    window, top_index, left_index = _window(image, top, left, neighbours=2, outside=outside)
    left_index = left_index.expand(*window.shape[:2], -1)
    lerped = window.gather(2, left_index)
    lerped.lerp_(window.gather(2, left_index + 1), columns - left)
    torch.lerp(
        lerped.index_select(1, top_index),
        lerped.index_select(1, top_index + 1),
        (rows - top)[:, None],
        out=out,
    )


def _nearest(target: Tensor, rows: Tensor, columns: Tensor, *, outside: float) -> Tensor:
    """Read labels (..., H, W) at the pixels nearest to rows (H',) x columns (W'): (..., H', W')."""
    planes = target if target.ndim == 3 else target[None]
    fill = planes.new_full((len(planes), 1, 1), outside)
    window, row_index, column_index = _window(
        planes, rows.round(), columns.round(), neighbours=1, outside=fill
    )
    read = window.gather(2, column_index.expand(*window.shape[:2], -1)).index_select(1, row_index)
    return read.reshape(*target.shape[:-2], *read.shape[1:])


def _window(
    planes: Tensor, rows: Tensor, columns: Tensor, *, neighbours: int, outside: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the part of planes that some rows and columns read, in the dtype of `outside`.

    Args:
        planes: (C, H, W).
        rows: (H',) whole numbers, the first row that each output row reads.
        columns: (W',) whole numbers, likewise.
        neighbours: Number of rows and columns that an output pixel reads along each axis.
        outside: (C, 1, 1) value around the planes; the window has a margin of it where it is read.

    Returns:
        The window, and the indices of `rows` and `columns` within it.
    """
    top, bottom, row_index = _span(rows, planes.shape[1], neighbours)
    left, right, column_index = _span(columns, planes.shape[2], neighbours)
    inside = planes[:, max(top, 0) : bottom, max(left, 0) : right]
    if inside.shape[1:] == (bottom - top, right - left):
        return inside.to(outside.dtype), row_index, column_index
    window = outside.repeat(1, bottom - top, right - left)
    y, x = max(-top, 0), max(-left, 0)
    window[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return window, row_index, column_index


def _span(places: Tensor, length: int, neighbours: int) -> tuple[int, int, Tensor]:
    """Return (first place read, one after the last, places counted from the first)."""
    # One margin beyond either end stands for all places that are farther away.
    index = places.clamp(-neighbours, length).long()
    start = int(index.min())
    return start, int(index.max()) + neighbours, index - start
