"""Metrics over a whole part of the data, as torchmetrics metrics.

A kind of task gives the functions that say what is added up and what the sums mean. This module is
imported where a meter is made, since torchmetrics takes seconds to import; it imports no task.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchmetrics import Metric


class MetricOfSums(Metric):
    """A metric that follows from sums over all batches, whatever the batches' sizes.

    Args:
        zeros: The sums before any batch, which set their shapes and element types.
        measure: (prediction, target) of a batch -> what is added to each sum, in the same order.
        value: Turns the sums into the metric; NaN when nothing had a label.
        details: Turns the sums into further figures, by name.
    """

    def __init__(
        self,
        zeros: Sequence[Tensor],
        *,
        measure: Callable[[Tensor, Tensor], Sequence[Tensor]],
        value: Callable[..., Tensor],
        details: Callable[..., dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self._measure, self._value, self._details = measure, value, details
        self._sums = [f"sum_{i}" for i in range(len(zeros))]
        for name, zero in zip(self._sums, zeros, strict=True):
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add predictions and their labels."""
        for name, part in zip(self._sums, self._measure(prediction, target), strict=True):
            setattr(self, name, getattr(self, name) + part)

    def compute(self) -> Tensor:
        """The value over all batches so far."""
        return self._value(*self._totals())

    def details(self) -> dict[str, float]:
        """Further figures over all batches so far."""
        return {} if self._details is None else self._details(*self._totals())

    def _totals(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._sums]
