"""Bring frames of any size to the size of the protocol: stretched, cropped, or padded.

| fit | what is done |
|---|---|
| `stretch` | the frame is resized; its aspect ratio changes |
| `crop` | the largest centred window of the protocol's aspect ratio is resized |
| `pad` | the frame is resized until it fits; the rest has its mean colour and no labels |
| `none` | frames must have the protocol's size |

Images are resampled bilinearly with anti-aliasing, labels as their task says.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gatesearch.datasets.frame_size import resize_image
from gatesearch.tasks import Task, Warp

Fit = Literal["stretch", "crop", "pad", "none"]
Size = tuple[int, int]  # height and width, pixels


@dataclass(frozen=True)
class Placement:
    """Where a frame lies in the frame of the protocol's size.

    Attributes:
        frame: Height and width of the frame.
        top: First row of the window of the frame that is shown.
        left: First column of it.
        window: Height and width of the window.
        shown: Height and width to which the window is resized.
        down: Rows above it.
        right: Columns left of it.
        size: Height and width of the protocol.
    """

    frame: Size
    top: int
    left: int
    window: Size
    shown: Size
    down: int
    right: int
    size: Size

    @property
    def is_whole(self) -> bool:
        """Whether the frame's borders are those of the protocol's frame."""
        return self.shown == self.size and self.window == self.frame

    @property
    def warp(self) -> Warp:
        """The change of the geometry, for labels per image that follow it."""
        down, right = (
            _axis(frame, start, window, shown, before, length)
            for frame, start, window, shown, before, length in (
                (self.frame[0], self.top, self.window[0], self.shown[0], self.down, self.size[0]),
                (self.frame[1], self.left, self.window[1], self.shown[1], self.right, self.size[1]),
            )
        )
        matrix = torch.tensor([[right[0], 0.0, right[1]], [0.0, down[0], down[1]]])
        return Warp(
            flip=torch.zeros(1, dtype=torch.bool),
            zoom=torch.ones(1),
            angle=torch.zeros(1),
            matrix=matrix[None],
        )


def _axis(
    frame: int, start: int, window: int, shown: int, before: int, length: int
) -> tuple[float, float]:
    """Factor and shift of places along one axis, both in -1..1 from border to border."""
    factor = shown / window
    return frame * factor / length, 2 * ((frame / 2 - start) * factor + before) / length - 1


def place(frame: Size, size: Size, fit: Fit) -> Placement:
    """Place a frame.

    Args:
        frame: Its height and width.
        size: Those of the protocol.
        fit: See the module.

    >>> place((60, 100), (32, 32), "crop").left
    20
    >>> place((60, 100), (32, 32), "pad").shown
    (19, 32)
    """
    (height, width), (target_height, target_width) = frame, size
    if fit == "crop":
        # Compared as products: quotients would round.
        if height * target_width > width * target_height:
            window = (max(1, round(width * target_height / target_width)), width)
        else:
            window = (height, max(1, round(height * target_width / target_height)))
        top, left = (height - window[0]) // 2, (width - window[1]) // 2
        return Placement(frame, top, left, window, size, 0, 0, size)
    if fit == "pad":
        factor = min(target_height / height, target_width / width)
        shown = (
            min(target_height, max(1, round(height * factor))),
            min(target_width, max(1, round(width * factor))),
        )
        down, right = (target_height - shown[0]) // 2, (target_width - shown[1]) // 2
        return Placement(frame, 0, 0, frame, shown, down, right, size)
    return Placement(frame, 0, 0, frame, size, 0, 0, size)


def fit_image(image: Tensor, placement: Placement) -> Tensor:
    """Place an image (1, 3, H, W), uint8; what is padded gets its mean colour."""
    shown = _window(image, placement)
    if tuple(shown.shape[-2:]) != placement.shown:
        shown = resize_image(shown, placement.shown)
    if placement.shown == placement.size:
        return shown
    mean = shown.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    return _on(mean.expand(*shown.shape[:2], *placement.size), shown, placement)


def fit_labels(labels: Tensor, task: Task, placement: Placement) -> Tensor:
    """Place dense labels (1, H, W) or (1, C, H, W); what is padded has no label."""
    shown = _window(labels, placement)
    if tuple(shown.shape[-2:]) != placement.shown:
        shown = task.resize_labels(shown, placement.shown)
    if placement.shown == placement.size:
        return shown
    empty = torch.full((*shown.shape[:-2], *placement.size), task.unknown_value, dtype=shown.dtype)
    return _on(empty, shown, placement)


def fit_row(labels: Tensor, task: Task, placement: Placement) -> Tensor:
    """Labels per image (1, ...): places in the image follow it, all others stay."""
    if placement.is_whole:
        return labels
    return task.transform_labels(labels, placement.warp)


def _window(tensor: Tensor, placement: Placement) -> Tensor:
    (top, left), (height, width) = (placement.top, placement.left), placement.window
    return tensor[..., top : top + height, left : left + width]


def _on(canvas: Tensor, shown: Tensor, placement: Placement) -> Tensor:
    canvas = canvas.clone()
    height, width = placement.shown
    down, right = placement.down, placement.right
    canvas[..., down : down + height, right : right + width] = shown
    return canvas
