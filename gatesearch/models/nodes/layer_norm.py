"""Layer norms over the channels of each position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.per_channel import ChannelParameters, PerChannel, PerChannelStep


@dataclass(frozen=True)
class LayerNorm(PerChannel):
    """(x - mean) / sqrt(variance + eps) over the channels of each position, times γ plus β.

    On maps (B, C, H, W) it is what ConvNeXt calls LayerNorm2d.

    Attributes:
        eps: Added to the variance.
        affine: Whether there are γ and β.
    """

    eps: float = 1e-5
    affine: bool = True
    groups: ClassVar[int] = 1
    whole_groups: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    @property
    def has_weights(self) -> bool:
        """Whether there are γ and β."""
        return self.affine

    @property
    def params_per_channel(self) -> int:
        """γ and β."""
        return 2 * self.affine

    def build(self) -> "LayerNormLayer | None":
        """Build γ = 1 and β = 0; nothing without them."""
        return LayerNormLayer(self.outputs, eps=self.eps) if self.affine else None

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        if layer is None:
            return layer_norm(inputs[0], None, None, self.eps)
        return super().run(inputs, layer)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "LayerNormStep":
        """Return the norm of all channels of a stream."""
        return LayerNormStep(name=name if self.affine else None, source=sources[0], eps=self.eps)


class LayerNormStep(PerChannelStep):
    """A layer norm over the channels read, in a compact network."""

    op: Literal["layer_norm"] = "layer_norm"
    whole_groups: ClassVar[bool] = True
    eps: float = Field(ge=0, allow_inf_nan=False)

    @property
    def channel_groups(self) -> int:
        """One: every output reads all channels."""
        return 1

    def build(self) -> "LayerNormLayer":
        """Build γ and β, or only the norm."""
        return LayerNormLayer(self.width, eps=self.eps, affine=self.name is not None)


class LayerNormLayer(ChannelParameters):
    """A layer norm, (B, C, *positions) -> the same, with γ and β (C,) if `affine`."""

    def __init__(self, channels: int, *, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the channels of x, (B, C, *positions), at each position."""
    x = x.movedim(1, -1)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).movedim(-1, 1)
