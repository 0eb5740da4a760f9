"""What a compact network is but for its weights, as plain numbers.

A straight list of steps over numbered tensors, so that JSON and a safetensors file rebuild the
network without the supernet, the study or any code of theirs.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelSlice(_Strict):
    """Channels of one tensor: a run of them, or a list where they do not lie in a run."""

    tensor: int = Field(ge=0)
    start: int = Field(default=0, ge=0)
    stop: int = Field(default=0, ge=0)
    channels: tuple[int, ...] | None = None


ChannelSource = tuple[ChannelSlice, ...]
Places = Sequence[tuple[int, int]]  # (tensor, channel) of each channel


class ConvStep(_Strict):
    """A convolution, batch norm and, if asked, ReLU on gathered channels.

    What networks of before depthwise convolutions do not say has a default.
    """

    op: Literal["conv"] = "conv"
    name: str
    source: ChannelSource
    inputs: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    relu: bool
    ceiling: float | None = None
    depthwise: bool = False


class AddStep(_Strict):
    """A sum of gathered channels and, if asked, its ReLU."""

    op: Literal["add"] = "add"
    left: ChannelSource
    right: ChannelSource
    relu: bool = True


class PoolStep(_Strict):
    """The 3x3 max-pooling of stride 2 of a ResNet's stem."""

    op: Literal["maxpool"] = "maxpool"
    source: ChannelSource


class Term(_Strict):
    """What one task adds to a run of a mix's channels."""

    task: int = Field(ge=0)
    source: ChannelSource
    start: int = Field(ge=0)
    stop: int = Field(ge=0)


class MixStep(_Strict):
    """Σ_t w_t x_t channel by channel; the weights, (tasks, channels), lie with the network's.

    The first term covers all channels, the others those on which their task differs.
    """

    op: Literal["mix"] = "mix"
    name: str
    terms: tuple[Term, ...] = Field(min_length=1)
    tasks: int
    channels: int


Step = Annotated[ConvStep | AddStep | PoolStep | MixStep, Field(discriminator="op")]


class HeadDescription(_Strict):
    """A task's head and the features it reads."""

    source: ChannelSource
    kind: str
    inputs: int
    channels: int
    outputs: int


class Description(_Strict):
    """All of a compact network but its weights. Tensor 0 is the image, tensor i + 1 step i's."""

    format: Literal[1] = 1
    steps: tuple[Step, ...]
    heads: dict[str, HeadDescription]


def sources(step: Step) -> list[ChannelSource]:
    """What a step reads, one gather after the other."""
    if isinstance(step, AddStep):
        return [step.left, step.right]
    if isinstance(step, MixStep):
        return [term.source for term in step.terms]
    return [step.source]


def places(gather: ChannelSource) -> Places:
    """Where each of its channels lies."""
    return [
        (piece.tensor, channel)
        for piece in gather
        for channel in (piece.channels or range(piece.start, piece.stop))
    ]


def widths_of(description: Description) -> list[int]:
    """Channels of every tensor, the image first."""
    widths = [3]
    for step in description.steps:
        if isinstance(step, ConvStep):
            widths.append(step.outputs)
        elif isinstance(step, MixStep):
            widths.append(step.channels)
        else:
            widths.append(len(places(sources(step)[0])))
    return widths


def last_reads(description: Description) -> list[list[int]]:
    """Step -> tensors that no later step or head reads."""
    last: dict[int, int] = {}
    for index, step in enumerate(description.steps):
        for gather in sources(step):
            last |= dict.fromkeys((piece.tensor for piece in gather), index)
    for head in description.heads.values():
        for piece in head.source:
            last.pop(piece.tensor, None)
    dead: list[list[int]] = [[] for _ in description.steps]
    for tensor, index in last.items():
        dead[index].append(tensor)
    return dead
