"""Segmentation of the parts of persons, or of other objects that not every image has."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gatesearch.tasks.class_map import ClassMap
from gatesearch.tasks.labels import IGNORE, Size


class Parts(ClassMap):
    """Cross entropy over images that show a person; mean intersection over union in percent.

    Target: (B, H, W) uint8 class index, 255 = ignore. An image in which no pixel is of a part has
    no labels: all of it is ignored by loss and metric. Otherwise the background is a class like the
    others, also of the mean. This is how figures of human parts on PASCAL-Context are computed
    (Maninis et al., 2019; Vandenhende et al., 2021, `evaluation/eval_human_parts.py`). There, a
    class that neither labels nor predictions hold counts as 0; here it is left out of the mean, as
    for semantic segmentation. Further figures: the IoU of each class.

    Attributes:
        background: Index of the class that is no part.
    """

    background: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_a_class(self) -> Self:
        if self.background >= self.classes:
            raise ValueError(
                f"background must be one of the classes 0 to {self.classes - 1}, found "
                f"{self.background}"
            )
        return self

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Class indices, 255 where ignored, (H, W); 255 everywhere in an image without parts."""
        labels = super().encode(raw)
        has_part = ((labels != self.background) & (labels != IGNORE)).any()
        return labels if has_part else np.full_like(labels, IGNORE)
