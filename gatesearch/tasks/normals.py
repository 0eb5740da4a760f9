"""Surface normal estimation."""

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.tasks.labels import Size, Storage, masked_mean
from gatesearch.tasks.task import Kind, Meter, Warp

# Degrees below which published tables count pixels.
WITHIN = (11.25, 22.5, 30.0)
PER_DEGREE = 100  # bins of the histogram that the median is read from


class Normals(Kind):
    """L1 between unit vectors; mean angular error in degrees.

    Further figures: the median angle, to a hundredth of a degree, and the percentage of pixels
    within 11.25, 22.5 and 30 degrees.

    Target: (B, 3, H, W) unit vectors (x right, y down, z forward), the zero vector = unknown.

    Attributes:
        encoding: How files hold components: `unit` = numbers from -1 to 1; `rgb` = bytes, 0 for -1
            and 255 for 1, where (0, 0, 0) and (128, 128, 128) are unknown.
    """

    channels: ClassVar[int] = 3
    metric: ClassVar[str] = "mean angle"
    unit: ClassVar[str] = "deg"
    higher_is_better: ClassVar[bool] = False
    storage: ClassVar[Storage] = Storage("<f2", (3,))
    unknown_value: ClassVar[float] = 0.0
    output_meaning: ClassVar[str] = "x right, y down, z forward; divide by the length"
    drawing: ClassVar[str] = "directions"
    encoding: Literal["unit", "rgb"] = "unit"

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """L1 of the normalised prediction, summed over x, y, z, mean over known pixels."""
        return masked_mean((_unit(prediction) - target).abs().sum(1), _known(target))

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """L1 between unit vectors, summed over x, y, z."""
        return (_unit(prediction) - _unit(teacher)).abs().sum(1).mean()

    def meter(self, *, details: bool = True) -> Meter:
        """Mean angle over all known pixels of the part."""
        from gatesearch.tasks.meters import MetricOfSums

        zeros = (
            torch.zeros((), dtype=torch.float64),
            torch.zeros(()).long(),
            torch.zeros(len(WITHIN)).long(),
            torch.zeros(180 * PER_DEGREE).long(),
        )
        return MetricOfSums(zeros, measure=angles, value=mean_angle, details=angle_figures)

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Rotating the image rotates x and y with it; mirroring it then negates x.

        Rotation is counter-clockwise as seen, with y pointing down. Zoom by z narrows the field of
        view and leaves normals alone (the protocol of the survey code).
        """
        x, y, z = target.unbind(1)
        cos, sin = warp.angle.cos()[:, None, None], warp.angle.sin()[:, None, None]
        sign = torch.where(warp.flip, -1.0, 1.0)[:, None, None]
        turned = torch.stack([sign * (cos * x + sin * y), cos * y - sin * x, z], 1)
        return turned.mul_(_factor_to_unit(turned))

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """Bilinear with anti-aliasing, renormalised; a pixel mostly unknown stays unknown."""
        if tuple(target.shape[-2:]) == tuple(size):
            return _unit_or_zero(target.float())
        mean = F.interpolate(
            target.float(), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        known = F.interpolate(_known(target)[:, None].float(), size=size, mode="area")
        return _unit_or_zero(mean) * (known >= 0.5)

    def decode(self, prediction: Tensor) -> Tensor:
        """Unit vectors, (B, 3, H, W)."""
        return _unit(prediction)

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Unit vectors (H, W, 3), zero where unknown or not finite."""
        if raw.ndim != 3 or raw.shape[2] != 3:
            raise ValueError(f"must have three values per pixel, found the shape {raw.shape}")
        vectors = raw.astype(np.float32)
        vectors[~np.isfinite(vectors).all(-1)] = 0
        if self.encoding == "rgb":
            vectors = np.where(vectors.any(-1, keepdims=True), vectors / 127.5 - 1, 0)
        largest = float(np.abs(vectors).max(initial=0))
        if largest > 1.5:
            raise ValueError(
                f"components must be -1 to 1, found {largest:g}; set encoding = 'rgb' for bytes"
            )
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        units = np.where(length > 0.1, vectors / np.maximum(length, 0.1), 0)
        return units.astype(np.float32).astype(self.storage.dtype)


def angles(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add up angles over the known pixels of a batch; predictions may be of any length.

    Returns:
        Sum of the angles, degrees; number of pixels; numbers of those below each of `WITHIN`, (3,);
        histogram of the angles, (180 PER_DEGREE,).
    """
    known = _known(target)
    predicted, true = prediction.double(), target.double()
    # atan2 keeps small angles exact, where acos of a rounded cosine does not.
    sine = torch.linalg.cross(predicted, true, dim=1).square().sum(1).sqrt()
    angle = torch.rad2deg(torch.atan2(sine, (predicted * true).sum(1)))
    # No direction is as far off as an arbitrary one is on average; atan2(0, 0) says 0.
    angle = torch.where(predicted.any(1), angle, 90.0)
    angle = angle[known]
    below = torch.stack([(angle < limit).sum() for limit in WITHIN])
    # What is not a number is as far off as can be.
    bins = (angle.nan_to_num(nan=180.0) * PER_DEGREE).long().clamp(max=180 * PER_DEGREE - 1)
    histogram = torch.bincount(bins, minlength=180 * PER_DEGREE)
    return angle.sum(), known.sum(), below, histogram


def mean_angle(total: Tensor, count: Tensor, below: Tensor, histogram: Tensor) -> Tensor:
    """Mean angle in degrees; NaN when no pixel was known."""
    return total / count


def angle_figures(
    total: Tensor, count: Tensor, below: Tensor, histogram: Tensor
) -> dict[str, float]:
    """Median in degrees, and percentages of pixels below the limits."""
    middle = int((histogram.cumsum(0) * 2 < count).sum())  # first bin with half of the pixels
    median = (middle + 0.5) / PER_DEGREE if count > 0 else math.nan
    shares = 100.0 * below.double() / count
    limits = (f"within {limit:g} deg (%)" for limit in WITHIN)
    return {"median angle": median, **dict(zip(limits, shares.tolist(), strict=True))}


def _known(target: Tensor) -> Tensor:
    """(B, H, W) where a normal is known, that is not the zero vector."""
    return target.abs().sum(1) > 0.5


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (B, C, H, W) divided by their length over C; a zero vector stays zero.

    `F.normalize` does the same, eight times slower over a short leading dimension on a processor.
    """
    return vectors * torch.rsqrt((vectors * vectors).sum(1, keepdim=True) + 1e-12)


def _unit_or_zero(vectors: Tensor) -> Tensor:
    return vectors * _factor_to_unit(vectors)


def _factor_to_unit(vectors: Tensor) -> Tensor:
    """1 / length of vectors (B, 3, H, W), (B, 1, H, W); 0 where the length is at most 1/2."""
    x, y, z = vectors.unbind(1)
    squared = (x * x).add_(y * y).add_(z * z)[:, None]
    return torch.rsqrt(squared + 1e-12).mul_(squared > 0.25)
