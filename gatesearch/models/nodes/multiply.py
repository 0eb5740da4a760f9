"""Products of two values, as in squeeze-and-excitation and gating."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.nodes.elementwise import Elementwise, larger
from gatesearch.models.nodes.node import Size, scaled_channels
from gatesearch.models.nodes.step import Step, StepWeights


@dataclass(frozen=True)
class Multiply(Elementwise):
    """The product of two values; one of a single position scales every position of the other.

    Attributes:
        source: One value.
        factor: The other.
    """

    name: str
    source: str
    factor: str
    outputs: int
    stage: int = 0
    ends_block: bool = False
    stride: ClassVar[int] = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """Both values."""
        return (self.source, self.factor)

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """That of the larger value."""
        return larger(sizes[self.source], sizes[self.factor])

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Multiply both sources."""
        return inputs[0] * inputs[1]

    def scaled(self, width: float) -> Self:
        """Return it with its channels times `width`."""
        return self.narrowed(scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with so many channels."""
        return replace(self, outputs=outputs)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", factor="", stage=0, ends_block=False)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "MultiplyStep":
        """Return the product of some channels."""
        left, right = sources
        return MultiplyStep(left=left, right=right)


class MultiplyStep(Step):
    """A product of two values, in a compact network."""

    op: Literal["multiply"] = "multiply"
    left: ChannelSource
    right: ChannelSource

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """Both values."""
        return (self.left, self.right)

    @property
    def width(self) -> int:
        """As many channels as either value has."""
        return channel_count(self.left)

    def check(self, widths: Sequence[int]) -> None:
        """Refuse values of different widths also; see `Step.check`."""
        super().check(widths)
        left, right = map(channel_count, self.sources)
        if left != right:
            raise ValueError(f"must multiply as many channels, found {left} and {right}")

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Multiply what is read on both sides."""
        return readers[0](tensors) * readers[1](tensors)
