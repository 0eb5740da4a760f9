"""The global response norm of ConvNeXt V2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.per_channel import ChannelParameters, PerChannel, PerChannelStep


@dataclass(frozen=True)
class GlobalResponseNorm(PerChannel):
    """Feature competition between channels (Woo et al., CVPR 2023, 2301.00808, algorithm 1).

    With G_c = ‖x_c‖₂ over all positions, y_c = γ_c x_c G_c / (mean of G over channels + eps) + β_c
    + x_c.

    Attributes:
        eps: Added to the mean.
    """

    eps: float = 1e-6
    groups: ClassVar[int] = 1
    whole_groups: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    params_per_channel: ClassVar[int] = 2

    def build(self) -> "GlobalResponseNormLayer":
        """Build γ = β = 0, with which it is the identity."""
        return GlobalResponseNormLayer(self.outputs, eps=self.eps)

    def step(
        self, *, name: str, sources: Sequence[ChannelSource], outputs: int
    ) -> "GlobalResponseNormStep":
        """Return the norm of all channels of a stream."""
        return GlobalResponseNormStep(name=name, source=sources[0], eps=self.eps)


class GlobalResponseNormStep(PerChannelStep):
    """A global response norm over the channels read, in a compact network."""

    op: Literal["global_response_norm"] = "global_response_norm"
    name: str = Field(min_length=1, max_length=1000)
    whole_groups: ClassVar[bool] = True
    eps: float = Field(ge=0, allow_inf_nan=False)

    @property
    def channel_groups(self) -> int:
        """One: every output reads all channels."""
        return 1

    def build(self) -> "GlobalResponseNormLayer":
        """Build γ and β."""
        return GlobalResponseNormLayer(self.width, eps=self.eps)


class GlobalResponseNormLayer(ChannelParameters):
    """A global response norm, (B, C, *positions) -> the same, with γ and β (C,)."""

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        x = x.movedim(1, -1)
        length = x.norm(p=2, dim=tuple(range(1, x.dim() - 1)), keepdim=True)
        relative = length / (length.mean(-1, keepdim=True) + self.eps)
        return (x + torch.addcmul(self.bias, self.weight, x * relative)).movedim(-1, 1)
