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

    Target: (B, H, W) uint8 0 or 1, 255 = ignore. Further figures: maxF, the largest F-measure over
    the same thresholds, of the means over frames of precision and recall (as in the survey code of
    Vandenhende et al., 2021, `evaluation/eval_sal.py`).

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

    def meter(self, *, details: bool = True) -> Meter:
        """IoU of the salient region, mean over frames, best of the thresholds."""
        from gatesearch.tasks.meters import MetricOfSums

        sums = torch.zeros(THRESHOLDS, dtype=torch.float64)
        return MetricOfSums(
            (sums, torch.zeros(()).long(), sums, sums),
            measure=scores_by_threshold,
            value=best_mean,
            details=largest_f_measure,
        )

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


def scores_by_threshold(
    prediction: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add up scores of frames at each of 15 thresholds in (0, 1).

    Frames without labels are left out. In one without salient pixels, all scores are 1 if none is
    predicted and else 0.

    Returns:
        Sums of the IoU (15,), number of frames (), sums of precision (15,) and recall (15,).
    """
    known, positive = (target != IGNORE).flatten(1), (target == 1).flatten(1)
    score = prediction[:, 0].sigmoid().flatten(1)
    labelled = known.any(1)
    true = (positive & known).sum(1).double()
    ious: list[Tensor] = []
    precisions: list[Tensor] = []
    recalls: list[Tensor] = []
    for threshold in torch.linspace(0, 1, THRESHOLDS + 2, device=score.device)[1:-1]:
        chosen = (score > threshold) & known
        hit = (chosen & positive).sum(1).double()
        union = ((chosen | positive) & known).sum(1).double()
        # A frame without salient pixels and without predicted ones is right.
        ious.append(torch.where(union > 0, hit / union.clamp(min=1), 1.0)[labelled].sum())
        for shares, count in ((precisions, chosen.sum(1).double()), (recalls, true)):
            share = torch.where(union > 0, hit / count.clamp(min=1), 1.0)
            shares.append(share[labelled].sum())
    return torch.stack(ious), labelled.sum(), torch.stack(precisions), torch.stack(recalls)


def best_mean(iou: Tensor, frames: Tensor, precision: Tensor, recall: Tensor) -> Tensor:
    """Mean IoU over frames at the best threshold; NaN when no frame had labels."""
    return (iou / frames).max()


def largest_f_measure(
    iou: Tensor, frames: Tensor, precision: Tensor, recall: Tensor
) -> dict[str, float]:
    """Harmonic mean of mean precision and mean recall at the best threshold."""
    product, total = precision * recall / frames, precision + recall
    return {"maxF": float(torch.where(total == 0, 0 * product, 2 * product / total).max())}
