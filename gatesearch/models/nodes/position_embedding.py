"""Learned embeddings of positions, added to every image's features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.per_channel import ChannelParameters, PerChannel, PerChannelStep

# Most positions of an embedding in a file: a map of 1024 x 1024.
MOST_POSITIONS = 2**20


@dataclass(frozen=True)
class PositionEmbedding(PerChannel):
    """x + e with e (C, *positions), so that it works for one size of image only.

    Attributes:
        positions: Number of tokens, or height and width of the map.
    """

    positions: Size

    @property
    def params_per_channel(self) -> int:
        """One for each position."""
        return math.prod(self.positions)

    def build(self) -> "PositionEmbeddingLayer":
        """Build e, normal of deviation 0.02."""
        return PositionEmbeddingLayer(self.outputs, self.positions)

    def step(
        self, *, name: str, sources: Sequence[ChannelSource], outputs: int
    ) -> "PositionEmbeddingStep":
        """Return the same for some channels."""
        return PositionEmbeddingStep(name=name, source=sources[0], positions=self.positions)


class PositionEmbeddingStep(PerChannelStep):
    """An embedding of positions in a compact network."""

    op: Literal["position_embedding"] = "position_embedding"
    name: str = Field(min_length=1, max_length=1000)
    positions: tuple[int, ...] = Field(min_length=1, max_length=4)

    def check(self, widths: Sequence[int]) -> None:
        """Refuse impossible positions also; see `Step.check`."""
        super().check(widths)
        if min(self.positions) < 1 or math.prod(self.positions) > MOST_POSITIONS:
            raise ValueError(
                f"must embed 1 to {MOST_POSITIONS:,} positions, found {self.positions}"
            )

    def build(self) -> "PositionEmbeddingLayer":
        """Build the embedding."""
        return PositionEmbeddingLayer(self.width, self.positions)


class PositionEmbeddingLayer(ChannelParameters):
    """An embedding (C, *positions)."""

    def __init__(self, channels: int, positions: Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, *positions))
        if not self.weight.is_meta:
            nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add it to (B, C, *positions)."""
        return x + self.weight
