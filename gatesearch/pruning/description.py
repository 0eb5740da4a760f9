"""All of a compact network except its weights, as plain numbers.

It is a list of steps over numbered tensors, so that JSON and a safetensors file rebuild the network
without the supernet or the study.
"""

from typing import Annotated, Literal

from pydantic import Field

from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes import NodeStep
from gatesearch.pruning.mix import MixStep
from gatesearch.strict import Strict

FORMAT = 1
IMAGE_CHANNELS = 3

AnyStep = Annotated[NodeStep | MixStep, Field(discriminator="op")]


class HeadDescription(Strict):
    """A task's head and the features it reads."""

    source: ChannelSource
    kind: str
    inputs: int
    channels: int
    outputs: int


class Description(Strict):
    """A compact network. Tensor 0 is the image, tensor i + 1 the output of step i."""

    format: Literal[1] = 1
    steps: tuple[AnyStep, ...]
    heads: dict[str, HeadDescription]

    @property
    def widths(self) -> list[int]:
        """Channels of every tensor."""
        return [IMAGE_CHANNELS, *(step.width for step in self.steps)]

    def unread_after(self) -> list[list[int]]:
        """For each step, the tensors that no later step or head reads."""
        last: dict[int, int] = {}
        for index, step in enumerate(self.steps):
            for source in step.sources:
                last |= dict.fromkeys((piece.tensor for piece in source), index)
        for head in self.heads.values():
            for piece in head.source:
                last.pop(piece.tensor, None)
        unread: list[list[int]] = [[] for _ in self.steps]
        for tensor, index in last.items():
            unread[index].append(tensor)
        return unread
