"""The protocol of nodes: all that networks, liveness, extraction and costs ask of them."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import ClassVar, Literal, Protocol, Self, TypeVar

from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.step import Ids, Step

INPUT = "image"
IMAGE_CHANNELS = 3

# Positions of a value: height and width of a map in pixels, or the number of tokens.
Size = tuple[int, ...]

# Which channels can be removed from the network only together:
# `free`     any of the sources, whatever the outputs (a dense layer);
# `channel`  output c and channel c of every source;
# `group`    the outputs of a group and that group of every source (`Node.groups`);
# `route`    an output and the channel that it is (`Node.routes`);
# `fixed`    none can be removed.
Coupling = Literal["free", "channel", "group", "route", "fixed"]


class Node(Protocol):
    """One operation of an encoder, as a frozen dataclass.

    Values are (B, C, *positions): maps (B, C, H, W), tokens (B, C, N), tokens in windows
    (B, C, W, N). Plain, gated and compact networks, liveness, extraction and costs ask nodes and
    never test their types, so that a new kind of node is one class in a file of its own.
    """

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """Unique in a graph."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes read, or `INPUT`."""

    @property
    def input_channels(self) -> tuple[int, ...]:
        """Channels of each source."""

    @property
    def outputs(self) -> int:
        """Output channels."""

    @property
    def stride(self) -> int:
        """Input pixels for each output pixel, along height and along width."""

    @property
    def stage(self) -> int:
        """Index of the stage that the node belongs to; the stem is 0."""

    @property
    def ends_block(self) -> bool:
        """Whether a block of the encoder ends here."""

    @property
    def has_weights(self) -> bool:
        """Whether it has weights: then each stream computes values of its own.

        A node without weights gives equal outputs for equal inputs, in any stream.
        """

    @property
    def ends_in_norm(self) -> bool:
        """Whether its module is a `ConvNorm`, with whose batch norm and ReLU gates are fused."""

    @property
    def is_linear(self) -> bool:
        """Whether its module is a `LinearLayer`, with whose backward pass gates are fused."""

    @property
    def drops_images(self) -> bool:
        """Whether its module is a `DropPathLayer`, whose draws all streams share."""

    @property
    def takes_gates(self) -> bool:
        """Whether it is a layer behind which gates lie: a convolution or linear layer."""

    @property
    def groups(self) -> int:
        """Number of equal runs of channels: run j of the outputs reads run j of every source.

        1 where each output reads all channels, `outputs` where it reads the one of its own number.
        """

    @property
    def whole_groups(self) -> bool:
        """Whether the outputs of a group are computed all or none, as those of a norm are."""

    @property
    def symmetric(self) -> bool:
        """Whether the channels of a group may come in any order, in which they then go out."""

    @property
    def channelwise(self) -> bool:
        """Whether output channel c is computed from channel c of every source alone."""

    @property
    def routes(self) -> tuple[tuple[int, int], ...] | None:
        """(source, channel) that each output is, if the node only renumbers channels; else None.

        So it is in evaluation, in which compact networks are built.
        """

    @property
    def coupling(self) -> Coupling:
        """Which of its channels can be removed only together."""

    @property
    def params_per_channel(self) -> int | Fraction:
        """Parameters for each output channel; a fraction where channels share some."""

    @property
    def params(self) -> int:
        """Parameters of all channels."""

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """Multiply-adds for each output channel.

        Args:
            sizes: Positions of this node and of its sources.
        """

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """Positions of the output from those of the sources."""

    def computed(self, needed: Tensor) -> Tensor:
        """Return which channels are computed where some are needed.

        Args:
            needed: (..., outputs) 0 or 1 for each output channel, or independent probabilities.

        Returns:
            (..., outputs): whole groups where `whole_groups`.
        """

    def needed_inputs(self, needed: Tensor) -> tuple[Tensor, ...]:
        """Propagate back which channels are needed.

        Args:
            needed: (..., outputs), see `computed`.

        Returns:
            (..., C) for each source.
        """

    def build(self) -> nn.Module | None:
        """Build its module, a `Layer` with fresh weights; None for a node that needs none."""

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Compute the node, (B, outputs, *positions), from its sources' values with its module."""

    def scaled(self, width: float) -> Self:
        """Return the node with every channel count but the image's times `width`."""

    def narrowed(self, outputs: int) -> Self:
        """Return the node with fewer outputs, and inputs as a compact network would have them."""

    def cut(self, inputs: Sequence[Ids], outputs: Ids) -> Self:
        """Return the node without the channels that were removed from the network.

        Args:
            inputs: (n,) channels kept of each source, ascending.
            outputs: (m,) channels kept of its own, ascending; removed ones as `coupling` says.
        """

    def anonymous(self) -> Self:
        """Return what decides its latency: equal for nodes that take equally long."""

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> Step:
        """Return the step of a compact network that computes some of its channels.

        Args:
            name: Of the step; weights are kept under it.
            sources: Channels that it reads, for each source.
            outputs: How many channels it computes.
        """


NodeType = TypeVar("NodeType", bound=Node)


class Grouped:
    """The answers that follow from a node's groups, and those of most nodes."""

    ends_in_norm: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False
    drops_images: ClassVar[bool] = False
    whole_groups: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    routes: ClassVar[None] = None

    @property
    def takes_gates(self: Node) -> bool:
        """Whether it has weights and is neither channelwise nor a norm over channels."""
        return self.has_weights and not self.channelwise and not self.whole_groups

    @property
    def channelwise(self: Node) -> bool:
        """Whether each group is one channel of every source, and one output."""
        return self.groups == self.outputs and set(self.input_channels) == {self.outputs}

    @property
    def coupling(self: Node) -> Coupling:
        """As its channels are read: one by one, in whole groups, or all for each output."""
        if self.routes is not None:
            return "route"
        if self.channelwise or (self.symmetric and self.groups == 1):
            return "channel"
        return "group" if self.whole_groups else "free"

    @property
    def params(self: Node) -> int:
        """Parameters of all channels."""
        return int(self.outputs * self.params_per_channel)

    def output_size(self: Node, sizes: Mapping[str, Size]) -> Size:
        """That of the first source."""
        return sizes[self.sources[0]]

    def computed(self: Node, needed: Tensor) -> Tensor:
        """Whole groups where `whole_groups`, else what is needed."""
        if not self.whole_groups:
            return needed
        some = _any(needed.unflatten(-1, (self.groups, -1)))
        return some.expand(*some.shape[:-1], self.outputs // self.groups).flatten(-2)

    def cut(self: NodeType, inputs: Sequence[Ids], outputs: Ids) -> NodeType:
        """Return it with fewer outputs, where its inputs follow from these."""
        return self.narrowed(len(outputs))

    def needed_inputs(self: Node, needed: Tensor) -> tuple[Tensor, ...]:
        """A group of outputs of which some are needed needs its group of every source."""
        if self.channelwise:
            return (needed,) * len(self.sources)
        some = _any(needed.unflatten(-1, (self.groups, -1)))
        return tuple(
            some.expand(*some.shape[:-1], channels // self.groups).flatten(-2)
            for channels in self.input_channels
        )


def scaled_channels(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, at least 1."""
    return max(1, round(channels * width))


def _any(needed: Tensor) -> Tensor:
    """Probability that any of the last dimension is needed, (..., 1)."""
    return 1 - (1 - needed).prod(-1, keepdim=True)
