"""The head of DeepLabV3 (Chen et al., 2017, https://arxiv.org/abs/1706.05587)."""

import torch
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.heads.head import Head

ASPP_RATES = (12, 24, 36)
ASPP_DROPOUT = 0.5


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
