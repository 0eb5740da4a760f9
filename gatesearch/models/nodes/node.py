"""The protocol of nodes: all that networks, liveness, extraction and costs ask of them."""

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor, nn

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.step import Step

INPUT = "image"

Size = tuple[int, int]  # height, width in pixels


class Node(Protocol):
    """One operation of an encoder, as a frozen dataclass.

    Plain, gated and compact networks, liveness, extraction and costs ask nodes and never test their
    types, so that a new kind of node is one class in a file of its own.
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

        A node without weights is element-wise: equal inputs give equal outputs in any stream.
        """

    @property
    def ends_in_norm(self) -> bool:
        """Whether its module is a `ConvNorm`, with whose batch norm and ReLU gates are fused."""

    @property
    def channelwise(self) -> bool:
        """Whether output channel c is computed from channel c of every source alone."""

    @property
    def params_per_channel(self) -> int:
        """Parameters for each output channel."""

    def macs_per_channel(self, size: Size) -> int:
        """Multiply-adds for each output channel, of an output of `size`."""

    def output_size(self, size: Size) -> Size:
        """Size of the output from that of the first source."""

    def needed_inputs(self, needed: Tensor) -> tuple[Tensor, ...]:
        """Propagate back which channels are needed.

        Args:
            needed: (..., outputs) 0 or 1 for each output channel, or independent probabilities.

        Returns:
            (..., C) for each source.
        """

    def build(self) -> nn.Module | None:
        """Build its module, a `Layer` with fresh weights; None for a node without weights."""

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Compute the node, (B, outputs, H, W), from its sources' values with its module."""

    def scaled(self, width: float) -> Self:
        """Return the node with every channel count but the image's times `width`."""

    def narrowed(self, outputs: int) -> Self:
        """Return the node with fewer outputs, and inputs as a compact network would have them."""

    def anonymous(self) -> Self:
        """Return what decides its latency: equal for nodes that take equally long."""

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> Step:
        """Return the step of a compact network that computes some of its channels.

        Args:
            name: Of the step; weights are kept under it.
            sources: Channels that it reads, for each source.
            outputs: How many channels it computes.
        """


def scaled_channels(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, at least 1."""
    return max(1, round(channels * width))
