"""Kinds whose labels say of each pixel whether it is of something, as an edge or a salient region.

Predictions are one logit per pixel.
"""

from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from gatesearch.tasks.labels import IGNORE, Size, Storage, encode_binary
from gatesearch.tasks.task import Kind


class BinaryMap(Kind):
    """What these kinds share: (B, H, W) uint8 0 or 1, 255 = ignore.

    Attributes:
        positive: Value of pixels in files that become 1; 0 is the value of all others.
        ignore: Value of pixels without a label in files, unless it is one of these two.
        threshold: When given, files hold degrees: pixels of at least this value become 1.
    """

    channels: ClassVar[int] = 1
    unit: ClassVar[str] = ""
    storage: ClassVar[Storage] = Storage("|u1")
    unknown_value: ClassVar[float] = float(IGNORE)
    drawing: ClassVar[str] = "certainty"

    positive: int = 1
    ignore: int = IGNORE
    threshold: float | None = None

    def decode(self, prediction: Tensor) -> Tensor:
        """Probability that a pixel is 1, (B, H, W)."""
        return prediction[:, 0].sigmoid()

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """0 or 1, 255 where ignored, (H, W)."""
        return encode_binary(
            raw, positive=self.positive, ignore=self.ignore, threshold=self.threshold
        )
