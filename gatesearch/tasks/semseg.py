"""Semantic segmentation."""

from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from gatesearch.tasks.labels import IGNORE, Storage, encode_values, nearest_resize, plane
from gatesearch.tasks.task import Kind, Meter, Warp


class Semseg(Kind):
    """Cross entropy over labelled pixels; mean intersection over union in percent.

    Target: (B, H, W) uint8 class index, 255 = ignore.

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
    head: ClassVar[str] = ""
    unknown_value: ClassVar[float] = float(IGNORE)
    output_meaning: ClassVar[str] = "scores of the classes; the highest is the class"
    drawing: ClassVar[str] = "classes"

    ignore: int = IGNORE
    values: tuple[int, ...] = ()
    class_weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, given in (("values", self.values), ("class_weights", self.class_weights)):
            if given and len(given) != self.classes:
                raise ValueError(
                    f"{name} must have one number per class, {self.classes}, found {len(given)}"
                )
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"values must differ, found {self.values}")
        return self

    @property
    def channels(self) -> int:
        """One score per class."""
        return self.classes

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over labelled pixels."""
        # The scores of a pixel side by side: twice as fast on a processor in channels-last.
        scores = prediction.permute(0, 2, 3, 1).reshape(-1, self.channels)
        target = target.reshape(-1).long()
        if self.class_weights:
            return self._weighted_loss(scores, target)
        total = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum")
        return total / (target != IGNORE).sum().clamp(min=1)

    def _weighted_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        weight = torch.tensor(self.class_weights, dtype=scores.dtype, device=scores.device)
        total = F.cross_entropy(scores, target, weight=weight, ignore_index=IGNORE, reduction="sum")
        weights = weight[target[target != IGNORE]].sum()
        return total / torch.where(weights > 0, weights, 1)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the classes' probabilities."""
        student_scores, teacher_scores = (
            scores.permute(0, 2, 3, 1).reshape(-1, self.channels).log_softmax(1)
            for scores in (prediction, teacher)
        )
        return F.kl_div(student_scores, teacher_scores, reduction="batchmean", log_target=True)

    def meter(self) -> Meter:
        """Mean IoU over the classes that occur."""
        from gatesearch.tasks.meters import MetricOfSums

        zeros = (torch.zeros(self.channels, self.channels).long(),)
        return MetricOfSums(zeros, measure=confusion_matrix, value=mean_iou)

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Classes do not change when pixels move."""
        return target

    def resize_labels(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """The most likely class, uint8, (B, H, W)."""
        return prediction.argmax(1).to(torch.uint8)

    def encode(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Class indices, 255 where ignored, (H, W)."""
        values = self.values or tuple(range(self.classes))
        codes = {self.ignore: IGNORE} | {value: index for index, value in enumerate(values)}
        listed = f"0 to {self.classes - 1}" if not self.values else ", ".join(map(str, self.values))
        rule = f"values must be {listed}" + (
            "" if self.ignore in values else f", or {self.ignore} where there is no label"
        )
        return encode_values(plane(raw), codes, what=rule)


def confusion_matrix(prediction: Tensor, target: Tensor) -> tuple[Tensor]:
    """Labelled pixels of each class (rows) that are predicted as each class (columns), (K, K)."""
    classes = prediction.shape[1]
    known = target != IGNORE
    pairs = target[known].long() * classes + prediction.argmax(1)[known]
    return (torch.bincount(pairs, minlength=classes**2).reshape(classes, classes),)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean IoU in percent of a confusion matrix over a whole part; NaN when no pixel had a label.

    A class that neither labels nor predictions hold is left out of the mean (torchmetrics'
    `MeanIoU` averages per batch or per sample instead of over the part, which is another figure).
    """
    hit = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    occurs = union > 0
    return 100.0 * (hit[occurs] / union[occurs]).mean()
