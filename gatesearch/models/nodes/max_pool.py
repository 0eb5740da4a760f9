"""The max-pooling behind a ResNet's stem."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors, in_inference
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.nodes.elementwise import Elementwise
from gatesearch.models.nodes.node import Size, scaled_channels
from gatesearch.models.nodes.step import Step, StepWeights


@dataclass(frozen=True)
class MaxPool(Elementwise):
    """The 3x3 max-pooling of stride 2 and padding 1 behind a ResNet's stem."""

    name: str
    source: str
    outputs: int
    stage: int = 0
    stride: ClassVar[int] = 2
    ends_block: ClassVar[bool] = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    def output_size(self, size: Size) -> Size:
        """Half of it, rounded up."""
        height, width = ((side - 1) // 2 + 1 for side in size)
        return height, width

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Pool the source."""
        return F.max_pool2d(inputs[0], kernel_size=3, stride=2, padding=1)

    def scaled(self, width: float) -> Self:
        """Return it with its channels times `width`."""
        return self.narrowed(scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with so many channels."""
        return replace(self, outputs=outputs)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", stage=0)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "PoolStep":
        """Return the same pooling of some channels."""
        (source,) = sources
        return PoolStep(source=source)


class PoolStep(Step):
    """The 3x3 max-pooling of stride 2 of a ResNet's stem, in a compact network."""

    op: Literal["maxpool"] = "maxpool"
    source: ChannelSource

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels pooled."""
        return (self.source,)

    @property
    def width(self) -> int:
        """As many channels as are read."""
        return channel_count(self.source)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Pool the channels read."""
        return pooled(readers[0](tensors))


def pooled(x: Tensor) -> Tensor:
    """Compute 3x3 max-pooling of stride 2 and padding 1."""
    if not in_inference(x) or not x.is_contiguous():
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    # torch's kernel for this format looks at nine values one by one; maxima of whole rows, then of
    # columns, are vectorised: six times as fast.
    return _halved(_halved(x, 2), 3)


def _halved(x: Tensor, dim: int) -> Tensor:
    """Maxima of entries 2i - 1 to 2i + 1 along one dimension."""
    size = x.shape[dim]
    odd = x[:, :, 1::2] if dim == 2 else x[..., 1::2]
    even = x[:, :, ::2] if dim == 2 else x[..., ::2]
    maxima = even.clone()
    with_next = maxima.narrow(dim, 0, size // 2)
    torch.maximum(with_next, odd, out=with_next)
    with_previous = maxima.narrow(dim, 1, maxima.shape[dim] - 1)
    torch.maximum(with_previous, odd.narrow(dim, 0, maxima.shape[dim] - 1), out=with_previous)
    return maxima
