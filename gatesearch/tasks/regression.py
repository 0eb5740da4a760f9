"""Regression of one or several values per image."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from gatesearch.tasks.class_scores import per_class
from gatesearch.tasks.columns import Columns
from gatesearch.tasks.labels import Size, Storage, constant
from gatesearch.tasks.table_cells import number_of, read_cells
from gatesearch.tasks.task import Meter

Finite = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Regression(Columns):
    """L1 on standardised values; mean absolute error in the unit of the labels.

    Target: (B, K) float32 in that unit, NaN = unknown. The network predicts (value - mean) / std,
    so that losses of tasks with different units compare; mean and standard deviation are those of
    the labels of the training part. Further figures are means over the K values: RMSE in the unit,
    and R2, 1 minus the squared error over that of the part's own mean; and with several values the
    MAE of each.

    Attributes:
        count: Number K of values, in the order of the columns; the number of names if these are
            given.
        names: Names of the values; empty for numbers from 0.
        unit: Their unit, for reports.
        criterion: `l1`, or `smooth_l1`: squared below a deviation of 1, halved.
        mean: Mean of each value; learned from the training part if empty.
        std: Standard deviation of each value; learned likewise.
    """

    metric: ClassVar[str] = "MAE"
    higher_is_better: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    head: ClassVar[str] = "pooled"
    unknown_value: ClassVar[float] = math.nan
    drawing: ClassVar[str] = "numbers"

    unit: str = Field(default="", max_length=40)
    criterion: Literal["l1", "smooth_l1"] = "l1"
    mean: tuple[Finite, ...] = ()
    std: tuple[Deviation, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given and len(given) != self.count:
                raise ValueError(
                    f"{name} must have one number per value, {self.count}, found {len(given)}"
                )
        return self

    @property
    def storage(self) -> Storage:
        """One number per value."""
        return Storage("<f4", (self.count,), dense=False)

    @property
    def output_meaning(self) -> str:
        """How values follow from the output."""
        unit = f" {self.unit}" if self.unit else ""
        scaling = self._scaling(torch.zeros((), dtype=torch.float64))
        means, deviations = (
            ", ".join(f"{number:.6g}" for number in numbers.tolist()) for numbers in scaling
        )
        return f"standardised values; times ({deviations}) plus ({means}) is the value{unit}"

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Absolute or smooth absolute error in standard deviations, mean over known values."""
        mean, std = self._scaling(prediction)
        known = target.isfinite()
        wanted = (torch.where(known, target, 0) - mean) / std
        error = self._error(torch.where(known, prediction, 0), torch.where(known, wanted, 0))
        return error.sum() / known.sum().clamp(min=1)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Mean error of the loss's kind, in standard deviations."""
        return self._error(prediction, teacher).mean()

    def meter(self, *, details: bool = True) -> Meter:
        """MAE over all labelled images of the part, mean over the values."""
        from gatesearch.tasks.meters import MetricOfSums

        zeros = [torch.zeros(self.count, dtype=torch.float64) for _ in range(4)]
        return MetricOfSums(
            (*zeros, torch.zeros(self.count).long()),
            measure=self._sums,
            value=mean_absolute_error,
            details=partial(_details, names=self.name_list),
        )

    def decode(self, prediction: Tensor) -> Tensor:
        """Values in their unit, (B, K)."""
        mean, std = self._scaling(prediction)
        return prediction * std + mean

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Values, NaN where there is none, (K,)."""
        cells = read_cells(raw, self.count, what="values per image")
        values = np.array([number_of(cell) for cell in cells])
        most = float(np.finfo(np.float32).max)
        if (np.abs(values) > most).any():
            raise ValueError(f"must be at most {most:.3g}, found {np.nanmax(np.abs(values)):g}")
        return values.astype(np.float32)

    def summarise(self, labels: NDArray[Any]) -> dict[str, float]:
        """Mean and standard deviation of each value over the labels (N, K)."""
        figures = {}
        for index in range(self.count):
            values = np.asarray(labels[:, index], np.float64)
            known = values[np.isfinite(values)]
            if known.size:
                figures[f"mean.{index}"] = float(known.mean())
                figures[f"std.{index}"] = float(known.std())
        return figures

    def fitted(self, figures: Mapping[str, float]) -> Self:
        """The task with the mean and deviation that `summarise` found, where none are given.

        A value that does not vary is not scaled.
        """
        columns = range(self.count)
        mean = tuple(figures.get(f"mean.{i}", 0.0) for i in columns)
        std = tuple(figures.get(f"std.{i}", 0.0) or 1.0 for i in columns)
        return self.model_copy(update={"mean": self.mean or mean, "std": self.std or std})

    def _scaling(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each value, (K,), on the device of another tensor."""
        mean, std = self.mean or (0.0,) * self.count, self.std or (1.0,) * self.count
        return constant(mean, like), constant(std, like)

    def _error(self, prediction: Tensor, wanted: Tensor) -> Tensor:
        if self.criterion == "smooth_l1":
            return F.smooth_l1_loss(prediction, wanted, reduction="none")
        return (prediction - wanted).abs()

    def _sums(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Sum over known labels (K,): errors, their squares, labels, their squares; their number.

        Labels are counted from the mean, so that their squares keep their digits.
        """
        known = target.isfinite()
        prediction = prediction.double()
        mean, _ = self._scaling(prediction)
        truth = torch.where(known, target.double() - mean, 0)
        error = torch.where(known, self.decode(prediction) - mean, 0) - truth
        return (
            error.abs().sum(0),
            error.square().sum(0),
            truth.sum(0),
            truth.square().sum(0),
            known.sum(0),
        )


def mean_absolute_error(
    errors: Tensor, squares: Tensor, labels: Tensor, label_squares: Tensor, count: Tensor
) -> Tensor:
    """Mean over values of their mean absolute error; one without labels is left out."""
    return _mean_over_labelled(errors / count, count)


def _mean_over_labelled(values: Tensor, count: Tensor) -> Tensor:
    """Mean over the values whose count is above 0; NaN without any."""
    return values[count > 0].mean()


def _details(
    errors: Tensor,
    squares: Tensor,
    labels: Tensor,
    label_squares: Tensor,
    count: Tensor,
    *,
    names: tuple[str, ...],
) -> dict[str, float]:
    spread = label_squares - labels.square() / count
    # Without spread there is nothing to explain.
    explained = 1 - squares / torch.where(spread > 0, spread, 1)
    figures = {
        "RMSE": float(_mean_over_labelled((squares / count).sqrt(), count)),
        "R2": float(_mean_over_labelled(explained, count * (spread > 0))),
    }
    return figures | (per_class("MAE", errors / count, names) if len(count) > 1 else {})
