"""Resizing of maps by interpolation."""

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

Mode = Literal["nearest", "nearest-exact", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Interpolate(Weightless, OfOne):
    """A map resized to a fixed size, or by a factor.

    Attributes:
        mode: torch's name of the interpolation.
        size: (height, width) of the output; None to resize by `scale`.
        scale: Output size divided by input size; used where `size` is None.
        align_corners: As torch's; None for modes that have no corners.
    """

    mode: Mode
    size: tuple[int, int] | None = None
    scale: float = 1.0
    align_corners: bool | None = None

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """The size asked for."""
        if self.size is not None:
            return self.size
        return tuple(int(side * self.scale) for side in sizes[self.source])

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Resize the source."""
        return resized(inputs[0], self)

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


class InterpolateStep(OfOneStep):
    """A map resized, in a compact network."""

    op: Literal["interpolate"] = "interpolate"
    mode: Mode
    size: tuple[Annotated[int, Field(ge=1, le=2**16)], ...] | None = None
    scale: float = Field(default=1.0, gt=0, le=64)
    align_corners: bool | None = None

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Resize the channels read."""
        return resized(readers[0](tensors), self)


def resized(x: Tensor, how: Interpolate | InterpolateStep) -> Tensor:
    """Resize (B, C, H, W) as a node or a step says."""
    size = None if how.size is None else list(how.size)
    scale = how.scale if size is None else None
    return F.interpolate(x, size, scale, how.mode, how.align_corners)
