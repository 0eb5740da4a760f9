"""The all-MLP head of SegFormer (Xie et al., NeurIPS 2021, https://arxiv.org/abs/2105.15203).

Section 3.2, equation 4, with x_i the map of feature i:

    z_i = up(Linear(C_i, C)(x_i))             bilinear, to the resolution of the finest
    y = Linear(C, outputs)(fuse([z_n; ...; z_1]))

where fuse is a 1x1 convolution from n C to C channels with batch norm and ReLU, as in the public
code. Linear layers are 1x1 convolutions. The dropout of the public code is left out.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.heads.head import Feature, enlarged_scores, resized


class SegFormerHead(nn.Module):
    """Build SegFormer's head: a linear layer per map, fused by another at the finest size.

    Args:
        features: The maps that it reads, the finest first.
        channels: C.
        outputs: Channels of the prediction.
    """

    reads_stages: ClassVar[bool] = True

    def __init__(self, features: Sequence[Feature], channels: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Conv2d(x.channels, channels, 1) for x in features)
        self.fuse = ConvNorm(len(features) * channels, channels, 1)
        self.classify = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) -> (B, outputs, *size), float32."""
        finest, *others = (linear(x) for linear, x in zip(self.linear, maps, strict=True))
        alike = [*(resized(x, finest) for x in reversed(others)), finest]
        return enlarged_scores(self.classify(self.fuse(torch.cat(alike, 1))), size)
