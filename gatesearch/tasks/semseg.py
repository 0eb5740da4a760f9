"""Semantic segmentation."""

from functools import partial
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from gatesearch.tasks.class_scores import (
    Weights,
    check_different,
    check_per_class,
    class_divergence,
    class_ious,
    class_loss,
    confusion_matrix,
    mean_iou,
    per_class,
    pixels_of,
)
from gatesearch.tasks.labels import IGNORE, Size, Storage, encode_classes, nearest_resize
from gatesearch.tasks.task import Kind, Meter


class Semseg(Kind):
    """Cross entropy over labelled pixels; mean intersection over union in percent.

    Target: (B, H, W) uint8 class index, 255 = ignore. Further figures: the IoU of each class.

    Attributes:
        ignore: Value of pixels without a label in files, unless it is that of a class.
        values: Value of each class in files, in the order of the classes; 0, 1, 2 ... if empty.
        class_weights: Weight of each class in the loss, which is then a weighted mean; all 1 if
            empty.
    """

    metric: ClassVar[str] = "mIoU"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    storage: ClassVar[Storage] = Storage("|u1")
    unknown_value: ClassVar[float] = float(IGNORE)
    output_meaning: ClassVar[str] = "scores of the classes; the highest is the class"
    drawing: ClassVar[str] = "classes"
    most_classes: ClassVar[int] = IGNORE

    ignore: int = IGNORE
    values: tuple[int, ...] = ()
    class_weights: Weights = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_per_class("values", self.values, self.classes)
        check_per_class("class_weights", self.class_weights, self.classes)
        check_different("values", self.values)
        return self

    @property
    def channels(self) -> int:
        """One score per class."""
        return self.classes

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over labelled pixels."""
        return class_loss(
            pixels_of(prediction),
            target.reshape(-1).long(),
            ignored=IGNORE,
            class_weights=self.class_weights,
        )

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the classes' probabilities."""
        return class_divergence(pixels_of(prediction), pixels_of(teacher))

    def meter(self, *, details: bool = True) -> Meter:
        """Mean IoU over the classes that occur."""
        from gatesearch.tasks.meters import MetricOfSums

        return MetricOfSums(
            (torch.zeros(self.classes, self.classes).long(),),
            measure=partial(confusion_matrix, ignored=IGNORE),
            value=mean_iou,
            details=lambda confusion: per_class("IoU", class_ious(confusion), self.class_names),
        )

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """The most likely class, uint8, (B, H, W)."""
        return prediction.argmax(1).to(torch.uint8)

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Class indices, 255 where ignored, (H, W)."""
        return encode_classes(raw, classes=self.classes, values=self.values, ignore=self.ignore)
