"""A 1x1 convolution with a bias and a ReLU, in a compact network.

It is what a 1x1 convolution and its batch norm are in evaluation mode, as one operation.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes import StepWeights
from gatesearch.models.nodes.layered import LayeredStep


class PointwiseLayer(nn.Conv2d):
    """A 1x1 convolution with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger layers of this kind, one slice after the other."""
        layers = [cast(PointwiseLayer, part.layer) for part in slices]
        pairs = list(zip(layers, slices, strict=True))
        self.weight.copy_(torch.cat([x.weight[p.outputs][:, p.inputs] for x, p in pairs]))
        assert self.bias is not None
        self.bias.copy_(torch.cat([cast(Tensor, x.bias)[p.outputs] for x, p in pairs]))


class PointwiseStep(LayeredStep):
    """max(0, W x + b) at every position, over the channels read."""

    op: Literal["pointwise"] = "pointwise"

    def add_weights(self, weights: StepWeights) -> None:
        """Add a convolution."""
        weights.layers[self.name] = PointwiseLayer(self.inputs, self.outputs)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Combine the channels read."""
        conv = cast(PointwiseLayer, weights.layers[self.name])
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
