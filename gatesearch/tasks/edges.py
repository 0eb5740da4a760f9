"""Edge detection."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from gatesearch.tasks.edge_measure import THRESHOLDS, TOLERANCE, edge_counts, ods_ois
from gatesearch.tasks.labels import IGNORE, Size, Storage, encode_binary, nearest_resize
from gatesearch.tasks.task import Kind, Meter

POSITIVE_WEIGHT = 0.95


class Edges(Kind):
    """Binary cross entropy with weight 0.95 on edges and 0.05 elsewhere; the loss is the metric.

    Target: (B, H, W) uint8 0 or 1, 255 = ignore. The fixed weight follows the survey code for
    PASCAL-Context (Vandenhende et al., 2021), whose loss is the column of the published table.
    Further figures: odsF and oisF, F-measures of edges that may lie a little off (see
    `edge_measure`). They take about half a second per frame of 288 x 384 pixels, and are computed
    once per trained network and part.

    Attributes:
        positive: Value of pixels on an edge in files; 0 is the value of all others.
        ignore: Value of pixels without a label in files, unless it is one of these two.
        threshold: When given, files hold degrees: pixels of at least this value
            are on an edge.
        thresholds: Number of thresholds of odsF and oisF, 99 in published figures; 0 leaves these
            figures out.
        tolerance: Longest distance for them between matched pixels, as a share of the frame's
            diagonal: 0.0075 on PASCAL-Context, 0.011 on NYUD.
    """

    channels: ClassVar[int] = 1
    metric: ClassVar[str] = "loss"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    storage: ClassVar[Storage] = Storage("|u1")
    unknown_value: ClassVar[float] = float(IGNORE)
    output_meaning: ClassVar[str] = "logit of an edge"
    drawing: ClassVar[str] = "certainty"
    positive: int = 1
    ignore: int = IGNORE
    threshold: float | None = None
    thresholds: int = Field(default=THRESHOLDS, ge=0, le=999)
    tolerance: float = Field(default=TOLERANCE, gt=0, le=0.1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Weighted cross entropy, mean over labelled pixels."""
        total, count = weighted_sum(prediction, target)
        return total / count.clamp(min=1)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Cross entropy against the teacher's probabilities, weighted as the labels' would be."""
        probability = teacher.sigmoid()
        weight = POSITIVE_WEIGHT * probability + (1 - POSITIVE_WEIGHT) * (1 - probability)
        return F.binary_cross_entropy_with_logits(prediction, probability, weight=weight)

    def meter(self, *, details: bool = True) -> Meter:
        """The loss over all labelled pixels of the part."""
        from gatesearch.tasks.meters import MetricOfSums

        zeros = (torch.zeros((), dtype=torch.float64), torch.zeros(()).long())
        if not (details and self.thresholds):
            return MetricOfSums(zeros, measure=weighted_sum_in_double, value=torch.div)
        counts, one = torch.zeros(self.thresholds).long(), torch.zeros(()).long()
        return MetricOfSums(
            (*zeros, counts, counts, one, one, one),
            measure=self._sums,
            value=lambda total, count, *edges: total / count,
            details=lambda total, count, *edges: _f_measures(*edges),
        )

    def _sums(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        counts = edge_counts(
            self.decode(prediction), target, thresholds=self.thresholds, tolerance=self.tolerance
        )
        return (*weighted_sum_in_double(prediction, target), *counts)

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """A pixel is an edge if any pixel it covers is (nearest would break thin lines)."""
        if size[0] > target.shape[-2] or size[1] > target.shape[-1]:
            return nearest_resize(target, size)
        edge = F.adaptive_max_pool2d((target == 1)[:, None].float(), size)[:, 0] > 0
        unknown = nearest_resize(target, size) == IGNORE
        return torch.where(edge, 1, torch.where(unknown, IGNORE, 0)).to(target.dtype)

    def decode(self, prediction: Tensor) -> Tensor:
        """Probability of an edge, (B, H, W)."""
        return prediction[:, 0].sigmoid()

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """0 or 1, 255 where ignored, (H, W)."""
        return encode_binary(
            raw, positive=self.positive, ignore=self.ignore, threshold=self.threshold
        )


def weighted_sum(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of the weighted cross entropy over labelled pixels, their number)."""
    known, positive = target != IGNORE, target == 1
    weight = torch.where(positive, POSITIVE_WEIGHT, 1 - POSITIVE_WEIGHT) * known
    total = F.binary_cross_entropy_with_logits(
        prediction[:, 0], positive.to(prediction.dtype), weight=weight, reduction="sum"
    )
    return total, known.sum()


def weighted_sum_in_double(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`weighted_sum` of a batch, to be added to many others without loss."""
    total, count = weighted_sum(prediction, target)
    return total.double(), count


def _f_measures(*counts: Tensor) -> dict[str, float]:
    ods, ois = ods_ois(*counts)
    return {"odsF": float(ods), "oisF": float(ois)}
