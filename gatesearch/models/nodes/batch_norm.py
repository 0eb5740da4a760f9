"""Batch norm apart from a convolution."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.node import Grouped, Size, scaled_channels
from gatesearch.models.nodes.step import Step, StepName, StepWeights


class BatchNormLayer(nn.BatchNorm2d):
    """Batch norm of values (B, C, *positions), whatever their positions."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of positions."""

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger norms, one slice after the other."""
        layers = [cast(BatchNormLayer, part.layer) for part in slices]
        for name in ("weight", "bias", "running_mean", "running_var"):
            rows = [
                getattr(layer, name)[part.outputs]
                for layer, part in zip(layers, slices, strict=True)
            ]
            getattr(self, name).copy_(torch.cat(rows))
        self.eps, self.momentum = layers[0].eps, layers[0].momentum


@dataclass(frozen=True)
class BatchNorm(Grouped):
    """Batch norm apart from a convolution, as behind a concatenation."""

    name: str
    source: str
    outputs: int
    stage: int = 0
    ends_block: bool = False
    stride: ClassVar[int] = 1
    has_weights: ClassVar[bool] = True
    params_per_channel: ClassVar[int] = 2

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    @property
    def input_channels(self) -> tuple[int, ...]:
        """As many as outputs."""
        return (self.outputs,)

    @property
    def groups(self) -> int:
        """Each channel is a group."""
        return self.outputs

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """None by the convention of published FLOPs."""
        return 0

    def build(self) -> BatchNormLayer:
        """Build the norm with fresh weights."""
        return BatchNormLayer(self.outputs)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        return cast(Tensor, cast(nn.Module, layer)(inputs[0]))

    def scaled(self, width: float) -> Self:
        """Return it with its channels times `width`."""
        return self.narrowed(scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with so many channels."""
        return replace(self, outputs=outputs)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", stage=0, ends_block=False)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "BatchNormStep":
        """Return the norm of some channels."""
        (source,) = sources
        return BatchNormStep(name=name, source=source)


class BatchNormStep(Step):
    """A batch norm apart from a convolution, in a compact network."""

    op: Literal["batch_norm"] = "batch_norm"
    name: StepName
    source: ChannelSource

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels normed."""
        return (self.source,)

    @property
    def width(self) -> int:
        """As many channels as are read."""
        return channel_count(self.source)

    def add_weights(self, weights: StepWeights) -> None:
        """Add the norm."""
        weights.layers[self.name] = BatchNormLayer(self.width)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Norm the channels read."""
        return cast(Tensor, weights.layers[self.name](readers[0](tensors)))
