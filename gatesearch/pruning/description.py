"""All of a compact network except its weights, as plain numbers.

It is a list of steps over numbered tensors, so that JSON and a safetensors file rebuild the network
without the supernet or the study.
"""

from typing import Annotated, Literal

from pydantic import Field

from gatesearch.models.channel_source import (
    Channels,
    ChannelSource,
    channel_count,
    check_source,
)
from gatesearch.models.model_factory import OWN
from gatesearch.models.nodes import IMAGE_CHANNELS, ConvStep, NodeStep, RepeatedConvStep
from gatesearch.pruning.mix import MOST_TASKS, MixStep
from gatesearch.pruning.pointwise import PointwiseStep
from gatesearch.strict import Strict

# Bounds of a network in a file. With 20 tasks a ResNet-50 has at most 1,500 steps that read
# 3 million channels.
MOST_STEPS = 20_000
MOST_LISTED = 2**23

AnyStep = Annotated[NodeStep | MixStep | PointwiseStep, Field(discriminator="op")]


class HeadDescription(Strict):
    """A task's head and the features it reads.

    Attributes:
        source: The features.
        kind: A name in `gatesearch.models.heads.HEADS`, or `own` for a user's module, which no
            description can rebuild.
        inputs: Channels of the features.
        channels: Channels inside the head; None for a user's module.
        outputs: Channels of its prediction; None for a user's module.
    """

    source: ChannelSource
    kind: str
    inputs: Channels
    channels: Channels | None
    outputs: Channels | None


class Description(Strict):
    """A compact network. Tensor 0 is the image, tensor i + 1 the output of step i."""

    format: Literal[1] = 1
    steps: tuple[AnyStep, ...] = Field(max_length=MOST_STEPS)
    heads: dict[str, HeadDescription] = Field(min_length=1, max_length=MOST_TASKS)

    @property
    def widths(self) -> list[int]:
        """Channels of every tensor."""
        return [IMAGE_CHANNELS, *(step.width for step in self.steps)]

    def check(self) -> None:
        """Refuse a description, as it was read from a file, whose numbers contradict one another.

        Only then may a network be built from it: it takes bounded time and memory.

        Raises:
            ValueError: It is refused.
        """
        widths, listed, names = [IMAGE_CHANNELS], 0, set()
        convs: dict[str, ConvStep] = {}
        for index, step in enumerate(self.steps):
            try:
                step.check(widths)
                if isinstance(step, RepeatedConvStep):
                    step.check_repeats(convs)
            except ValueError as error:
                raise ValueError(f"steps.{index}: {error}") from error
            widths.append(step.width)
            listed += step.listed
            name = getattr(step, "name", None)
            if name is not None and name in names:
                raise ValueError(f"steps.{index}: names must be unique, found {name[:100]} again")
            names.add(name)
            if isinstance(step, ConvStep):
                convs[step.name] = step
        for task, head in self.heads.items():
            try:
                check_source(head.source, widths)
            except ValueError as error:
                raise ValueError(f"heads.{task[:100]}: {error}") from error
            listed += channel_count(head.source)
            if head.kind != OWN and (head.channels is None or head.outputs is None):
                raise ValueError(
                    f"heads.{task[:100]}: channels and outputs must be numbers, found none for "
                    f"kind {head.kind[:100]}"
                )
            if head.inputs != channel_count(head.source):
                raise ValueError(
                    f"heads.{task[:100]}: must have {channel_count(head.source)} inputs, found "
                    f"{head.inputs}"
                )
        if listed > MOST_LISTED:
            raise ValueError(f"must read at most {MOST_LISTED:,} channels, found {listed:,}")

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
