"""Resizing of maps by interpolation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.nodes.elementwise import Elementwise
from gatesearch.models.nodes.node import Size, scaled_channels
from gatesearch.models.nodes.step import Step, StepWeights

Mode = Literal["nearest", "nearest-exact", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Interpolate(Elementwise):
    """A map resized to a fixed size, or by a factor.

    Attributes:
        mode: torch's name of the interpolation.
        size: (height, width) of the output; None to resize by `scale`.
        scale: Output size divided by input size; used where `size` is None.
        align_corners: As torch's; None for modes that have no corners.
    """

    name: str
    source: str
    outputs: int
    mode: Mode
    size: tuple[int, int] | None = None
    scale: float = 1.0
    align_corners: bool | None = None
    stage: int = 0
    ends_block: bool = False
    stride: ClassVar[int] = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """The size asked for."""
        if self.size is not None:
            return self.size
        return tuple(int(side * self.scale) for side in sizes[self.source])

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Resize the source."""
        return resized(inputs[0], self)

    def scaled(self, width: float) -> Self:
        """Return it with its channels times `width`."""
        return self.narrowed(scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with so many channels."""
        return replace(self, outputs=outputs)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", stage=0, ends_block=False)

    def step(
        self, *, name: str, sources: Sequence[ChannelSource], outputs: int
    ) -> "InterpolateStep":
        """Return the same resizing of some channels."""
        (source,) = sources
        return InterpolateStep(
            source=source,
            mode=self.mode,
            size=self.size,
            scale=self.scale,
            align_corners=self.align_corners,
        )


class InterpolateStep(Step):
    """A map resized, in a compact network."""

    op: Literal["interpolate"] = "interpolate"
    source: ChannelSource
    mode: Mode
    size: tuple[Annotated[int, Field(ge=1, le=2**16)], ...] | None = None
    scale: float = Field(default=1.0, gt=0, le=64)
    align_corners: bool | None = None

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels resized."""
        return (self.source,)

    @property
    def width(self) -> int:
        """As many channels as are read."""
        return channel_count(self.source)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Resize the channels read."""
        return resized(readers[0](tensors), self)


def resized(x: Tensor, how: Interpolate | InterpolateStep) -> Tensor:
    """Resize (B, C, H, W) as a node or a step says."""
    size = None if how.size is None else list(how.size)
    scale = how.scale if size is None else None
    return F.interpolate(x, size, scale, how.mode, how.align_corners)
