"""Depth estimation."""

import torch
from torch import Tensor

from gatesearch.tasks.labels import Storage, masked_mean, nearest_resize
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
    storage = Storage("<f4")
    unknown_value = 0.0
    output_meaning = "metres"
    drawing = "range"

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
        from gatesearch.tasks.meters import MetricOfSums

        zeros = (torch.zeros((), dtype=torch.float64), torch.zeros(()).long())
        return MetricOfSums(zeros, measure=squared_errors, value=root_mean)

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Zooming in by z brings every surface nearer by z."""
        return target / warp.zoom[:, None, None]

    def resize_labels(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearest neighbour."""
        return nearest_resize(target, size)

    def decode(self, prediction: Tensor) -> Tensor:
        """Metres, (B, H, W)."""
        return prediction[:, 0]


def squared_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of squared errors over known pixels, m²; their number)."""
    known = target > 0
    return (prediction[:, 0][known] - target[known]).double().square().sum(), known.sum()


def root_mean(squares: Tensor, count: Tensor) -> Tensor:
    """RMSE in metres, in which each pixel counts the same; NaN when no pixel was known.

    The mean over frames of the RMSE per frame is another figure.
    """
    return (squares / count).sqrt()
