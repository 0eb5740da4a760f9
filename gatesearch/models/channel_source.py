"""Which channels of which tensors a step of a compact network reads."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from gatesearch.strict import Strict

# Largest number of channels of a tensor in a file. The widest layer of a ResNet-50 has 2,048, of
# which 20 tasks with a stream each have 43,008.
MOST_CHANNELS = 2**17

Channel = Annotated[int, Field(ge=0, lt=MOST_CHANNELS)]
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]


class ChannelSlice(Strict):
    """Channels of one tensor: `start` to `stop`, or those listed in `channels`."""

    tensor: int = Field(ge=0)
    start: int = Field(default=0, ge=0, le=MOST_CHANNELS)
    stop: int = Field(default=0, ge=0, le=MOST_CHANNELS)
    channels: tuple[Channel, ...] | None = Field(default=None, max_length=MOST_CHANNELS)


ChannelSource = tuple[ChannelSlice, ...]
Positions = Sequence[tuple[int, int]]  # (tensor, channel) of each channel


def channel_count(source: ChannelSource) -> int:
    """Count the channels that a source reads."""
    return sum(len(piece.channels or range(piece.start, piece.stop)) for piece in source)


def check_source(source: ChannelSource, widths: Sequence[int]) -> None:
    """Refuse a source that reads nothing, or channels that are not there.

    Args:
        source: The source, as it was read from a file.
        widths: Channels of every tensor that is computed before it is read.

    Raises:
        ValueError: It is refused.
    """
    if not source:
        raise ValueError("must read channels, found no slice")
    for piece in source:
        if piece.tensor >= len(widths):
            raise ValueError(
                f"must read one of the {len(widths)} tensors before it, found {piece.tensor}"
            )
        width = widths[piece.tensor]
        if piece.channels is None:
            possible = piece.start < piece.stop <= width
            shown = f"{piece.start} to {piece.stop}"
        else:
            possible = len(piece.channels) > 0 and max(piece.channels) < width
            shown = f"a list up to {max(piece.channels, default=0)}"
        if not possible:
            raise ValueError(
                f"must read channels of the {width} of tensor {piece.tensor}, found {shown}"
            )


def channel_positions(source: ChannelSource) -> Positions:
    """Tensor and channel of everything that a source reads, in order."""
    return [
        (piece.tensor, channel)
        for piece in source
        for channel in (piece.channels or range(piece.start, piece.stop))
    ]
