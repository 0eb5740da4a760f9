"""The head of the dense prediction transformer (Ranftl et al., ICCV 2021).

"Vision Transformers for Dense Prediction", section 3, https://arxiv.org/abs/2103.13413. Each map is
reassembled at a stride of its own, 4, 8, 16 and 32 for four of them: a 1x1 convolution to the
head's channels, then a transposed convolution where the map is coarser, nothing where it has that
stride, and a strided 3x3 convolution where it is finer. The maps are fused from coarse to fine by
the blocks of RefineNet (Lin et al., CVPR 2017, https://arxiv.org/abs/1611.06612): residual units of
two 3x3 convolutions, a sum, and enlargement by 2.

A vision transformer gives maps of one stride. Maps of a convolutional or a windowed transformer
network have the strides that they have, so that most are reassembled as they are. Where the finest
map is finer than 4, the strides double from its stride.

Differences from the public code: a fused map's 1x1 convolution comes before it is enlarged, which
computes the same at a quarter of the cost; residual units have batch norms for every task; the last
layers are those of its head for segmentation, without dropout and auxiliary loss.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.heads.head import Feature, enlarged_scores, resized

FINEST = 4  # stride of the first map as it is reassembled


class DPT(nn.Module):
    """Build DPT's head: maps reassembled at strides 4, 8, 16, 32, and fused from coarse to fine.

    Args:
        features: The maps that it reads, the finest or the earliest first.
        channels: Channels inside the head.
        outputs: Channels of the prediction.
    """

    reads_stages: ClassVar[bool] = True

    def __init__(self, features: Sequence[Feature], channels: int, outputs: int) -> None:
        super().__init__()
        finest = min(FINEST, features[0].stride)
        self.reassemble = nn.ModuleList(
            reassemble(x, channels, stride=finest * 2**i) for i, x in enumerate(features)
        )
        coarsest = len(features) - 1
        self.fuse = nn.ModuleList(
            Fusion(channels, skip=i < coarsest) for i, _ in enumerate(features)
        )
        self.layers = nn.Sequential(
            ConvNorm(channels, channels, 3), nn.Conv2d(channels, outputs, 1)
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) -> (B, outputs, *size), float32."""
        levels = [layer(x) for layer, x in zip(self.reassemble, maps, strict=True)]
        fused = self.fuse[-1](levels[-1])
        for fuse, level in zip(self.fuse[-2::-1], levels[-2::-1], strict=True):
            fused = fuse(level, resized(fused, level))
        fused = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=False)
        return enlarged_scores(self.layers(fused), size)


def reassemble(feature: Feature, channels: int, *, stride: int) -> nn.Sequential:
    """Build the layers that bring a map to so many channels and about a stride.

    The factor between the strides is rounded to a power of 2, as maps of 14x14 patches need. The
    transposed convolution, whose kernel is as large as its stride, is a 1x1 convolution and a
    shuffle of channels to pixels: the same, with a bias for each pixel.
    """
    layers: list[nn.Module] = [nn.Conv2d(feature.channels, channels, 1)]
    doublings = round(math.log2(feature.stride / stride))
    if doublings > 0:
        factor = 2**doublings
        layers += [nn.Conv2d(channels, channels * factor**2, 1), nn.PixelShuffle(factor)]
    for _ in range(-doublings):
        layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
    return nn.Sequential(*layers)


class ResidualUnit(nn.Module):
    """x + norm(conv(ReLU(norm(conv(ReLU(x)))))), 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        out: Tensor = x + self.second(self.first(F.relu(x)))
        return out


class Fusion(nn.Module):
    """A map, and what was fused of the coarser ones, as one map of the map's size.

    Args:
        channels: Channels of all maps.
        skip: Whether there are coarser maps.
    """

    def __init__(self, channels: int, *, skip: bool) -> None:
        super().__init__()
        self.skip = ResidualUnit(channels) if skip else None
        self.unit = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, coarser: Tensor | None = None) -> Tensor:
        """(B, channels, h, w), and the same of the coarser maps -> the same shape."""
        x = level
        if self.skip is not None and coarser is not None:
            x = coarser + self.skip(level)
        out: Tensor = self.project(self.unit(x))
        return out
