"""Group norms over groups of channels and all positions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.node import Coupling
from gatesearch.models.nodes.per_channel import ChannelParameters, PerChannel, PerChannelStep
from gatesearch.models.nodes.step import Ids


@dataclass(frozen=True)
class GroupNorm(PerChannel):
    """(x - mean) / sqrt(variance + eps) over a group's channels and all positions, times γ plus β.

    Attributes:
        split: Number of groups.
        eps: Added to the variance.
        affine: Whether there are γ and β.
    """

    split: int
    eps: float = 1e-5
    affine: bool = True
    whole_groups: ClassVar[bool] = True

    @property
    def groups(self) -> int:
        """`split`."""
        return self.split

    @property
    def coupling(self) -> Coupling:
        """Whole groups; single channels where one group is all of them."""
        return "channel" if self.split == 1 or self.channelwise else "group"

    @property
    def has_weights(self) -> bool:
        """Whether there are γ and β."""
        return self.affine

    @property
    def params_per_channel(self) -> int:
        """γ and β."""
        return 2 * self.affine

    def build(self) -> "GroupNormLayer | None":
        """Build γ = 1 and β = 0; nothing without them."""
        return GroupNormLayer(self.outputs, self.split, eps=self.eps) if self.affine else None

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        if layer is None:
            return F.group_norm(inputs[0], self.split, eps=self.eps)
        return super().run(inputs, layer)

    def narrowed(self, outputs: int) -> Self:
        """Return it with so many channels: fewer groups, or smaller ones if no number fits."""
        return replace(self, outputs=outputs, split=fewer_groups(self.outputs, self.split, outputs))

    def scaled(self, width: float) -> Self:
        """Return it with as many groups of fewer channels."""
        whole = super().scaled(width).outputs
        return replace(self, outputs=whole)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "GroupNormStep":
        """Return the norm of some groups, of one stream or of several."""
        (source,) = sources
        return GroupNormStep(
            name=name if self.affine else None,
            source=source,
            groups=fewer_groups(self.outputs, self.split, outputs),
            eps=self.eps,
        )


class GroupNormStep(PerChannelStep):
    """A group norm in a compact network."""

    op: Literal["group_norm"] = "group_norm"
    whole_groups: ClassVar[bool] = True
    groups: int = Field(ge=1)
    eps: float = Field(ge=0, allow_inf_nan=False)

    @property
    def channel_groups(self) -> int:
        """`groups`."""
        return self.groups

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the norm of some groups."""
        step = super().narrowed(sources=sources, outputs=outputs)
        return step.model_copy(update={"groups": self.groups * len(outputs) // self.width})

    def check(self, widths: Sequence[int]) -> None:
        """Refuse unequal groups also; see `Step.check`."""
        super().check(widths)
        if self.width % self.groups:
            raise ValueError(f"must have groups of equal size, found {self.width} in {self.groups}")

    def build(self) -> "GroupNormLayer":
        """Build γ and β, or only the norm."""
        affine = self.name is not None
        return GroupNormLayer(self.width, self.groups, eps=self.eps, affine=affine)


class GroupNormLayer(ChannelParameters):
    """A group norm, (B, C, *positions) -> the same, with γ and β (C,) if `affine`."""

    def __init__(self, channels: int, groups: int, *, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


def fewer_groups(channels: int, groups: int, outputs: int) -> int:
    """Return how many groups of their size some outputs are; 1 if they are no whole groups."""
    size = channels // groups
    return outputs // size if outputs % size == 0 else 1
