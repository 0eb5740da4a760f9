"""Operations that move positions about and leave channels alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.elementwise import OfOne, OfOneStep, Weightless
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.position_operations import PositionOperation, Reshape, Take
from gatesearch.models.nodes.step import StepWeights


@dataclass(frozen=True)
class Rearrange(Weightless, OfOne):
    """(B, C, *positions) -> (B, C, *other positions), by operations one after the other.

    Attributes:
        operations: See `gatesearch.models.nodes.position_operations`.
    """

    operations: tuple[PositionOperation, ...]

    @property
    def stride(self) -> int:
        """Above 1 where it keeps every n-th position of a map along height and along width."""
        kept_one_of, size = 1, None
        for operation in self.operations:
            if isinstance(operation, Take):
                kept_one_of *= operation.one_of(size)
            if isinstance(operation, Reshape):
                size = None if -1 in operation.sizes else operation.sizes
            elif size is not None:
                size = operation.output_size(size)
        return round(math.sqrt(kept_one_of))

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """Positions after the last operation."""
        size = sizes[self.source]
        for operation in self.operations:
            size = operation.output_size(size)
        return size

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Rearrange the source."""
        return rearranged(inputs[0], self.operations)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "RearrangeStep":
        """Return the same operations on some channels."""
        return RearrangeStep(source=sources[0], operations=self.operations)


class RearrangeStep(OfOneStep):
    """Positions moved about, in a compact network."""

    op: Literal["rearrange"] = "rearrange"
    operations: tuple[PositionOperation, ...] = Field(max_length=64)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Rearrange the channels read."""
        return rearranged(readers[0](tensors), self.operations)


def rearranged(x: Tensor, operations: Sequence[PositionOperation]) -> Tensor:
    """Run operations on (B, C, *positions); a copy, where one is needed, is channels-last."""
    x = x.movedim(1, -1)
    for operation in operations:
        x = operation.run(x)
    return x.movedim(-1, 1)
