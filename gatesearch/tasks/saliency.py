"""Saliency estimation."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.tasks.labels import IGNORE, Size, Storage, encode_binary, nearest_resize
from gatesearch.tasks.task import Kind, Meter

THRESHOLDS = 15


class Saliency(Kind):
    """Balanced binary cross entropy; the largest mean IoU over thresholds.

    Target: (B, H, W) uint8 0 or 1, 255 = ignore.

    Attributes:
        positive: Value of salient pixels in files; 0 is the value of all others.
        ignore: Value of pixels without a label in files, unless it is one of these two.
        threshold: When given, files hold degrees: pixels of at least this value
            are salient.
    """

    channels: ClassVar[int] = 1
    metric: ClassVar[str] = "maxIoU"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    storage: ClassVar[Storage] = Storage("|u1")
    unknown_value: ClassVar[float] = float(IGNORE)
    output_meaning: ClassVar[str] = "logit of saliency"
    drawing: ClassVar[str] = "certainty"
    positive: int = 1
    ignore: int = IGNORE
    threshold: float | None = None

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy in which both classes of the batch weigh one half, summed over pixels."""
        known, positive = target != IGNORE, target == 1
        count = known.sum().clamp(min=1)
        share = (known & ~positive).sum() / count  # weight of a positive pixel
        weight = torch.where(positive, share, 1 - share) * known
        total = F.binary_cross_entropy_with_logits(
            prediction[:, 0], positive.to(prediction.dtype), weight=weight, reduction="sum"
        )
        return total / count

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Cross entropy against the teacher's probabilities."""
        return F.binary_cross_entropy_with_logits(prediction, teacher.sigmoid())

    def meter(self) -> Meter:
        """IoU of the salient region, mean over frames, best of the thresholds."""
        from gatesearch.tasks.meters import MetricOfSums

        zeros = (torch.zeros(THRESHOLDS, dtype=torch.float64), torch.zeros(()).long())
        return MetricOfSums(zeros, measure=iou_by_threshold, value=best_mean)

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """Probability of being salient, (B, H, W)."""
        return prediction[:, 0].sigmoid()

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """0 or 1, 255 where ignored, (H, W)."""
        return encode_binary(
            raw, positive=self.positive, ignore=self.ignore, threshold=self.threshold
        )


def iou_by_threshold(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(sum over frames of the IoU at each of 15 thresholds in (0, 1), number of frames).

    Frames without labels are left out.
    """
    known, positive = (target != IGNORE).flatten(1), (target == 1).flatten(1)
    score = prediction[:, 0].sigmoid().flatten(1)
    labelled = known.any(1)
    sums = []
    for threshold in torch.linspace(0, 1, THRESHOLDS + 2, device=score.device)[1:-1]:
        chosen = (score > threshold) & known
        hit = (chosen & positive).sum(1).double()
        union = ((chosen | positive) & known).sum(1).double()
        # A frame without salient pixels and without predicted ones is right.
        sums.append(torch.where(union > 0, hit / union.clamp(min=1), 1.0)[labelled].sum())
    return torch.stack(sums), labelled.sum()


def best_mean(iou: Tensor, frames: Tensor) -> Tensor:
    """Mean IoU over frames at the best threshold; NaN when no frame had labels."""
    return (iou / frames).max()
