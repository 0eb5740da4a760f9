"""Which channels of which tensors a step of a compact network reads."""

from collections.abc import Sequence

from pydantic import Field

from gatesearch.strict import Strict


class ChannelSlice(Strict):
    """Channels of one tensor: `start` to `stop`, or those listed in `channels`."""

    tensor: int = Field(ge=0)
    start: int = Field(default=0, ge=0)
    stop: int = Field(default=0, ge=0)
    channels: tuple[int, ...] | None = None


ChannelSource = tuple[ChannelSlice, ...]
Positions = Sequence[tuple[int, int]]  # (tensor, channel) of each channel


def channel_positions(source: ChannelSource) -> Positions:
    """Tensor and channel of everything that a source reads, in order."""
    return [
        (piece.tensor, channel)
        for piece in source
        for channel in (piece.channels or range(piece.start, piece.stop))
    ]
