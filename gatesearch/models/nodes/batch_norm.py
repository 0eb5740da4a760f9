"""Batch norm apart from a convolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.per_channel import PerChannel, PerChannelStep
from gatesearch.models.nodes.step import StepName


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
class BatchNorm(PerChannel):
    """Batch norm apart from a convolution, as behind a concatenation."""

    params_per_channel: ClassVar[int] = 2

    def build(self) -> BatchNormLayer:
        """Build the norm with fresh weights."""
        return BatchNormLayer(self.outputs)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "BatchNormStep":
        """Return the norm of some channels."""
        return BatchNormStep(name=name, source=sources[0])


class BatchNormStep(PerChannelStep):
    """A batch norm apart from a convolution, in a compact network."""

    op: Literal["batch_norm"] = "batch_norm"
    name: StepName

    def build(self) -> BatchNormLayer:
        """Build the norm."""
        return BatchNormLayer(self.width)
