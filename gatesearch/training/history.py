"""The values of a training's epochs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class History:
    """What a training leaves behind beside the weights.

    Attributes:
        curves: Name -> one value per epoch: `loss.<task>`, `weight.<task>`, `lr`, and what hooks
            observe.
        seconds: Wall-clock time.
        images: Images that the network has learned from.
        epochs: Epochs trained.
    """

    curves: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0
    epochs: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Append one epoch's values; NaN for the epochs before a new name, or without a value."""
        for name in self.curves | dict(values):
            curve = self.curves.setdefault(name, [math.nan] * self.epochs)
            curve.append(values.get(name, math.nan))
        self.epochs += 1

    def follow(self, later: "History") -> None:
        """Append a later phase of the same training; NaN where a phase has no such curve."""
        for name in self.curves | later.curves:
            values = self.curves.setdefault(name, [math.nan] * self.epochs)
            values += later.curves.get(name, [math.nan] * later.epochs)
        self.seconds += later.seconds
        self.images += later.images
        self.epochs += later.epochs
