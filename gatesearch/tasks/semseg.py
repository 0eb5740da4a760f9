"""Semantic segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks.labels import IGNORE, Storage, nearest_resize
from gatesearch.tasks.task import Meter, Warp


class Semseg:
    """Cross entropy over labelled pixels; mean intersection over union in percent.

    Target: (B, H, W) uint8 class index, 255 = ignore.
    """

    metric = "mIoU"
    unit = "%"
    higher_is_better = True
    storage = Storage("|u1")
    unknown_value = float(IGNORE)
    output_meaning = "scores of the classes; the highest is the class"
    drawing = "classes"

    def __init__(self, *, classes: int) -> None:
        self.channels = classes

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over labelled pixels."""
        # The scores of a pixel side by side: twice as fast on a processor in channels-last.
        scores = prediction.permute(0, 2, 3, 1).reshape(-1, self.channels)
        target = target.reshape(-1).long()
        total = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum")
        return total / (target != IGNORE).sum().clamp(min=1)

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
