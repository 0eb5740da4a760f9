"""Surface normal estimation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.tasks.labels import known_normals, masked_mean, unit
from gatesearch.tasks.task import Meter, Warp


class Normals:
    """L1 between unit vectors; mean angular error in degrees.

    Target: (B, 3, H, W) unit vectors (x right, y down, z forward), the zero vector = unknown.
    """

    channels = 3
    metric = "mean angle"
    unit = "deg"
    higher_is_better = False
    fill = 0.0

    def __init__(self, *, classes: int = 1) -> None:
        del classes

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """L1 of the normalised prediction, summed over x, y, z, mean over known pixels."""
        return masked_mean((unit(prediction) - target).abs().sum(1), known_normals(target))

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """L1 between unit vectors, summed over x, y, z."""
        return (unit(prediction) - unit(teacher)).abs().sum(1).mean()

    def meter(self) -> Meter:
        """Mean angle over all known pixels of the part."""
        from gatesearch.tasks.meters import MeanAngle

        return MeanAngle()

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """A turned image turns x and y with it, a mirrored one negates x, in this order.

        Rotation is counter-clockwise as seen, with y pointing down. Zoom by z narrows the field of
        view and leaves normals alone (the protocol of the survey code).
        """
        x, y, z = target.unbind(1)
        cos, sin = warp.angle.cos()[:, None, None], warp.angle.sin()[:, None, None]
        sign = torch.where(warp.flip, -1.0, 1.0)[:, None, None]
        return _unit_or_zero(torch.stack([sign * (cos * x + sin * y), cos * y - sin * x, z], 1))

    def resize_labels(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Bilinear with anti-aliasing, renormalised; a pixel mostly unknown stays unknown."""
        if tuple(target.shape[-2:]) == tuple(size):
            return _unit_or_zero(target.float())
        mean = F.interpolate(
            target.float(), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        known = F.interpolate(known_normals(target)[:, None].float(), size=size, mode="area")
        return _unit_or_zero(mean) * (known >= 0.5)

    def decode(self, prediction: Tensor) -> Tensor:
        """Unit vectors, (B, 3, H, W)."""
        return unit(prediction)


def _unit_or_zero(vectors: Tensor) -> Tensor:
    return unit(vectors) * (vectors.square().sum(1, keepdim=True) > 0.25)
