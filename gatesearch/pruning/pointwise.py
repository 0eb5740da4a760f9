"""A 1x1 convolution with a bias and a ReLU, in a compact network.

It is what a 1x1 convolution and its batch norm are in evaluation mode, as one operation.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import Channels, ChannelSource, channel_count
from gatesearch.models.nodes import Step, StepName, StepWeights


class PointwiseStep(Step):
    """max(0, W x + b) at every position, over the channels read."""

    op: Literal["pointwise"] = "pointwise"
    name: StepName
    source: ChannelSource
    inputs: Channels
    outputs: Channels

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels combined."""
        return (self.source,)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.outputs

    def check(self, widths: Sequence[int]) -> None:
        """Refuse wrong inputs also; see `Step.check`."""
        super().check(widths)
        if self.inputs != channel_count(self.source):
            raise ValueError(f"must have {channel_count(self.source)} inputs, found {self.inputs}")

    def add_weights(self, weights: StepWeights) -> None:
        """Add a convolution."""
        weights.layers[self.name] = nn.Conv2d(self.inputs, self.outputs, 1)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Combine the channels read."""
        conv = cast(nn.Conv2d, weights.layers[self.name])
        return at_pixels(lambda x: torch.relu_(conv(x)), readers[0](tensors))


def at_pixels(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply what computes each pixel of maps by itself to any positions.

    Args:
        layer: (B, C, H, W) -> (B, outputs, H, W).
        x: (B, C, *positions).

    Returns:
        (B, outputs, *positions).
    """
    if x.dim() == 4:
        return layer(x)
    return layer(x.flatten(2)[..., None])[..., 0].unflatten(2, x.shape[2:])
