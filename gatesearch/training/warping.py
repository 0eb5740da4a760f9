"""Geometric warps of whole batches: images and dense labels move, labels per image follow.

Images are sampled bilinearly, labels by nearest neighbour. Pixels from outside the frame get the
mean colour in the image and "unknown" in every label.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks import Task, Warp
from gatesearch.training.split_data import Batch, channel_statistics


@dataclass(frozen=True)
class Placement:
    """Which place of the input each place of the output is read from, for each sample of a batch.

    Both are in -1..1 from border to border, x to the right and y down:

        x' = xx x + xy y + shift_x,  y' = yx x + yy y + shift_y

    All fields are (B,).
    """

    xx: Tensor
    xy: Tensor
    yx: Tensor
    yy: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def inverse(self) -> Tensor:
        """Return the map from places of the input to places of the output, (B, 2, 3)."""
        determinant = self.xx * self.yy - self.xy * self.yx
        rows = torch.stack([self.yy, -self.xy, -self.yx, self.xx], 1).reshape(-1, 2, 2)
        linear = rows / determinant[:, None, None]
        shift = torch.stack([self.shift_x, self.shift_y], 1)[..., None]
        return torch.cat([linear, -linear @ shift], 2)


def place(
    *,
    flip: Tensor,
    angle: Tensor,
    window: tuple[Tensor, Tensor],
    shift: tuple[Tensor, Tensor],
    size: tuple[int, int],
) -> Placement:
    """Place windows of the frames: mirrored, then stretched, turned and shifted.

    Seen the other way round, the content of a frame is turned, then a window of it is stretched to
    the size of the frame, then that is mirrored.

    Args:
        flip: (B,) bool, mirrored left to right.
        angle: (B,) counter-clockwise rotation of the content, radians.
        window: Width and height of each sample's window over those of the frame, (B,) each.
        shift: x and y of the window's centre, (B,) each, in -1..1 from border to border.
        size: Height and width of the frame, pixels.
    """
    height, width = size
    cos, sin = angle.cos(), angle.sin()
    mirror = torch.where(flip, -1.0, 1.0)
    return Placement(
        xx=cos * window[0] * mirror,
        xy=-(sin * window[1]) * height / width,
        yx=sin * window[0] * mirror * width / height,
        yy=cos * window[1],
        shift_x=shift[0],
        shift_y=shift[1],
    )


def warp_by_grid(
    batch: Batch, tasks: Mapping[str, Task], warp: Warp, placement: Placement
) -> Batch:
    """Warp all samples of a batch at once, by a grid that gives each output pixel its place.

    Args:
        batch: `image` (B, 3, H, W) of any type in 0..255, and labels, all on one device.
        tasks: Task name -> task.
        warp: The warp of each sample.
        placement: The same warp as places to read from.

    Returns:
        `image` float32, and labels in their encodings.
    """
    image = batch["image"]
    height, width = image.shape[-2:]
    device = image.device
    # Written out, because `F.affine_grid` takes four times as long.
    xx, xy, yx, yy, shift_x, shift_y = (
        part.to(device)[:, None, None] for part in vars(placement).values()
    )
    x, y = _centres(width, device), _centres(height, device)[:, None]
    grid = torch.stack([xx * x + xy * y + shift_x, yx * x + yy * y + shift_y], 3)
    warp = Warp(*(part.to(device) for part in vars(warp).values()))
    mean, _ = channel_statistics(device)
    moved = {"image": F.grid_sample(image.float() - mean, grid, align_corners=False) + mean}
    for name, task in tasks.items():
        target = batch[name]
        if task.storage.dense:
            planes = target if target.ndim == 4 else target[:, None]
            # `grid_sample` puts zeros outside the frame; labels are shifted so that 0 is "unknown".
            sampled = F.grid_sample(
                planes.float() - task.unknown_value, grid, mode="nearest", align_corners=False
            )
            target = (sampled + task.unknown_value).reshape(target.shape).to(target.dtype)
        moved[name] = task.transform_labels(target, warp)
    return moved


def warp_by_axes(
    batch: Batch, tasks: Mapping[str, Task], warp: Warp, placement: Placement
) -> Batch:
    """Warp samples that are not rotated one by one, first along x, then along y.

    On a processor this is several times faster than a grid of places; both read the same pixels.
    The arguments are those of `warp_by_grid`.
    """
    height, width = batch["image"].shape[-2:]
    mean, _ = channel_statistics(batch["image"].device)
    columns = _pixels(placement.xx, placement.shift_x, width)
    rows = _pixels(placement.yy, placement.shift_y, height)
    # A window of the frame's size is the frame, which is copied, or read backwards.
    whole = ((placement.xx.abs() == 1) & (placement.yy == 1)).tolist()

    image = torch.empty(batch["image"].shape, dtype=torch.float32)
    for i, planes in enumerate(batch["image"]):
        if whole[i]:
            image[i] = planes.flip(-1) if warp.flip[i] else planes
        else:
            _bilinear(planes, rows[i], columns[i], outside=mean, out=image[i])

    warps = [Warp(*(part[i : i + 1] for part in vars(warp).values())) for i in range(len(whole))]

    def moved(name: str, i: int) -> Tensor:
        planes, task = batch[name][i], tasks[name]
        if task.storage.dense and not whole[i]:
            planes = _nearest(planes, rows[i], columns[i], outside=task.unknown_value)
        elif task.storage.dense and warp.flip[i]:
            planes = planes.flip(-1)
        return task.transform_labels(planes[None], warps[i])[0]

    count = len(whole)
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


@functools.cache
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
