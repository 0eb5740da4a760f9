"""Depth estimation."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from gatesearch.tasks.labels import Size, Storage, masked_mean, nearest_resize, plane
from gatesearch.tasks.task import Kind, Meter, Warp

# Metres; more is taken for another unit.
LARGEST_DEPTH = 1000.0
# Published as δ < 1.25.
CLOSE_FACTOR = 1.25


class Depth(Kind):
    """L1 over known pixels; root mean square error in metres.

    Further figures: abs rel, the mean error as a share of the depth, and the percentage of pixels
    whose depth is wrong by a factor below 1.25 (Eigen et al., 2014).

    Target: (B, H, W) float32 metres, 0 = unknown. Nearest resampling everywhere: an average across
    an object's border is a depth that no surface has.

    Attributes:
        scale: Metres per unit of the values in files: 0.001 for millimetres.
        encoding: `depth`, or `disparity`: files hold values of which `scale` divided by them is the
            depth in metres.
        ignore: Value of pixels in files whose depth is not known, beside those that are not
            positive and finite.
    """

    channels: ClassVar[int] = 1
    metric: ClassVar[str] = "RMSE"
    unit: ClassVar[str] = "m"
    higher_is_better: ClassVar[bool] = False
    storage: ClassVar[Storage] = Storage("<f4")
    unknown_value: ClassVar[float] = 0.0
    output_meaning: ClassVar[str] = "metres"
    drawing: ClassVar[str] = "range"
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    encoding: Literal["depth", "disparity"] = "depth"
    ignore: float = Field(default=0.0, allow_inf_nan=False)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error over known pixels, metres."""
        return masked_mean((prediction[:, 0] - target).abs(), target > 0)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Mean absolute difference, metres."""
        return (prediction - teacher).abs().mean()

    def meter(self, *, details: bool = True) -> Meter:
        """RMSE over all known pixels of the part."""
        from gatesearch.tasks.meters import MetricOfSums

        total, count = torch.zeros((), dtype=torch.float64), torch.zeros(()).long()
        return MetricOfSums(
            (total, count, total, count),
            measure=depth_errors,
            value=root_mean,
            details=relative_figures,
        )

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Zooming in by z brings every surface nearer by z."""
        return target / warp.zoom[:, None, None]

    def resize_labels(self, target: Tensor, size: Size) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """Metres, (B, H, W)."""
        return prediction[:, 0]

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Metres, 0 where unknown, (H, W); values that are not positive and finite are unknown."""
        values = plane(raw).astype(np.float64)
        known = np.isfinite(values) & (values > 0) & (values != self.ignore)
        values = np.where(known, values, 1.0)
        metres = self.scale / values if self.encoding == "disparity" else self.scale * values
        largest = float(metres.max(initial=0, where=known))
        if largest > LARGEST_DEPTH:
            raise ValueError(
                f"depth must be at most {LARGEST_DEPTH:g} metres, found {largest:g}; set scale to "
                "the metres per unit of the files, as 0.001 for millimetres"
            )
        return np.where(known, metres, 0.0).astype(np.float32)


def depth_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add up errors over the known pixels of a batch.

    Returns:
        Sum of squared errors, m²; number of pixels; sum of errors as shares of the depth; number of
        pixels whose depth is wrong by a factor below 1.25.
    """
    known = target > 0
    found, true = prediction[:, 0][known], target[known]
    error = (found - true).double()
    close = (found < CLOSE_FACTOR * true) & (true < CLOSE_FACTOR * found)
    return error.square().sum(), known.sum(), (error.abs() / true).sum(), close.sum()


def root_mean(squares: Tensor, count: Tensor, relative: Tensor, close: Tensor) -> Tensor:
    """RMSE in metres, in which each pixel counts the same; NaN when no pixel was known.

    The mean over frames of the RMSE per frame is another figure.
    """
    return (squares / count).sqrt()


def relative_figures(
    squares: Tensor, count: Tensor, relative: Tensor, close: Tensor
) -> dict[str, float]:
    """Figures that do not depend on the unit."""
    return {
        "abs rel": float(relative / count),
        f"δ < {CLOSE_FACTOR:g} (%)": float(100.0 * close.double() / count),
    }
