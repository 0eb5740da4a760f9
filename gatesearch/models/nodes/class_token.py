"""Learned tokens in front of those of the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.per_channel import ChannelParameters, PerChannel, PerChannelStep


@dataclass(frozen=True)
class ClassToken(PerChannel):
    """(B, C, *positions, N) -> (B, C, *positions, n + N): n learned tokens, then those of x.

    Attributes:
        tokens: n; 1 for a class token, more with distillation or register tokens.
    """

    tokens: int = 1

    @property
    def params_per_channel(self) -> int:
        """One for each token."""
        return self.tokens

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """`tokens` more along the last axis."""
        *before, last = sizes[self.source]
        return (*before, last + self.tokens)

    def build(self) -> "ClassTokenLayer":
        """Build the tokens, normal of deviation 0.02."""
        return ClassTokenLayer(self.outputs, self.tokens)

    def step(
        self, *, name: str, sources: Sequence[ChannelSource], outputs: int
    ) -> "ClassTokenStep":
        """Return the same for some channels."""
        return ClassTokenStep(name=name, source=sources[0], tokens=self.tokens)


class ClassTokenStep(PerChannelStep):
    """Learned tokens in front of those read, in a compact network."""

    op: Literal["class_token"] = "class_token"
    name: str = Field(min_length=1, max_length=1000)
    tokens: int = Field(ge=1, le=4096)

    def build(self) -> "ClassTokenLayer":
        """Build the tokens."""
        return ClassTokenLayer(self.width, self.tokens)


class ClassTokenLayer(ChannelParameters):
    """Tokens (C, n)."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, tokens))
        if not self.weight.is_meta:
            nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Put them in front of the last axis of (B, C, *positions)."""
        x = x.movedim(1, -1)
        tokens = self.weight.movedim(0, -1).to(x.dtype)
        return torch.cat([tokens.expand(*x.shape[:-2], -1, -1), x], -2).movedim(-1, 1)
