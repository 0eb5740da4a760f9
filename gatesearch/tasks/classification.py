"""Classification of whole images."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from gatesearch.tasks.class_scores import (
    Weights,
    check_different,
    check_per_class,
    class_divergence,
    class_loss,
    per_class,
)
from gatesearch.tasks.labels import Size, Storage
from gatesearch.tasks.table_cells import plain_spelling, read_cells, shown
from gatesearch.tasks.task import Kind, Meter

UNKNOWN = -1
TOP = 5
# Fewest classes for which the accuracy of the five highest scores is told.
FEWEST_FOR_TOP = 10


class Classification(Kind):
    """Cross entropy over labelled images; the share of images that are classified rightly, percent.

    Target: (B,) int16 class index, -1 = unknown. Further figures, all in percent: balanced accuracy
    (mean over the classes that have labels of the share of their images that are right), macro F1
    (mean over the classes that labels or predictions hold), from ten classes on top-5 accuracy, and
    the accuracy of each class.

    A cell of a table is a class's name, its value in `values`, or else its index from 0.

    Attributes:
        ignore: Cell of an image without a label, beside an empty one, unless it is a class's.
        values: Cell of each class, numbers or text, in the order of the classes. If empty, a class
            is given by its name or index.
        class_weights: Weight of each class in the loss, which is then a weighted mean; all 1 if
            empty.
    """

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    storage: ClassVar[Storage] = Storage("<i2", dense=False)
    dense: ClassVar[bool] = False
    head: ClassVar[str] = "pooled"
    unknown_value: ClassVar[float] = float(UNKNOWN)
    output_meaning: ClassVar[str] = "scores of the classes; their softmax is the probabilities"
    drawing: ClassVar[str] = "one_class"

    ignore: int | str = UNKNOWN
    values: tuple[int | str, ...] = ()
    class_weights: Weights = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_per_class("values", self.values, self.classes)
        check_per_class("class_weights", self.class_weights, self.classes)
        check_different("values", [plain_spelling(str(value)) for value in self.values])
        return self

    @property
    def channels(self) -> int:
        """One score per class."""
        return self.classes

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, mean over labelled images."""
        return class_loss(
            prediction, target.long(), ignored=UNKNOWN, class_weights=self.class_weights
        )

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the classes' probabilities."""
        return class_divergence(prediction, teacher)

    def meter(self, *, details: bool = True) -> Meter:
        """Accuracy over all labelled images of the part."""
        from gatesearch.tasks.meters import MetricOfSums

        counts = torch.zeros(self.classes).long()
        return MetricOfSums(
            (counts, counts, counts, torch.zeros(()).long()),
            measure=class_counts,
            value=accuracy,
            details=partial(_details, names=self.class_names),
        )

    def decode(self, prediction: Tensor) -> Tensor:
        """Probability of each class, (B, K)."""
        return prediction.softmax(1)

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Class index, -1 for no label, ()."""
        (cell,) = read_cells(raw, 1, what="class per image")
        return np.array(self._index_of(cell), np.int16)

    def _index_of(self, cell: str) -> int:
        names = [str(value).strip() for value in self.values or self.class_names]
        if cell in names:
            return names.index(cell)
        spelling = plain_spelling(cell)
        spellings = [plain_spelling(name) for name in names]
        if spelling in spellings:
            return spellings.index(spelling)
        if cell == "" or spelling == plain_spelling(str(self.ignore).strip()):
            return UNKNOWN
        if cell in self.class_names:
            return self.class_names.index(cell)
        indices = {} if self.values else {str(index): index for index in range(self.classes)}
        if spelling in indices:
            return indices[spelling]
        rule = f"must be 0 to {self.classes - 1}"
        if names:
            rule = f"must be one of {shown(names)}" + ("" if self.values else f", or {rule[8:]}")
        raise ValueError(f"{rule}, or empty where there is no label, found '{cell[:40]}'")


def class_counts(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count the labelled images of a batch.

    Args:
        prediction: (B, K) scores.
        target: (B,) class indices, -1 = unknown.

    Returns:
        Images of each class that are right (K,), images of each class (K,), images predicted as
        each class (K,), and images whose class is among the five with the highest scores ().
    """
    classes = prediction.shape[1]
    known = target != UNKNOWN
    scores, true = prediction[known], target[known].long()
    predicted = scores.argmax(1)
    right, labelled, chosen = (
        torch.bincount(indices, minlength=classes)
        for indices in (true[predicted == true], true, predicted)
    )
    highest = scores.topk(min(TOP, classes), dim=1).indices
    return right, labelled, chosen, (highest == true[:, None]).sum()


def accuracy(right: Tensor, labelled: Tensor, chosen: Tensor, in_top: Tensor) -> Tensor:
    """Share of the labelled images that are right, percent; NaN when there are none."""
    return 100.0 * right.sum().double() / labelled.sum()


def _details(
    right: Tensor, labelled: Tensor, chosen: Tensor, in_top: Tensor, *, names: tuple[str, ...]
) -> dict[str, float]:
    by_class = torch.where(labelled > 0, 100.0 * right.double() / labelled, torch.nan)
    f1 = 200.0 * right.double() / (labelled + chosen)  # NaN for a class that does not occur
    top = 100.0 * in_top.double() / labelled.sum()
    figures = {"balanced accuracy": float(by_class.nanmean()), "macro F1": float(f1.nanmean())}
    if len(labelled) >= FEWEST_FOR_TOP:
        figures[f"top-{TOP} accuracy"] = float(top)
    return figures | per_class("accuracy", by_class, names)
