"""What nodes of one source with as many outputs as inputs share: node, step and module."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.elementwise import OfOne
from gatesearch.models.nodes.step import Ids, Step, StepName, StepWeights


@dataclass(frozen=True)
class PerChannel(OfOne):
    """A node of one source with parameters for each channel, and as many outputs as inputs."""

    @property
    def has_weights(self) -> bool:
        """True: it holds parameters of each channel."""
        return True

    @property
    @abstractmethod
    def params_per_channel(self) -> int:
        """Parameters of one channel."""

    @abstractmethod
    def build(self) -> nn.Module | None:
        """Build its module, with fresh weights."""

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        return cast(Tensor, cast(nn.Module, layer)(inputs[0]))


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

    @property
    def channel_groups(self) -> int:
        """Each channel is a group, unless the kind says otherwise."""
        return self.width

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the same of other channels."""
        return self.model_copy(update={"source": sources[0]})

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
