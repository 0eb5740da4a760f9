"""What nodes share whose module combines the channels of one source: node and step."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import Channels, ChannelSource, channel_count
from gatesearch.models.nodes.node import INPUT, Grouped, scaled_channels
from gatesearch.models.nodes.step import Ids, Step, StepName, StepWeights


class Layered(Grouped, ABC):
    """A node with weights that reads `inputs` channels of `source`."""

    source: str
    inputs: int
    outputs: int
    has_weights: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    @property
    def input_channels(self) -> tuple[int, ...]:
        """Channels of the source."""
        return (self.inputs,)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        return cast(Tensor, cast(nn.Module, layer)(inputs[0]))

    def scaled(self, width: float) -> Self:
        """Return it with both channel counts times `width`, but for the image's."""
        inputs = self.inputs if self.source == INPUT else scaled_channels(self.inputs, width)
        outputs = scaled_channels(self.outputs, width)
        return cast(Self, replace(cast(Any, self), inputs=inputs, outputs=outputs))

    def cut(self, inputs: Sequence[Ids], outputs: Ids) -> Self:
        """Return it with the inputs and outputs that are kept."""
        kept = {"inputs": len(inputs[0]), "outputs": len(outputs)}
        return cast(Self, replace(cast(Any, self), **kept))

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return cast(Self, replace(cast(Any, self), name="", source="", stage=0, ends_block=False))


class LayeredStep(Step):
    """A layer with weights of its own over the channels read, in a compact network."""

    op: str
    name: StepName
    source: ChannelSource
    inputs: Channels
    outputs: Channels

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels combined."""
        return (self.source,)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.outputs

    @property
    def channel_groups(self) -> int:
        """One: every output reads all channels, unless the kind says otherwise."""
        return 1

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return it with some of its outputs."""
        (source,) = sources
        inputs = channel_count(source)
        return self.model_copy(update={"source": source, "inputs": inputs, "outputs": len(outputs)})

    def check(self, widths: Sequence[int]) -> None:
        """Refuse wrong inputs also; see `Step.check`."""
        super().check(widths)
        if self.inputs != channel_count(self.source):
            raise ValueError(f"must have {channel_count(self.source)} inputs, found {self.inputs}")

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Run the layer on the channels read."""
        return cast(Tensor, weights.layers[self.name](readers[0](tensors)))
