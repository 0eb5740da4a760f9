"""Metrics over a whole part, as torchmetrics metrics.

Imported where a meter is made, since torchmetrics takes seconds to import.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from gatesearch.tasks.edges import weighted_sum
from gatesearch.tasks.labels import known_normals
from gatesearch.tasks.saliency import THRESHOLDS
from gatesearch.tasks.semseg import IGNORE


class MeanIoU(Metric):
    """Mean IoU in percent, from one confusion matrix over the whole part.

    A class that neither labels nor predictions hold is left out of the mean (torchmetrics'
    `MeanIoU` averages per batch or per sample instead of over the part, which is another figure).
    """

    confusion: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("confusion", torch.zeros(classes, classes).long(), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add (B, K, H, W) scores and (B, H, W) labels."""
        known = target != IGNORE
        pairs = target[known].long() * self.classes + prediction.argmax(1)[known]
        counts = torch.bincount(pairs, minlength=self.classes**2)
        self.confusion += counts.reshape(self.classes, self.classes)

    def compute(self) -> Tensor:
        """Mean over occurring classes; NaN when no pixel had a label."""
        hit = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        seen = union > 0
        return 100.0 * (hit[seen] / union[seen]).mean()


class RootMeanSquare(Metric):
    """Square root of the mean squared error over all known pixels of the part.

    Each pixel counts the same (the mean over frames of per-frame RMSE is another figure).
    """

    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()).long(), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add (B, 1, H, W) metres and (B, H, W) labels."""
        known = target > 0
        self.squares += (prediction[:, 0][known] - target[known]).double().square().sum()
        self.count += known.sum()

    def compute(self) -> Tensor:
        """Metres; NaN when no pixel was known."""
        return (self.squares / self.count).sqrt()


class MeanAngle(Metric):
    """Mean angle in degrees over all known pixels; predictions may have any length."""

    degrees: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("degrees", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()).long(), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add (B, 3, H, W) vectors of any length and (B, 3, H, W) labels."""
        known = known_normals(target)
        own, goal = prediction.double(), target.double()
        # atan2 keeps small angles exact, where acos of a rounded cosine does not.
        sine = torch.linalg.cross(own, goal, dim=1).square().sum(1).sqrt()
        angle = torch.rad2deg(torch.atan2(sine, (own * goal).sum(1)))
        # No direction is as far off as an arbitrary one is on average; atan2(0, 0) says 0.
        angle = torch.where(own.any(1), angle, 90.0)
        self.degrees += angle[known].sum()
        self.count += known.sum()

    def compute(self) -> Tensor:
        """Degrees; NaN when no pixel was known."""
        return self.degrees / self.count


class EdgeLoss(Metric):
    """Mean weighted cross entropy over all labelled pixels of the part."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()).long(), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add (B, 1, H, W) logits and (B, H, W) labels."""
        total, count = weighted_sum(prediction, target)
        self.total += total.double()
        self.count += count

    def compute(self) -> Tensor:
        """The mean; NaN when no pixel had a label."""
        return self.total / self.count


class MaxIoU(Metric):
    """IoU per frame at 15 thresholds in (0, 1), averaged over frames; the best threshold counts."""

    iou: Tensor
    frames: Tensor

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(THRESHOLDS, dtype=torch.float64)
        self.add_state("iou", zeros, dist_reduce_fx="sum")
        self.add_state("frames", torch.zeros(()).long(), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add (B, 1, H, W) logits and (B, H, W) labels."""
        known, positive = (target != IGNORE).flatten(1), (target == 1).flatten(1)
        score = prediction[:, 0].sigmoid().flatten(1)
        cuts = torch.linspace(0, 1, THRESHOLDS + 2, device=score.device)[1:-1]
        for index, cut in enumerate(cuts):
            chosen = (score > cut) & known
            hit = (chosen & positive).sum(1).double()
            union = ((chosen | positive) & known).sum(1).double()
            # A frame without salient pixels and without predicted ones is right.
            self.iou[index] += torch.where(union > 0, hit / union.clamp(min=1), 1.0)[
                known.any(1)
            ].sum()
        self.frames += known.any(1).sum()

    def compute(self) -> Tensor:
        """The best mean IoU; NaN when no frame had labels."""
        return (self.iou / self.frames).max()
