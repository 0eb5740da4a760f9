"""Products of two values, as in squeeze-and-excitation and gating."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.elementwise import Elementwise
from gatesearch.models.nodes.pair import PairStep
from gatesearch.models.nodes.step import StepWeights


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

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Multiply both sources."""
        return inputs[0] * inputs[1]

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", factor="", stage=0, ends_block=False)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "MultiplyStep":
        """Return the product of some channels."""
        left, right = sources
        return MultiplyStep(left=left, right=right)


class MultiplyStep(PairStep):
    """A product of two values, in a compact network."""

    op: Literal["multiply"] = "multiply"

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Multiply what is read on both sides."""
        return readers[0](tensors) * readers[1](tensors)
