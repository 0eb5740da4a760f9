"""Linear layers over the channels of each position."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.layered import Layered, LayeredStep
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.step import StepWeights


@dataclass(frozen=True)
class Linear(Layered):
    """W x + b at every position, on maps, tokens, or vectors (B, C).

    Attributes:
        bias: Whether there is a b.
        ends_block: Whether a block ends here.
    """

    name: str
    source: str
    inputs: int
    outputs: int
    bias: bool = True
    stage: int = 0
    ends_block: bool = False
    stride: ClassVar[int] = 1
    groups: ClassVar[int] = 1
    is_linear: ClassVar[bool] = True

    @property
    def params_per_channel(self) -> int:
        """One row of W, and its bias."""
        return self.inputs + self.bias

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """One row of W at every position; the bias is not counted."""
        return self.inputs * math.prod(sizes[self.name])

    def build(self) -> "LinearLayer":
        """Build it with fresh weights."""
        return LinearLayer(self.inputs, self.outputs, bias=self.bias)

    def narrowed(self, outputs: int) -> Self:
        """Return it with fewer outputs; it reads all inputs."""
        return replace(self, outputs=outputs)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "LinearStep":
        """Return a linear layer of some channels."""
        (source,) = sources
        return LinearStep(
            name=name,
            source=source,
            inputs=channel_count(source),
            outputs=outputs,
            bias=self.bias,
        )


class LinearStep(LayeredStep):
    """A linear layer in a compact network."""

    op: Literal["linear"] = "linear"
    bias: bool

    def add_weights(self, weights: StepWeights) -> None:
        """Add a `LinearLayer`."""
        weights.layers[self.name] = LinearLayer(self.inputs, self.outputs, bias=self.bias)


class LinearLayer(nn.Module):
    """A linear layer (B, inputs, *positions) -> (B, outputs, *positions).

    Initialised as transformers are: normal of deviation 0.02, cut off at 2; no bias.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        # A module, not a functional call: thop counts modules only.
        self.linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
        if not self.linear.weight.is_meta:
            nn.init.trunc_normal_(self.linear.weight, std=0.02)
            if bias:
                nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *positions) -> (B, outputs, *positions), in channels-last memory."""
        return cast(Tensor, self.linear(x.movedim(1, -1))).movedim(-1, 1)

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger layers, one slice after the other."""
        parts = [(cast(LinearLayer, part.layer).linear, part) for part in slices]
        rows = [linear.weight[part.outputs][:, part.inputs] for linear, part in parts]
        self.linear.weight.copy_(torch.cat(rows))
        if self.linear.bias is not None:
            self.linear.bias.copy_(torch.cat([linear.bias[p.outputs] for linear, p in parts]))
