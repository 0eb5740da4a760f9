"""What heads for dense predictions have in common."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Feature:
    """A map of the encoder that heads may read.

    Attributes:
        channels: C of (B, C, h, w).
        stride: Input resolution divided by the map's, H / h.
    """

    channels: int
    stride: int


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
        return enlarged_scores(self.layers(features), size)


def enlarged_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge (B, outputs, h, w) to (B, outputs, *size), float32."""
    # Losses need fp32; enlarging channels-last tensors is several times faster on a processor.
    scores = scores.float().contiguous(memory_format=torch.channels_last)
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Bring a map to the height and width of another, bilinearly."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
