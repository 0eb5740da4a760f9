"""Operations on positions, the same for every channel: a closed vocabulary, as plain numbers.

Axis 0 of the positions is axis 2 of a value (B, C, *positions). Partitions into windows and their
inverses are `Reshape`, `Permute`, `Reshape`.
"""

import math
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from gatesearch.models.nodes.node import Size
from gatesearch.strict import Strict

# Most positions along an axis.
MOST_POSITIONS = 2**24

Axis = Annotated[int, Field(ge=0, le=7)]
Length = Annotated[int, Field(ge=0, le=MOST_POSITIONS)]


class Reshape(Strict):
    """Regroups the positions, in their order, into other axes: flattens and unflattens.

    Attributes:
        sizes: Length of each new axis; at most one is -1, which is all that is left.
    """

    op: Literal["reshape"] = "reshape"
    sizes: tuple[Annotated[int, Field(ge=-1, le=MOST_POSITIONS)], ...] = Field(max_length=8)

    @model_validator(mode="after")
    def _one_unknown(self) -> Self:
        if self.sizes.count(-1) > 1 or 0 in self.sizes:
            raise ValueError(f"must have sizes above 0, at most one -1, found {self.sizes}")
        return self

    def output_size(self, size: Size) -> Size:
        """Return the new sizes, -1 replaced."""
        known = math.prod(n for n in self.sizes if n > 0)
        return tuple(math.prod(size) // known if n < 0 else n for n in self.sizes)

    def run(self, x: Tensor) -> Tensor:
        """(B, *positions, C) -> the same with other positions."""
        return x.reshape(x.shape[0], *self.sizes, x.shape[-1])


class Permute(Strict):
    """Reorders the axes: new axis i is the old axis `axes[i]`."""

    op: Literal["permute"] = "permute"
    axes: tuple[Axis, ...] = Field(min_length=1, max_length=8)

    @model_validator(mode="after")
    def _all_axes(self) -> Self:
        if sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(f"must name every axis once, found {self.axes}")
        return self

    def output_size(self, size: Size) -> Size:
        """Reorder the sizes."""
        return tuple(size[axis] for axis in self.axes)

    def run(self, x: Tensor) -> Tensor:
        """(B, *positions, C) -> the same with axes reordered."""
        return x.permute(0, *(axis + 1 for axis in self.axes), x.dim() - 1)


class Roll(Strict):
    """Moves positions `shift` further along an axis, the last ones to the front."""

    op: Literal["roll"] = "roll"
    axis: Axis
    shift: int = Field(ge=-MOST_POSITIONS, le=MOST_POSITIONS)

    def output_size(self, size: Size) -> Size:
        """It stays."""
        return size

    def run(self, x: Tensor) -> Tensor:
        """(B, *positions, C) -> the same, rolled."""
        return torch.roll(x, self.shift, self.axis + 1)


class Pad(Strict):
    """Adds zeros before and after an axis."""

    op: Literal["pad"] = "pad"
    axis: Axis
    before: int = Field(ge=0, le=4096)
    after: int = Field(ge=0, le=4096)

    def output_size(self, size: Size) -> Size:
        """Lengthen the axis."""
        return _with(size, self.axis, size[self.axis] + self.before + self.after)

    def run(self, x: Tensor) -> Tensor:
        """(B, *positions, C) -> the same, padded."""
        later = x.dim() - 2 - self.axis
        return F.pad(x, (0, 0) * later + (self.before, self.after))


class Take(Strict):
    """Keeps positions `start`, `start` + `step`, ... below `stop` of an axis: crops, drops tokens.

    Attributes:
        stop: None for the end of the axis.
    """

    op: Literal["take"] = "take"
    axis: Axis
    start: Length = 0
    stop: Length | None = None
    step: int = Field(default=1, ge=1, le=MOST_POSITIONS)

    def output_size(self, size: Size) -> Size:
        """Shorten the axis."""
        kept = range(size[self.axis])[self.start : self.stop : self.step]
        return _with(size, self.axis, len(kept))

    def one_of(self, size: Size | None) -> int:
        """Return n where it keeps one of every n positions of its axis, 1 where it crops.

        Args:
            size: Before it, if known.
        """
        if self.step > 1 or size is None:
            return self.step
        kept = self.output_size(size)[self.axis]
        return size[self.axis] if kept == 1 else 1

    def run(self, x: Tensor) -> Tensor:
        """(B, *positions, C) -> the same with fewer positions, not copied."""
        before = (slice(None),) * (self.axis + 1)
        return x[(*before, slice(self.start, self.stop, self.step))]


PositionOperation = Annotated[Reshape | Permute | Roll | Pad | Take, Field(discriminator="op")]


def _with(size: Size, axis: int, length: int) -> Size:
    """Return sizes with one axis of another length."""
    return (*size[:axis], length, *size[axis + 1 :])
