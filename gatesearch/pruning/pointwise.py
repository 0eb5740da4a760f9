"""A 1x1 convolution with a bias and a ReLU, in a compact network.

It is what a 1x1 convolution and its batch norm are in evaluation mode, as one operation.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.conv_norm import copy_filters
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes import StepWeights
from gatesearch.models.nodes.layered import LayeredStep


class PointwiseStep(LayeredStep):
    """max(0, W x + b) at every position, over the channels read."""

    op: Literal["pointwise"] = "pointwise"

    def add_weights(self, weights: StepWeights) -> None:
        """Add a convolution."""
        weights.layers[self.name] = nn.Conv2d(self.inputs, self.outputs, 1)

    def copy_weights(self, layer: nn.Module, part: LayerSlice) -> None:
        """Take over channels of a larger convolution."""
        copy_filters(cast(nn.Conv2d, layer), [cast(nn.Conv2d, part.layer)], [part])

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
