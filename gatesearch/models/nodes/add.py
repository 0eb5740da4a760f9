"""The residual sum."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors, in_inference
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.elementwise import Elementwise
from gatesearch.models.nodes.pair import PairStep
from gatesearch.models.nodes.step import StepWeights


@dataclass(frozen=True)
class Add(Elementwise):
    """The sum of a residual branch and its skip connection, and its ReLU if `relu`.

    A side of one position is added at every position of the other.

    Attributes:
        source: The residual branch.
        skip: The skip connection.
        ends_block: Whether a block ends here.
    """

    name: str
    source: str
    skip: str
    outputs: int
    relu: bool = True
    stage: int = 0
    ends_block: bool = True
    stride: ClassVar[int] = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """Branch and skip connection."""
        return (self.source, self.skip)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Add both sources."""
        total = inputs[0] + inputs[1]
        return F.relu(total) if self.relu else total

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", skip="", stage=0, ends_block=True)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "AddStep":
        """Return the sum of some channels."""
        left, right = sources
        return AddStep(left=left, right=right, relu=self.relu)


class AddStep(PairStep):
    """A sum and, if `relu`, its ReLU, in a compact network."""

    op: Literal["add"] = "add"
    relu: bool = True

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Add what is read on both sides."""
        total = added(readers[0], readers[1], tensors)
        return torch.relu_(total) if self.relu else total


def added(left: Read, right: Read, tensors: Tensors) -> Tensor:
    """Compute the sum of two reads: if one copies, the other's pieces are added to the copy."""
    if left.in_place:
        left, right = right, left
    if (
        left.in_place
        or not _same_size(left, right, tensors)
        or not in_inference(cast(Tensor, tensors[left.source[0].tensor]))
    ):
        return left(tensors) + right(tensors)
    total, start = left(tensors), 0
    for piece in right.pieces(tensors):
        total[:, start : start + piece.shape[1]].add_(piece)
        start += piece.shape[1]
    return total


def _same_size(left: Read, right: Read, tensors: Tensors) -> bool:
    """Whether the sides have equal positions."""
    shapes = [cast(Tensor, tensors[read.source[0].tensor]).shape[2:] for read in (left, right)]
    return shapes[0] == shapes[1]
