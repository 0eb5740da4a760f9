"""Saliency estimation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks.labels import nearest_resize
from gatesearch.tasks.task import Meter, Warp

IGNORE = 255
THRESHOLDS = 15


class Saliency:
    """Balanced binary cross entropy; the largest mean IoU over thresholds.

    Target: (B, H, W) uint8 0 or 1, 255 = ignore.
    """

    channels = 1
    metric = "maxIoU"
    unit = ""
    higher_is_better = True
    fill = float(IGNORE)

    def __init__(self, *, classes: int = 1) -> None:
        del classes

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
        """Cross entropy against the other's probabilities."""
        return F.binary_cross_entropy_with_logits(prediction, teacher.sigmoid())

    def meter(self) -> Meter:
        """IoU of the salient region, mean over frames, best of the thresholds."""
        from gatesearch.tasks.meters import MaxIoU

        return MaxIoU()

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Labels do not change when pixels move."""
        return target

    def resize_labels(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """Probability of being salient, (B, H, W)."""
        return prediction[:, 0].sigmoid()
