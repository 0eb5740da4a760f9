"""Steps of a compact network: nodes cut down to their live channels, as plain numbers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count, check_source
from gatesearch.models.layer import Layer, LayerSlice
from gatesearch.strict import Strict

# Name of a step, under which its weights are kept; torch allows no dots in it.
StepName = Annotated[str, Field(min_length=1, max_length=1000)]

# (C,) whether each channel is meant, and (n,) numbers of channels.
Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class StepWeights:
    """The weights of a compact network, by the names of its steps.

    Attributes:
        layers: Step -> its module.
        mixes: Step -> (T, C) weights of a mix.
    """

    layers: nn.ModuleDict
    mixes: nn.ParameterDict


class Step(Strict):
    """One step of a compact network: computes a tensor from channels of earlier ones.

    A kind of step has a literal `op`, by which JSON tells it from the others.

    Attributes:
        whole_groups: Whether the outputs of a group are computed all or none; see `Node`.
    """

    whole_groups: ClassVar[bool] = False

    @property
    @abstractmethod
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels that it reads, for each of its arguments."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of the tensor that it computes."""

    @property
    @abstractmethod
    def channel_groups(self) -> int:
        """Number of equal runs of channels: run j of the outputs reads run j of every source."""

    @property
    def listed(self) -> int:
        """Number of channels that its readers list one by one."""
        return sum(map(channel_count, self.sources))

    def computed(self, needed: Mask) -> Mask:
        """Return which outputs are computed where some are needed, (width,)."""
        if not self.whole_groups:
            return needed
        return (
            needed.reshape(self.channel_groups, -1).any(1).repeat(self.width // self.channel_groups)
        )

    def needed_inputs(self, computed: Mask) -> tuple[Mask, ...]:
        """Return which of the channels that it reads some outputs need, in their order.

        Args:
            computed: (width,) outputs that are computed.

        Returns:
            (n,) for each of `sources`, of n channels.
        """
        some = computed.reshape(self.channel_groups, -1).any(1)
        return tuple(
            some.repeat(channel_count(source) // self.channel_groups) for source in self.sources
        )

    @abstractmethod
    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the step that computes some of its outputs.

        Args:
            sources: Where the channels are that these need (`needed_inputs`), for each source.
            outputs: (n,) outputs that are computed (`computed`), ascending.
        """

    def check(self, widths: Sequence[int]) -> None:
        """Refuse a step, as it was read from a file, whose numbers contradict one another.

        Args:
            widths: Channels of every tensor that is computed before it.

        Raises:
            ValueError: It is refused.
        """
        for source in self.sources:
            check_source(source, widths)

    def add_weights(self, weights: StepWeights) -> None:
        """Add fresh weights under the step's name; nothing for a step without weights."""

    def copy_weights(self, layer: nn.Module, part: LayerSlice) -> None:
        """Take over the weights of some channels of a larger layer of its kind.

        Args:
            layer: Its module, which `add_weights` added.
            part: The larger layer, and the channels that are kept.
        """
        cast(Layer, layer).copy_channels([part])

    def readers(self, widths: Sequence[int]) -> nn.ModuleList:
        """Build the modules that `run` reads its arguments with.

        Args:
            widths: Channels of every tensor.
        """
        return nn.ModuleList(Read(source, widths) for source in self.sources)

    @abstractmethod
    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Compute the step, (B, width, H, W).

        Args:
            tensors: Everything computed before; None where nothing reads it any more.
            readers: What `readers` built.
            weights: Of the whole network.
        """
