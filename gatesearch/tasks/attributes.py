"""Attributes of whole images, each of which is present or not (multi-label classification)."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from gatesearch.tasks.class_scores import Weights, per_class
from gatesearch.tasks.columns import Columns
from gatesearch.tasks.labels import IGNORE, Size, Storage, constant
from gatesearch.tasks.table_cells import plain_spelling, read_cells
from gatesearch.tasks.task import Meter

# Texts that are read like the default values 1 and 0.
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


class Attributes(Columns):
    """Binary cross entropy over known attributes; the mean over attributes of their accuracy.

    Target: (B, K) uint8 0 or 1, 255 = unknown. An attribute is predicted where its logit is above
    0. All figures are in percent. Further ones are means over attributes: balanced accuracy (the
    mean of the shares of positive and of negative images that are right) and F1; and the accuracy
    of each attribute. An attribute for which a figure is undefined is left out of its mean.

    Attributes:
        count: Number K of attributes, in the order of the columns; the number of names if these
            are given.
        names: Names of the attributes; empty for numbers from 0.
        positive: Cell of an image that has an attribute; `true` is read like 1.
        negative: Cell of one that has not, as -1 in CelebA; `false` is read like 0.
        ignore: Cell without a label, beside an empty one, unless it is one of these two.
        weights: Weight of each attribute in the loss, which is then a weighted mean; all 1 if
            empty.
    """

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    head: ClassVar[str] = "pooled"
    unknown_value: ClassVar[float] = float(IGNORE)
    drawing: ClassVar[str] = "attributes"
    output_meaning: ClassVar[str] = "logit of each attribute; its sigmoid is the probability"

    positive: int | str = 1
    negative: int | str = 0
    ignore: int | str = IGNORE
    weights: Weights = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weights and len(self.weights) != self.count:
            raise ValueError(
                f"weights must have one number per attribute, {self.count}, found "
                f"{len(self.weights)}"
            )
        if plain_spelling(str(self.positive)) == plain_spelling(str(self.negative)):
            raise ValueError(f"positive and negative must differ, found {self.positive} twice")
        return self

    @property
    def storage(self) -> Storage:
        """One byte per attribute."""
        return Storage("|u1", (self.count,), dense=False)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over known attributes."""
        known = target != IGNORE
        weight = known.to(prediction.dtype)
        if self.weights:
            weight = weight * constant(self.weights, weight)
        total = F.binary_cross_entropy_with_logits(
            prediction, (target == 1).to(prediction.dtype), weight=weight, reduction="sum"
        )
        weights = weight.sum()
        return total / torch.where(weights > 0, weights, 1)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Cross entropy against the teacher's probabilities."""
        return F.binary_cross_entropy_with_logits(prediction, teacher.sigmoid())

    def meter(self, *, details: bool = True) -> Meter:
        """Mean over attributes of the share of known labels that are right."""
        from gatesearch.tasks.meters import MetricOfSums

        counts = torch.zeros(self.count).long()
        return MetricOfSums(
            (counts, counts, counts, counts),
            measure=attribute_counts,
            value=mean_accuracy,
            details=partial(_details, names=self.name_list),
        )

    def decode(self, prediction: Tensor) -> Tensor:
        """Probability of each attribute, (B, K)."""
        return prediction.sigmoid()

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """0 or 1 per attribute, 255 where unknown, (K,)."""
        codes = {plain_spelling(str(self.ignore)): IGNORE, "": IGNORE}
        codes |= dict.fromkeys(_spellings(self.positive, 1, _TRUE), 1)
        codes |= dict.fromkeys(_spellings(self.negative, 0, _FALSE), 0)
        cells = [plain_spelling(c) for c in read_cells(raw, self.count, what="attributes")]
        for name, cell in zip(self.name_list, cells, strict=True):
            if cell not in codes:
                raise ValueError(
                    f"attribute {name} must be {self.positive} or {self.negative}, or empty where "
                    f"there is no label, found '{cell[:40]}'; set positive and negative to the "
                    "values in the file"
                )
        return np.array([codes[cell] for cell in cells], np.uint8)


def _spellings(value: int | str, default: int, words: tuple[str, ...]) -> tuple[str, ...]:
    """Texts that are read as a value."""
    return (plain_spelling(str(value).strip()), *(words if value == default else ()))


def attribute_counts(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count true positives, true negatives, positives and negatives of each attribute, (K,)."""
    positive, negative, chosen = target == 1, target == 0, prediction > 0
    return (
        (positive & chosen).sum(0),
        (negative & ~chosen).sum(0),
        positive.sum(0),
        negative.sum(0),
    )


def mean_accuracy(
    true_positive: Tensor, true_negative: Tensor, positive: Tensor, negative: Tensor
) -> Tensor:
    """Mean over the attributes that have labels of their accuracy, percent."""
    return _accuracies(true_positive, true_negative, positive, negative).nanmean()


def _accuracies(
    true_positive: Tensor, true_negative: Tensor, positive: Tensor, negative: Tensor
) -> Tensor:
    """Accuracy of each attribute in percent, (K,); NaN without labels."""
    return 100.0 * (true_positive + true_negative).double() / (positive + negative)


def _details(
    true_positive: Tensor,
    true_negative: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    names: tuple[str, ...],
) -> dict[str, float]:
    recall, specificity = true_positive.double() / positive, true_negative.double() / negative
    balanced = 50.0 * (recall + specificity)
    wrong = positive - true_positive + negative - true_negative
    f1 = 200.0 * true_positive.double() / (2 * true_positive + wrong)
    by_attribute = _accuracies(true_positive, true_negative, positive, negative)
    return {
        "balanced accuracy": float(balanced.nanmean()),
        "F1": float(f1.nanmean()),
        **per_class("accuracy", by_attribute, names),
    }
