"""What every kind of task provides.

A kind is a frozen table of options with methods: its fields are the options that a study can set
below `[tasks.NAME]`, so that `Semseg(classes=40)` is a task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from gatesearch.strict import Strict
from gatesearch.tasks.labels import MOST_CLASSES, Size, Storage


@dataclass(frozen=True)
class Warp:
    """The geometric change of each sample of a batch, for labels whose values follow it.

    A sample is first rotated, then a window of it is resized to the frame, then it is mirrored.

    Attributes:
        flip: (B,) bool, mirrored left to right.
        zoom: (B,) enlargement that brings the scene nearer (depth is divided by it).
        angle: (B,) counter-clockwise rotation in the image, radians.
        matrix: (B, 2, 3) map from places (x, y) of the input to places of the output, both in -1..1
            from border to border, x to the right and y down: a place p moves to
            matrix[:, :, :2] @ p + matrix[:, :, 2]. It holds all of the change of the geometry,
            shifts and resizing included. What was not in the window comes to lie outside -1..1.
    """

    flip: Tensor
    zoom: Tensor
    angle: Tensor
    matrix: Tensor


class Meter(Protocol):
    """A metric gathered over batches (the torchmetrics interface)."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""

    def compute(self) -> Tensor:
        """The value over all batches so far; NaN when nothing had a label."""

    def details(self) -> dict[str, float]:
        """Further figures that are told beside the value, by name; NaN when nothing had a label."""


class Kind(Strict):
    """The options that all kinds have, and what most kinds do; the base of every kind's table.

    Attributes:
        classes: Number of classes; 1 for a kind without classes.
        class_names: Names of the classes by index, which name figures per class; empty where none
            are given.
    """

    dense: ClassVar[bool] = True
    head: ClassVar[str] = ""
    drawing: ClassVar[str] = ""
    most_classes: ClassVar[int] = MOST_CLASSES

    classes: int = Field(default=1, ge=1, le=MOST_CLASSES)
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if self.classes > self.most_classes:
            raise ValueError(
                f"classes must be at most {self.most_classes} for this kind, found {self.classes}"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options that are not at their defaults, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the classes, where they have any."""
        return self.class_names

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """The same labels: most do not change when pixels move."""
        return target

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """The same labels: those per image do not depend on its size."""
        return target

    def summarise(self, labels: NDArray[Any]) -> dict[str, float]:
        """No figure: most kinds learn nothing from the labels before training."""
        return {}

    def fitted(self, figures: Mapping[str, float]) -> Self:
        """The same task."""
        return self


class Task(Protocol):
    """One task: a kind with its options.

    Labels are dense (a value or vector per pixel) or one vector per image, as `storage` says.
    Predictions are dense, (B, channels, H, W), or one vector per image, (B, channels), as `dense`
    says. The two may differ: keypoints are predicted as maps, and labelled as places.
    """

    @property
    def options(self) -> dict[str, Any]:
        """Options that are not at their defaults, fitted ones included, as JSON values.

        `build_task` makes an equal task of them.
        """

    @property
    def classes(self) -> int:
        """Number of classes; 1 for a kind without classes."""

    @property
    def channels(self) -> int:
        """Channels that the head predicts."""

    @property
    def metric(self) -> str:
        """Name of the metric that ranks networks."""

    @property
    def unit(self) -> str:
        """Unit of the metric, for tables."""

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""

    @property
    def storage(self) -> Storage:
        """How a pack stores the labels."""

    @property
    def unknown_value(self) -> float:
        """Value of a label, or of a pixel of one, that is not known; may be NaN."""

    @property
    def dense(self) -> bool:
        """Whether its head must predict values per pixel."""

    @property
    def head(self) -> str:
        """Default head, a name in `gatesearch.models.heads.HEADS`; empty for the study's."""

    @property
    def output_meaning(self) -> str:
        """What the channels of the head's output are, for readers of exported files."""

    @property
    def drawing(self) -> str:
        """How the report and `gatesearch predict` show labels and decoded predictions.

        A name in `drawing.DRAWINGS` for values per pixel, or in `answers.ANSWERS` for a few numbers
        per image, which become columns of a table; empty if they are not shown.
        """

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the classes, attributes, values or points; empty for numbers from 0."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean loss over what has labels; exactly 0, with zero gradient, when nothing has.

        Args:
            prediction: (B, channels, H, W) or (B, channels), float32.
            target: (B, H, W), (B, C, H, W), or for labels per image (B, ...), in the encoding of
                the task.
        """

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Mean distance to another network's prediction; no labels are needed.

        Args:
            prediction: As for `loss`.
            teacher: The other network's prediction, of the same shape, without gradient.
        """

    def meter(self, *, details: bool = True) -> Meter:
        """A fresh metric.

        Args:
            details: Whether `Meter.details` is going to be asked for. Without, figures that take
                long may be left out.
        """

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Labels with their values corrected after their pixels were moved by `warp`."""

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """Labels at another size of the image: dense ones become (B, ..., H', W')."""

    def decode(self, prediction: Tensor) -> Tensor:
        """The head's output as the report and `gatesearch predict` show it, in float32 or uint8.

        It is in the encoding of the labels, or the probability of each class, (B, K), for the
        drawing `one_class`.
        """

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Convert a label as a user's file has it to the encoding of the pack.

        Args:
            raw: One frame's label. Dense: (H, W) or (H, W, C) numbers. Per image: (K,) values of a
                row of a table, numbers or text, where an empty text is no label.
            size: Height and width, in pixels, of the image that the label is of. Kinds whose labels
                are places per image need it.

        Returns:
            An array as `storage` says: of its type, and of its shape behind (H, W) or alone.

        Raises:
            ValueError: A value that the kind does not allow; says the rule and the value found.
        """

    def summarise(self, labels: NDArray[Any]) -> dict[str, float]:
        """Figures of the labels of a training part, (N, ...), that `fitted` needs."""

    def fitted(self, figures: Mapping[str, float]) -> Self:
        """The task with what it learns from the labels of the training part (`summarise`)."""
