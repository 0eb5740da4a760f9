"""Feature pyramid (Lin et al., CVPR 2017) for dense predictions (Kirillov et al., CVPR 2019).

Papers: https://arxiv.org/abs/1612.03144 and, "Panoptic Feature Pyramid Networks", section 3.1,
https://arxiv.org/abs/1901.02446. With x_i the map of feature i, the finest first,

    p_i = lateral_i(x_i) + up(p_{i+1})        1x1 convolution with bias, nearest neighbour
    y = classify(Σ_i up(smooth_i(p_i)))       3x3 convolution, norm, ReLU; bilinear to the finest

Differences from the papers: each p_i is smoothed once, and then enlarged to the finest resolution
in one step; Kirillov et al. repeat both for each doubling. Norms are batch norms, not group norms.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.heads.head import Feature, enlarged_scores, resized


class FPN(nn.Module):
    """Build a feature pyramid: 1x1 convolutions, sums from coarse to fine, a 1x1 classifier.

    Args:
        features: The maps that it reads, the finest first.
        channels: Channels of the pyramid.
        outputs: Channels of the prediction.
    """

    reads_stages: ClassVar[bool] = True

    def __init__(self, features: Sequence[Feature], channels: int, outputs: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(x.channels, channels, 1) for x in features)
        self.smooth = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in features)
        self.classify = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) -> (B, outputs, *size), float32."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:])
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
        fused = smoothed[0]
        for x in smoothed[1:]:
            fused = fused + resized(x, fused)
        return enlarged_scores(self.classify(fused), size)
