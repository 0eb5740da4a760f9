"""Channels in another order: concatenation, split, chunk, slices and shuffles of channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, Never, Self

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.channel_ops import together
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.step import Ids

# Channels in more runs than this are read by a list of their numbers.
MOST_RUNS = 16


@dataclass(frozen=True)
class Route:
    """Channels of some nodes in a chosen order, without computing anything.

    Attributes:
        sources: Names of the nodes read; their positions are equal.
        input_channels: Channels of each source.
        routes: (source, channel) that each output is; a channel may be left out or repeated.
    """

    name: str
    sources: tuple[str, ...]
    input_channels: tuple[int, ...]
    routes: tuple[tuple[int, int], ...]
    stage: int = 0
    ends_block: bool = False
    stride: ClassVar[int] = 1
    has_weights: ClassVar[bool] = False
    takes_gates: ClassVar[bool] = False
    ends_in_norm: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False
    drops_images: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    groups: ClassVar[int] = 1
    whole_groups: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False
    coupling: ClassVar[Literal["route"]] = "route"
    params_per_channel: ClassVar[int] = 0
    params: ClassVar[int] = 0

    @property
    def outputs(self) -> int:
        """Number of channels routed."""
        return len(self.routes)

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """None: nothing is computed."""
        return 0

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """That of every source."""
        return sizes[self.sources[0]]

    def computed(self, needed: Tensor) -> Tensor:
        """What is needed."""
        return needed

    def needed_inputs(self, needed: Tensor) -> tuple[Tensor, ...]:
        """A channel of a source is needed where an output that it is routed to is."""
        needs = []
        for source, channels in enumerate(self.input_channels):
            outputs = [i for i, (read, _) in enumerate(self.routes) if read == source]
            index = torch.tensor([self.routes[i][1] for i in outputs], device=needed.device)
            not_needed = needed.new_ones(*needed.shape[:-1], channels)
            index = index.long().expand(*needed.shape[:-1], -1)
            needs.append(
                1 - not_needed.scatter_reduce(-1, index, 1 - needed[..., outputs], reduce="prod")
            )
        return tuple(needs)

    def build(self) -> None:
        """There is nothing to build."""

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Read the channels."""
        if len(self.runs) <= MOST_RUNS * len(self.sources):
            pieces = [inputs[source][:, start:stop] for source, start, stop in self.runs]
            return pieces[0] if len(pieces) == 1 else together(pieces)
        offsets = [sum(self.input_channels[:i]) for i in range(len(self.sources))]
        index = [offsets[source] + channel for source, channel in self.routes]
        whole = inputs[0] if len(inputs) == 1 else together(inputs)
        return whole.index_select(1, torch.tensor(index, device=whole.device))

    def scaled(self, width: float) -> Self:
        """Refuse: which channels are meant at another width is not known.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"a network that splits, joins or shuffles channels must have its own width, found "
            f"model.width = {width} at {self.name}; leave it at 1"
        )

    def narrowed(self, outputs: int) -> Self:
        """Return its first outputs."""
        return replace(self, routes=self.routes[:outputs])

    def cut(self, inputs: Sequence[Ids], outputs: Ids) -> Self:
        """Return the route of the channels that are kept, by their new numbers."""
        new = [{channel: i for i, channel in enumerate(kept.tolist())} for kept in inputs]
        routes = (self.routes[output] for output in outputs.tolist())
        return replace(
            self,
            input_channels=tuple(map(len, inputs)),
            routes=tuple((source, new[source][channel]) for source, channel in routes),
        )

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        sources = ("",) * len(self.sources)
        return replace(self, name="", sources=sources, stage=0, ends_block=False)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> Never:
        """Refuse: readers of routed channels read the sources themselves."""
        raise NotImplementedError("a route has no step: its readers read its sources")

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(source, start, stop) of the runs of consecutive channels that the outputs are."""
        runs: list[tuple[int, int, int]] = []
        for source, channel in self.routes:
            if runs and runs[-1][0] == source and runs[-1][2] == channel:
                runs[-1] = (source, runs[-1][1], channel + 1)
            else:
                runs.append((source, channel, channel + 1))
        return tuple(runs)


def concatenation(name: str, sources: Sequence[str], channels: Sequence[int]) -> Route:
    """Return the route of all channels of several nodes, one node after the other."""
    routes = tuple((source, c) for source, n in enumerate(channels) for c in range(n))
    return Route(name, tuple(sources), tuple(channels), routes)
