"""All of a compact network except its weights, as plain numbers.

It is a list of steps over numbered tensors, so that JSON and a safetensors file rebuild the network
without the supernet or the study.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gatesearch.models.channel_source import (
    Channels,
    ChannelSource,
    channel_count,
    check_source,
)
from gatesearch.models.heads import HEADS, Feature, reads_stages
from gatesearch.models.model_factory import OWN, HeadSpec, OwnHead
from gatesearch.models.nodes import IMAGE_CHANNELS, NodeStep, RepeatedStep
from gatesearch.pruning.mix import MOST_TASKS, MixStep
from gatesearch.pruning.pointwise import PointwiseStep
from gatesearch.strict import Strict

# Bounds of a network in a file. With 20 tasks a ResNet-50 has at most 1,500 steps that read
# 3 million channels.
MOST_STEPS = 20_000
MOST_LISTED = 2**23
MOST_FEATURES = 64

Stride = Annotated[int, Field(ge=1, le=64)]
AnyStep = Annotated[NodeStep | MixStep | PointwiseStep, Field(discriminator="op")]


class EarlierFeature(Strict):
    """A map that a head reads before the last one.

    Attributes:
        source: Its channels.
        inputs: Number of these.
        stride: Input resolution divided by the map's.
    """

    source: ChannelSource
    inputs: Channels
    stride: Stride


class HeadDescription(Strict):
    """A task's head and the features it reads.

    Attributes:
        source: The features: the channels of the last map.
        kind: A name in `gatesearch.models.heads.HEADS`, or `own` for a user's module, which no
            description can rebuild.
        inputs: Channels of the last map.
        channels: Channels inside the head; None for a user's module.
        outputs: Channels of its prediction; None for a user's module.
        stride: Input resolution divided by the last map's; None, and not written, for a head that
            reads this map alone.
        earlier: The maps before the last one; not written for such a head.
    """

    source: ChannelSource
    kind: str
    inputs: Channels
    channels: Channels | None
    outputs: Channels | None
    stride: Stride | None = None
    earlier: tuple[EarlierFeature, ...] = Field(default=(), max_length=MOST_FEATURES)

    @classmethod
    def of(cls, spec: HeadSpec | OwnHead, sources: Sequence[ChannelSource]) -> "HeadDescription":
        """Describe a head.

        Args:
            spec: How it is built.
            sources: Channels of each map that it reads, in order.
        """
        *before, last = spec.features or (None,)
        earlier = tuple(
            EarlierFeature(source=source, inputs=feature.channels, stride=feature.stride)
            for feature, source in zip(before, sources[:-1], strict=True)
            if feature is not None
        )
        return cls(
            source=sources[-1],
            kind=spec.kind,
            inputs=spec.inputs,
            channels=spec.channels,
            outputs=spec.outputs,
            stride=None if last is None else last.stride,
            earlier=earlier,
        )

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """Channels of each map that it reads, in order."""
        return (*(feature.source for feature in self.earlier), self.source)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels of each map."""
        return (*(feature.inputs for feature in self.earlier), self.inputs)

    @property
    def features(self) -> tuple[Feature, ...]:
        """Every map that it reads, as `HeadSpec` has them."""
        if self.stride is None:
            return ()
        strides = (*(feature.stride for feature in self.earlier), self.stride)
        return tuple(Feature(*pair) for pair in zip(self.widths, strides, strict=True))

    @model_serializer(mode="wrap")
    def _without_defaults(self, whole: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what a head that reads the last map alone does not have."""
        written: dict[str, object] = whole(self)
        if self.stride is None:
            del written["stride"], written["earlier"]
        return written


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
        layers: dict[str, AnyStep] = {}
        for index, step in enumerate(self.steps):
            try:
                step.check(widths)
                if isinstance(step, RepeatedStep):
                    step.check_repeats(layers)
            except ValueError as error:
                raise ValueError(f"steps.{index}: {error}") from error
            widths.append(step.width)
            listed += step.listed
            name = getattr(step, "name", None)
            if name is not None and name in names:
                raise ValueError(f"steps.{index}: names must be unique, found {name[:100]} again")
            names.add(name)
            if name is not None and len(step.sources) == 1 and not isinstance(step, MixStep):
                layers[name] = step
        for task, head in self.heads.items():
            try:
                for source in head.sources:
                    check_source(source, widths)
            except ValueError as error:
                raise ValueError(f"heads.{task[:100]}: {error}") from error
            listed += sum(map(channel_count, head.sources))
            if head.kind != OWN and (head.channels is None or head.outputs is None):
                raise ValueError(
                    f"heads.{task[:100]}: channels and outputs must be numbers, found none for "
                    f"kind {head.kind[:100]}"
                )
            for inputs, source in zip(head.widths, head.sources, strict=True):
                if inputs != channel_count(source):
                    raise ValueError(
                        f"heads.{task[:100]}: must have {channel_count(source)} inputs, found "
                        f"{inputs}"
                    )
            if head.kind in HEADS and reads_stages(HEADS[head.kind]) != (head.stride is not None):
                raise ValueError(
                    f"heads.{task[:100]}: a head of kind {head.kind} must have "
                    f"{'a stride' if head.stride is None else 'no stride, and read one map'}"
                )
            if head.stride is None and head.earlier:
                raise ValueError(
                    f"heads.{task[:100]}: must have a stride, as it reads several maps"
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
            for piece in chain(*head.sources):
                last.pop(piece.tensor, None)
        unread: list[list[int]] = [[] for _ in self.steps]
        for tensor, index in last.items():
            unread[index].append(tensor)
        return unread
