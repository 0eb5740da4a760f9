"""Geometric warps of whole batches: images and dense labels move, labels per image follow.

Images are sampled bilinearly, labels by nearest neighbour. Pixels from outside the frame get the
mean colour in the image and "unknown" in every label.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks import Task, Warp
from gatesearch.training.split_data import Batch, channel_statistics

# Pixels that are warped at once on a processor; three channels of them fit into its cache.
CACHED_PIXELS = 2**16


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
    """Warp samples that are not rotated, first along x, then along y.

    On a processor this is several times faster than a grid of places; both read the same pixels.
    The arguments are those of `warp_by_grid`.
    """
    height, width = batch["image"].shape[-2:]
    columns = _pixels(placement.xx, placement.shift_x, width)
    rows = _pixels(placement.yy, placement.shift_y, height)
    # A window of the frame's size is the frame to the bit, or the frame read backwards.
    whole = (placement.xx.abs() == 1) & (placement.yy == 1)
    forwards = torch.arange(width, dtype=torch.float32)
    exact = torch.where(warp.flip[:, None], forwards.flip(0), forwards)
    columns = torch.where(whole[:, None], exact, columns)
    rows = torch.where(whole[:, None], torch.arange(height, dtype=torch.float32), rows)

    moved = {"image": _warp_images(batch["image"], rows, columns, whole=whole, flip=warp.flip)}
    nearest = rows.round(), columns.round()
    for name, task in tasks.items():
        target = batch[name]
        if task.storage.dense:
            target = _nearest(target, *nearest, outside=task.unknown_value)
        moved[name] = task.transform_labels(target, warp)
    return moved


def _warp_images(
    image: Tensor, rows: Tensor, columns: Tensor, *, whole: Tensor, flip: Tensor
) -> Tensor:
    """Sample images as `_bilinear` does, but copy those that are `whole` (B,)."""
    warped = torch.empty(image.shape, dtype=torch.float32)
    for i in whole.nonzero()[:, 0].tolist():
        warped[i] = image[i].flip(-1) if flip[i] else image[i]
    at_once = max(1, CACHED_PIXELS // (image.shape[-2] * image.shape[-1]))
    for part in (~whole).nonzero()[:, 0].split(at_once):
        warped[part] = _bilinear(image[part], rows[part], columns[part])
    return warped


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


def _bilinear(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample images (B, C, H, W) at rows (B, H') x columns (B, W'), both in pixels.

    Returns:
        (B, C, H', W') float32, with the mean colour around the images.
    """
    image = image.float()
    outside, _ = channel_statistics(image.device)
    left, top = columns.floor(), rows.floor()
    lerped = _read_columns(image, left, outside)
    lerped.lerp_(_read_columns(image, left + 1, outside), (columns - left)[:, None, None])
    upper, lower = (_read_rows(lerped, places, outside) for places in (top, top + 1))
    return upper.lerp_(lower, (rows - top)[:, None, :, None])


def _nearest(target: Tensor, rows: Tensor, columns: Tensor, *, outside: float) -> Tensor:
    """Read labels (B, ..., H, W) at whole rows (B, H') x columns (B, W'): (B, ..., H', W')."""
    planes = target if target.ndim == 4 else target[:, None]
    fill = planes.new_full((1, 1, 1), outside)
    read = _read_columns(_read_rows(planes, rows, fill), columns, fill)
    return read.reshape(*target.shape[:-2], *read.shape[-2:])


def _read_columns(planes: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """Read whole columns (B, W') of planes (B, C, H, W), `outside` (C, 1, 1) where there is none.

    Returns:
        (B, C, H, W').
    """
    channels, height, width = planes.shape[1:]
    index = columns.clamp(0, width - 1).long()[:, None, None].expand(-1, channels, height, -1)
    return _fill_outside(planes.gather(3, index), columns, width, outside, dim=3)


def _read_rows(planes: Tensor, rows: Tensor, outside: Tensor) -> Tensor:
    """Read whole rows (B, H') of planes (B, C, H, W), as `_read_columns` does: (B, C, H', W)."""
    count, channels, height, width = planes.shape
    first = torch.arange(0, count * channels * height, height).reshape(count, channels, 1)
    index = (first + rows.clamp(0, height - 1).long()[:, None]).flatten()
    read = planes.reshape(-1, width).index_select(0, index)  # copies whole rows of memory
    read = read.reshape(count, channels, rows.shape[1], width)
    return _fill_outside(read, rows, height, outside, dim=2)


def _fill_outside(
    read: Tensor, places: Tensor, length: int, outside: Tensor, *, dim: int
) -> Tensor:
    """Put `outside` where the places (B, L) along a dimension of what was read are not inside."""
    inside = (places >= 0) & (places < length)
    if inside.all():
        return read
    return torch.where(inside.unflatten(1, (1, 1, -1) if dim == 3 else (1, -1, 1)), read, outside)
