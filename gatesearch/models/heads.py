"""Heads: features -> a dense prediction at the size of the image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm

ASPP_RATES = (12, 24, 36)
ASPP_DROPOUT = 0.5


class Head(nn.Module):
    """Layers on the features, then bilinear enlargement to `size`.

    Attributes:
        layers: (B, inputs, h, w) -> (B, outputs, h, w).
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, *size), float32."""
        scores = self.layers(features)
        # Losses need fp32; enlarging channels-last tensors is several times faster on a processor.
        scores = scores.float().contiguous(memory_format=torch.channels_last)
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image pooling (Chen et al., DeepLabV3, 2017)."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(inputs, channels, 1),
                *(ConvNorm(inputs, channels, 3, dilation=rate) for rate in ASPP_RATES),
            ]
        )
        self.pooled = ConvNorm(inputs, channels, 1)
        self.project = ConvNorm(channels * (len(ASPP_RATES) + 2), channels, 1)
        self.dropout = nn.Dropout(ASPP_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, channels, h, w)."""
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        features = torch.cat([*(branch(x) for branch in self.branches), pooled], 1)
        out: Tensor = self.dropout(self.project(features))
        return out


def deeplabv3(inputs: int, channels: int, outputs: int) -> Head:
    """Build DeepLabV3: ASPP at rates 12, 24, 36, a 3x3 convolution, a 1x1 classifier."""
    return Head(
        nn.Sequential(
            ASPP(inputs, channels), ConvNorm(channels, channels, 3), nn.Conv2d(channels, outputs, 1)
        )
    )


def light(inputs: int, channels: int, outputs: int) -> Head:
    """Build one 3x3 convolution and a 1x1 classifier."""
    return Head(nn.Sequential(ConvNorm(inputs, channels, 3), nn.Conv2d(channels, outputs, 1)))


HEADS: dict[str, Callable[[int, int, int], Head]] = {"deeplabv3": deeplabv3, "light": light}
