"""The convolution or linear layer inside the module of a node."""

from torch import nn

from gatesearch.models.conv_norm import BareConv, ConvNorm
from gatesearch.models.nodes.linear import LinearLayer

Filters = nn.Conv2d | nn.Linear


def filters_of(layer: object) -> Filters | None:
    """Return the convolution or linear layer of a node's module; None if it has none, as a norm.

    Its weight is (C, inputs of a group, ...), one filter for each output channel.
    """
    if isinstance(layer, ConvNorm | BareConv):
        return layer.conv
    return layer.linear if isinstance(layer, LinearLayer) else None
