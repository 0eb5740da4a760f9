"""A layer that is computed again, with the weights of an earlier step of a compact network."""

from collections.abc import Mapping, Sequence
from typing import Literal, Never, cast

from torch import Tensor

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import Channels, ChannelSource, channel_count
from gatesearch.models.nodes.step import Ids, Step, StepName, StepWeights


class RepeatedStep(Step):
    """A layer of one source with the weights of an earlier step, in a compact network.

    Its `op` is that of files written when only convolutions were repeated.

    Attributes:
        of: Name of that step.
    """

    op: Literal["conv_again"] = "conv_again"
    of: StepName
    source: ChannelSource
    outputs: Channels

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels read."""
        return (self.source,)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.outputs

    def as_layer(self, layers: Mapping[str, Step]) -> Step:
        """Return the step that it repeats, on the channels that it reads.

        Args:
            layers: As for `check_repeats`.
        """
        return layers[self.of].model_copy(update={"source": self.source})

    @property
    def channel_groups(self) -> Never:
        """Refuse: those of the step that it repeats (`as_layer`)."""
        raise NotImplementedError("the step that is repeated knows its groups: see `as_layer`")

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Never:
        """Refuse: the step that it repeats (`as_layer`) is narrowed."""
        raise NotImplementedError("the step that is repeated is narrowed: see `as_layer`")

    def check_repeats(self, layers: Mapping[str, Step]) -> None:
        """Refuse a step that does not fit the one whose weights it uses.

        Args:
            layers: Name -> each step with weights and one source before it.

        Raises:
            ValueError: It is refused.
        """
        if self.of not in layers:
            raise ValueError(f"must repeat a layer before it, found {self.of[:100]}")
        first = layers[self.of]
        fitting = (channel_count(first.sources[0]), first.width)
        found = (channel_count(self.source), self.outputs)
        if found != fitting:
            raise ValueError(f"must have {fitting} inputs and outputs, found {found}")

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Run the layer on the channels read."""
        return cast(Tensor, weights.layers[self.of](readers[0](tensors)))
