"""Pooling: averages or maxima over windows, or over a fixed number of windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.elementwise import OfOne, OfOneStep, Weightless
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.step import StepWeights
from gatesearch.strict import Strict

Side = Annotated[int, Field(ge=1, le=4096)]
Margin = Annotated[int, Field(ge=0, le=4096)]


class Windows(Strict):
    """What a pooling takes together: (height, width) in positions of its source.

    Attributes:
        kind: Whether averages or maxima are taken.
        kernel: Size of a window.
        strides: From one window to the next.
        padding: Added at each border.
        ceil_mode: Whether a window that the input ends in counts.
        count_padding: Whether averages are over whole windows, padding included.
        divide: Number of windows along height and width, instead of all of the above: windows
            overlap where the input does not divide (torch's adaptive pooling).
    """

    kind: Literal["average", "max"]
    kernel: tuple[Side, Side] = (1, 1)
    strides: tuple[Side, Side] = (1, 1)
    padding: tuple[Margin, Margin] = (0, 0)
    ceil_mode: bool = False
    count_padding: bool = True
    divide: tuple[Side, Side] | None = None

    def size(self, size: Size) -> Size:
        """Return the number of windows over (height, width)."""
        if self.divide is not None:
            return self.divide
        return tuple(self._count(*sides) for sides in zip(size, *self._shape, strict=True))

    def pooled(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) -> (B, C, H', W')."""
        if self.divide is not None:
            if self.kind == "max":
                return F.adaptive_max_pool2d(x, self.divide)
            if self.divide == (1, 1):
                return x.mean((2, 3), keepdim=True)
            return F.adaptive_avg_pool2d(x, self.divide)
        if self.kind == "max":
            return F.max_pool2d(
                x, self.kernel, self.strides, self.padding, ceil_mode=self.ceil_mode
            )
        return F.avg_pool2d(
            x, self.kernel, self.strides, self.padding, self.ceil_mode, self.count_padding
        )

    @property
    def _shape(self) -> tuple[tuple[int, int], ...]:
        return self.kernel, self.strides, self.padding

    def _count(self, side: int, kernel: int, stride: int, padding: int) -> int:
        room = side + 2 * padding - kernel
        count = (room + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        # The last window must begin inside the input or its first padding.
        if self.ceil_mode and (count - 1) * stride >= side + padding:
            count -= 1
        return count


@dataclass(frozen=True)
class Pool(Weightless, OfOne):
    """Pooling of a map, channel by channel.

    Attributes:
        windows: What it takes together.
    """

    windows: Windows

    @property
    def stride(self) -> int:
        """Source positions from one window to the next; 1 for a fixed number of windows."""
        return 1 if self.windows.divide is not None else self.windows.strides[0]

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """One position for each window."""
        return self.windows.size(sizes[self.source])

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Pool the source."""
        return self.windows.pooled(inputs[0])

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "AnyPoolStep":
        """Return the same pooling of some channels."""
        (source,) = sources
        return AnyPoolStep(source=source, windows=self.windows)


class AnyPoolStep(OfOneStep):
    """A pooling, in a compact network."""

    op: Literal["pool"] = "pool"
    windows: Windows

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Pool the channels read."""
        return self.windows.pooled(readers[0](tensors))
