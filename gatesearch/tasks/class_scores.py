"""Losses and metrics of scores of classes, which several kinds of task share."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gatesearch.tasks.labels import constant

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weights = tuple[Weight, ...]
_ROWS = 2**14


def check_per_class(name: str, given: Sequence[object], classes: int) -> None:
    """Refuse an option that is given and does not have one value per class.

    Raises:
        ValueError: It does not.
    """
    if given and len(given) != classes:
        raise ValueError(f"{name} must have one value per class, {classes}, found {len(given)}")


def check_different(name: str, values: Sequence[object]) -> None:
    """Refuse values of which two are the same.

    Raises:
        ValueError: They are.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must differ, found {', '.join(map(str, values))}")


def pixels_of(scores: Tensor) -> Tensor:
    """Lay out dense scores (B, K, H, W) as (B H W, K).

    The scores of a pixel are then side by side, which makes losses twice as fast on a processor in
    channels-last.
    """
    return scores.permute(0, 2, 3, 1).reshape(-1, scores.shape[1])


def class_loss(
    scores: Tensor, target: Tensor, *, ignored: int, class_weights: Weights = ()
) -> Tensor:
    """Cross entropy, the mean over what has labels, weighted by class.

    Args:
        scores: (N, K).
        target: (N,) class indices, int64.
        ignored: Value of `target` that is no label.
        class_weights: Weight of each class; all 1 if empty.
    """
    known = target != ignored
    if not class_weights:
        if torch.is_grad_enabled() and scores.requires_grad:
            total = F.cross_entropy(scores, target, ignore_index=ignored, reduction="sum")
        else:
            total = _cross_entropy_alone(scores, target, known)
        return total / known.sum().clamp(min=1)
    weight = constant(class_weights, scores)
    total = F.cross_entropy(scores, target, weight=weight, ignore_index=ignored, reduction="sum")
    weights = (weight[torch.where(known, target, 0)] * known).sum()
    return total / torch.where(weights > 0, weights, 1)


def _cross_entropy_alone(scores: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Compute the summed cross entropy without its gradient, to the same bits.

    Log-probabilities of some rows at a time are in memory.
    """
    parts = zip(scores.split(_ROWS), target.where(known, 0).split(_ROWS), strict=True)
    taken = [part.log_softmax(1).gather(1, classes[:, None]) for part, classes in parts]
    return F.nll_loss(torch.cat(taken), known.long() - 1, ignore_index=-1, reduction="sum")


def class_divergence(scores: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the classes' probabilities, mean over N, of scores (N, K)."""
    return F.kl_div(
        scores.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
    )


def confusion_matrix(prediction: Tensor, target: Tensor, *, ignored: int) -> tuple[Tensor]:
    """Labelled pixels of each class (rows) that are predicted as each class (columns), (K, K).

    Args:
        prediction: (B, K, H, W) scores.
        target: (B, H, W) class indices.
        ignored: Value of `target` that is no label.
    """
    classes = prediction.shape[1]
    known = target != ignored
    pairs = target[known].long() * classes + prediction.argmax(1)[known]
    return (torch.bincount(pairs, minlength=classes**2).reshape(classes, classes),)


def class_ious(confusion: Tensor) -> Tensor:
    """Intersection over union of each class in percent, (K,), float64; NaN for one that is absent.

    A class is absent if neither labels nor predictions hold it.
    """
    hit = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return torch.where(union > 0, 100.0 * hit / union, torch.nan)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean IoU in percent of a confusion matrix over a whole part; NaN when no pixel had a label.

    A class that neither labels nor predictions hold is left out of the mean (torchmetrics'
    `MeanIoU` averages per batch or per sample instead of over the part, which is another figure).
    """
    hit = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    occurs = union > 0
    return 100.0 * (hit[occurs] / union[occurs]).mean()


def per_class(what: str, values: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Name one figure per class, as `IoU wall`; by index where the classes have no names."""
    return {
        f"{what} {names[index] if names else index}": value
        for index, value in enumerate(values.tolist())
    }
