"""What nodes of one source with as many outputs as inputs share: node, step and module."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.node import Grouped, Size, scaled_channels
from gatesearch.models.nodes.step import Step, StepName, StepWeights


@dataclass(frozen=True)
class PerChannel(Grouped, ABC):
    """A node of one source that has as many outputs as inputs, and no multiply-adds that count."""

    name: str
    source: str
    outputs: int
    stage: int = field(default=0, kw_only=True)
    ends_block: bool = field(default=False, kw_only=True)
    stride: ClassVar[int] = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    @property
    def input_channels(self) -> tuple[int, ...]:
        """As many as there are outputs."""
        return (self.outputs,)

    @property
    def groups(self) -> int:
        """Each channel is a group."""
        return self.outputs

    @property
    def has_weights(self) -> bool:
        """True: it holds parameters of each channel."""
        return True

    @property
    @abstractmethod
    def params_per_channel(self) -> int:
        """Parameters of one channel."""

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """None by the convention of published FLOPs."""
        return 0

    @abstractmethod
    def build(self) -> nn.Module | None:
        """Build its module, with fresh weights."""

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


class PerChannelStep(Step):
    """A step with as many outputs as it reads channels, in a compact network.

    Attributes:
        name: Of its weights; None where it has none.
        source: The channels read.
    """

    name: StepName | None = None
    source: ChannelSource

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels read."""
        return (self.source,)

    @property
    def width(self) -> int:
        """As many channels as are read."""
        return channel_count(self.source)

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the module with its weights."""

    def add_weights(self, weights: StepWeights) -> None:
        """Add its module, if it has weights."""
        if self.name is not None:
            weights.layers[self.name] = self.build()

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Run its module on the channels read."""
        layer = self.build() if self.name is None else weights.layers[self.name]
        return cast(Tensor, layer(readers[0](tensors)))


class ChannelParameters(nn.Module):
    """A module whose parameters all have one entry or row for each channel."""

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger modules of its kind, one slice after the other."""
        for name, parameter in self.named_parameters():
            rows = [
                cast(nn.Module, part.layer).get_parameter(name)[part.outputs] for part in slices
            ]
            parameter.copy_(torch.cat(rows))
