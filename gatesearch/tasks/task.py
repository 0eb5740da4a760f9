"""What every kind of task provides."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Warp:
    """The geometric change of each sample of a batch, for labels whose values follow it.

    A sample is turned first and mirrored then.

    Attributes:
        flip: (B,) bool, mirrored left to right.
        zoom: (B,) enlargement that brings the scene nearer (depth is divided by it).
        angle: (B,) counter-clockwise rotation in the image, radians.
    """

    flip: Tensor
    zoom: Tensor
    angle: Tensor


class Meter(Protocol):
    """A metric gathered over batches (the torchmetrics interface)."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""

    def compute(self) -> Tensor:
        """The value over all batches so far; NaN when no pixel had a label."""


class Task(Protocol):
    """One kind of task on dense labels.

    Attributes:
        channels: Channels that the head predicts.
        metric: Name of the metric.
        unit: Its unit, for tables.
        higher_is_better: Its direction.
        fill: Value of a label pixel that nobody knows.
    """

    channels: int
    metric: str
    unit: str
    higher_is_better: bool
    fill: float

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean loss over labelled pixels; exactly 0, with zero gradient, when there are none.

        Args:
            prediction: (B, channels, H, W) float32.
            target: (B, H, W) or (B, C, H, W), in the encoding of the task.
        """

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Mean distance to another network's prediction over all pixels; no labels are needed.

        Args:
            prediction: (B, channels, H, W) float32.
            teacher: Likewise, without gradient.
        """

    def meter(self) -> Meter:
        """A fresh metric."""

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Labels with their values corrected after their pixels were moved by `warp`."""

    def resize_labels(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels at another size, (B, ..., H', W')."""

    def decode(self, prediction: Tensor) -> Tensor:
        """The head's output in the encoding of the labels, for drawing."""
