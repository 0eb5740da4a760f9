"""Addition of a parameter to every channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import at_positions
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.per_channel import (
    ChannelParameters,
    PerChannel,
    PerChannelStep,
)


@dataclass(frozen=True)
class Shift(PerChannel):
    """x_c + β_c, a bias apart from any layer."""

    params_per_channel: ClassVar[int] = 1

    def build(self) -> "ShiftLayer":
        """Build β = 0."""
        return ShiftLayer(self.outputs)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "ShiftStep":
        """Return the same for some channels."""
        return ShiftStep(name=name, source=sources[0])


class ShiftStep(PerChannelStep):
    """A term for each channel, in a compact network."""

    op: Literal["shift"] = "shift"
    name: str = Field(min_length=1, max_length=1000)

    def build(self) -> "ShiftLayer":
        """Build the terms."""
        return ShiftLayer(self.width)


class ShiftLayer(ChannelParameters):
    """Terms (C,) of the channels of (B, C, *positions)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return x + at_positions(self.bias, x)
