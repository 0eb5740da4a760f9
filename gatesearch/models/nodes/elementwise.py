"""The answers that all channelwise nodes without weights share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from gatesearch.models.nodes.node import Grouped, Size


class Elementwise(Grouped, ABC):
    """A node that computes each channel from the same channel of its sources, without weights."""

    outputs: int
    has_weights: ClassVar[bool] = False
    params_per_channel: ClassVar[int] = 0

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

    def build(self) -> None:
        """There is nothing to build."""


def larger(size: Size, other: Size) -> Size:
    """Return the positions of a result that is computed from both, broadcast where one is 1."""
    return tuple(max(pair) for pair in zip(size, other, strict=True))
