"""The answers that nodes with as many outputs as channels of each source share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, Self, cast

from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.nodes.node import Grouped, Size, scaled_channels
from gatesearch.models.nodes.step import Ids, Step


class SameWidth(Grouped, ABC):
    """A node of as many outputs as channels of each source, without multiply-adds that count."""

    outputs: int

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes read."""

    @property
    def input_channels(self) -> tuple[int, ...]:
        """As many in every source as there are outputs."""
        return (self.outputs,) * len(self.sources)

    @property
    def groups(self) -> int:
        """Each channel is a group."""
        return self.outputs

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """None by the convention of published FLOPs."""
        return 0

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """That of the sources, broadcast along axes of length 1."""
        return reduce(_larger, (sizes[source] for source in self.sources))

    def scaled(self, width: float) -> Self:
        """Return it with its channels times `width`."""
        return self.narrowed(scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with so many channels."""
        return cast(Self, replace(cast(Any, self), outputs=outputs))


class Weightless:
    """The answers of a node without weights."""

    has_weights: ClassVar[bool] = False
    params_per_channel: ClassVar[int] = 0

    def build(self) -> None:
        """There is nothing to build."""


class Elementwise(Weightless, SameWidth, ABC):
    """A node that computes each channel from the same channel of its sources, without weights."""


@dataclass(frozen=True)
class OfOne(SameWidth):
    """A node of one source, with as many outputs, and without strides."""

    name: str
    source: str
    outputs: int
    stage: int = field(default=0, kw_only=True)
    ends_block: bool = field(default=False, kw_only=True)

    @property
    def stride(self) -> int:
        """Positions are kept."""
        return 1

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", stage=0, ends_block=False)


class OfOneStep(Step):
    """A step of one source without weights, as wide as it, in a compact network."""

    op: str
    source: ChannelSource

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels read."""
        return (self.source,)

    @property
    def width(self) -> int:
        """As many channels as are read."""
        return channel_count(self.source)

    @property
    def channel_groups(self) -> int:
        """Each channel is a group."""
        return self.width

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the same of other channels."""
        return self.model_copy(update={"source": sources[0]})


def _larger(size: Size, other: Size) -> Size:
    """Return the positions of a result that is computed from both, broadcast where one is 1."""
    return tuple(max(pair) for pair in zip(size, other, strict=True))
