"""The step of a sum or a product."""

from collections.abc import Sequence
from typing import Self

from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.nodes.step import Ids, Step


class PairStep(Step):
    """A step of as many channels of two sources, in a compact network."""

    op: str
    left: ChannelSource
    right: ChannelSource

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """Both sides."""
        return (self.left, self.right)

    @property
    def width(self) -> int:
        """As many channels as either side has."""
        return channel_count(self.left)

    @property
    def channel_groups(self) -> int:
        """Each channel is a group."""
        return self.width

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the same of other channels."""
        left, right = sources
        return self.model_copy(update={"left": left, "right": right})

    def check(self, widths: Sequence[int]) -> None:
        """Refuse sides of different widths also; see `Step.check`."""
        super().check(widths)
        left, right = map(channel_count, self.sources)
        if left != right:
            raise ValueError(
                f"must {self.op} as many channels on both sides, found {left} and {right}"
            )
