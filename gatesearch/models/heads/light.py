"""The smallest head for dense predictions."""

from torch import nn

from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.heads.head import Head


def light(inputs: int, channels: int, outputs: int) -> Head:
    """Build one 3x3 convolution and a 1x1 classifier."""
    return Head(nn.Sequential(ConvNorm(inputs, channels, 3), nn.Conv2d(channels, outputs, 1)))
