"""Reflectance (albedo) estimation: which share of the light a surface gives back."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.tasks.labels import Size, Storage, masked_mean, nearest_resize, plane
from gatesearch.tasks.task import Kind, Meter


class Reflectance(Kind):
    """L1 over known pixels; mean absolute error as a share of the light.

    Further figure: RMSE, likewise. Both are of reflectances as they are, without a scale that
    is fitted to each image, as some papers on intrinsic images do.

    Target: (B, H, W) float32, from 0 (black) to 1 (white), 0 = unknown. Nearest resampling
    everywhere: an average across an object's border is a reflectance that no surface has.
    """

    channels: ClassVar[int] = 1
    metric: ClassVar[str] = "MAE"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    storage: ClassVar[Storage] = Storage("<f4")
    unknown_value: ClassVar[float] = 0.0
    output_meaning: ClassVar[str] = "share of light reflected"
    drawing: ClassVar[str] = "range"

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error over known pixels, as a share of 1."""
        return masked_mean((prediction[:, 0] - target).abs(), target > 0)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Mean absolute difference."""
        return (prediction - teacher).abs().mean()

    def meter(self, *, details: bool = True) -> Meter:
        """Mean absolute error over all known pixels of the part."""
        from gatesearch.tasks.meters import MetricOfSums

        total = torch.zeros((), dtype=torch.float64)
        return MetricOfSums(
            (total, total, torch.zeros(()).long()),
            measure=reflectance_errors,
            value=mean_error,
            details=lambda errors, squares, count: {"RMSE": float((squares / count).sqrt())},
        )

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """Reflectances, (B, H, W)."""
        return prediction[:, 0]

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Reflectances, 0 where unknown, (H, W); values that are not finite are unknown."""
        values = plane(raw).astype(np.float64)
        values = np.where(np.isfinite(values), values, 0.0)
        if values.min(initial=0) < 0 or values.max(initial=0) > 1:
            odd = values[(values < 0) | (values > 1)][0]
            raise ValueError(f"reflectance must be 0 to 1, found {odd:g}; scale the files")
        return values.astype(self.storage.dtype)


def reflectance_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the absolute and of the squared errors over known pixels; their number."""
    known = target > 0
    error = (prediction[:, 0].double() - target.double())[known]
    return error.abs().sum(), error.square().sum(), known.sum()


def mean_error(errors: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """Mean absolute error; NaN when no pixel was known."""
    return errors / count
