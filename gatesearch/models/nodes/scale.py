"""Multiplication of every channel by a parameter."""

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
class Scale(PerChannel):
    """γ_c x_c, the layer scale of deep transformers and of ConvNeXt."""

    params_per_channel: ClassVar[int] = 1

    def build(self) -> "ScaleLayer":
        """Build γ = 1."""
        return ScaleLayer(self.outputs)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "ScaleStep":
        """Return the same for some channels."""
        return ScaleStep(name=name, source=sources[0])


class ScaleStep(PerChannelStep):
    """A factor for each channel, in a compact network."""

    op: Literal["scale"] = "scale"
    name: str = Field(min_length=1, max_length=1000)

    def build(self) -> "ScaleLayer":
        """Build the factors."""
        return ScaleLayer(self.width)


class ScaleLayer(ChannelParameters):
    """Factors (C,) of the channels of (B, C, *positions)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * at_positions(self.weight, x)
