"""The protocol of modules that hold the weights of a node, and can be cut down to channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Layer(Protocol):
    """A module with the weights of one node."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute the node from the values of its sources."""

    def copy_channels(self, slices: Sequence["LayerSlice"]) -> None:
        """Take over channels of larger layers of the same kind, one slice after the other."""


@dataclass(frozen=True)
class LayerSlice:
    """The part of a layer's weights that is kept in a compact network.

    Attributes:
        layer: The layer of one stream.
        outputs: (n,) output channels kept, in their new order.
        inputs: (m,) input channels kept, in their new order.
    """

    layer: Layer
    outputs: NDArray[np.int64]
    inputs: NDArray[np.int64]
