"""Depth estimation."""

from torch import Tensor

from gatesearch.tasks.labels import masked_mean, nearest_resize
from gatesearch.tasks.task import Meter, Warp


class Depth:
    """L1 over known pixels; root mean square error in metres.

    Target: (B, H, W) float32 metres, 0 = unknown. Nearest resampling everywhere: an average across
    an object's border is a depth that no surface has.
    """

    channels = 1
    metric = "RMSE"
    unit = "m"
    higher_is_better = False
    fill = 0.0

    def __init__(self, *, classes: int = 1) -> None:
        del classes

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error over known pixels, metres."""
        return masked_mean((prediction[:, 0] - target).abs(), target > 0)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Mean absolute difference, metres."""
        return (prediction - teacher).abs().mean()

    def meter(self) -> Meter:
        """RMSE over all known pixels of the part."""
        from gatesearch.tasks.meters import RootMeanSquare

        return RootMeanSquare()

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Zooming in by z brings every surface nearer by z."""
        return target / warp.zoom[:, None, None]

    def resize_labels(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """Metres, (B, H, W)."""
        return prediction[:, 0]
