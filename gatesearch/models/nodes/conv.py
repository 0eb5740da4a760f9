"""Convolutions, dense and depthwise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, cast

from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import Channels, ChannelSource, channel_count
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.nodes.node import INPUT, Grouped, Size, scaled_channels
from gatesearch.models.nodes.step import Step, StepName, StepWeights


@dataclass(frozen=True)
class Conv(Grouped):
    """Convolution without bias, batch norm and, if `relu`, ReLU.

    Attributes:
        ceiling: Upper limit of the ReLU, 6 in mobile networks; None for no limit.
        depthwise: Output channel c reads channel c of the source alone; `outputs` equals `inputs`.
        ends_block: Whether a block ends here, for lack of a residual sum.
    """

    name: str
    source: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    ceiling: float | None = None
    depthwise: bool = False
    stage: int = 0
    ends_block: bool = False
    has_weights: ClassVar[bool] = True
    takes_gates: ClassVar[bool] = True
    ends_in_norm: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[str, ...]:
        """The one node read."""
        return (self.source,)

    @property
    def input_channels(self) -> tuple[int, ...]:
        """Channels of the source."""
        return (self.inputs,)

    @property
    def groups(self) -> int:
        """One; each channel is a group of a depthwise convolution."""
        return self.outputs if self.depthwise else 1

    @property
    def params_per_channel(self) -> int:
        """One filter, and the scale and shift of the batch norm."""
        return self._filter_size + 2

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """One filter at every output pixel; the norm and the ReLU are not counted."""
        return self._filter_size * math.prod(sizes[self.name])

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """The padding keeps the size at stride 1."""
        padding, reach = self.dilation * (self.kernel // 2), self.dilation * (self.kernel - 1)
        return tuple(
            (side + 2 * padding - reach - 1) // self.stride + 1 for side in sizes[self.source]
        )

    def build(self) -> ConvNorm:
        """Build convolution, norm and ReLU with fresh weights."""
        return ConvNorm.of(self)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        return cast(Tensor, cast(ConvNorm, layer)(inputs[0]))

    def scaled(self, width: float) -> Self:
        """Return it with both channel counts times `width`, but for the image's."""
        inputs = self.inputs if self.source == INPUT else scaled_channels(self.inputs, width)
        return replace(self, inputs=inputs, outputs=scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with fewer outputs: it reads all inputs, a depthwise one as many as outputs."""
        return replace(self, inputs=outputs if self.depthwise else self.inputs, outputs=outputs)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", source="", stage=0, ends_block=False)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "ConvStep":
        """Return a convolution of some channels with the same kernel."""
        (source,) = sources
        return ConvStep(
            name=name,
            source=source,
            inputs=channel_count(source),
            outputs=outputs,
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            relu=self.relu,
            ceiling=self.ceiling,
            depthwise=self.depthwise,
        )

    @property
    def _filter_size(self) -> int:
        return (1 if self.depthwise else self.inputs) * self.kernel**2


class ConvStep(Step):
    """A convolution, batch norm and, if `relu`, ReLU, in a compact network.

    `ceiling` and `depthwise` have defaults because files written before they existed lack them.
    """

    op: Literal["conv"] = "conv"
    name: StepName
    source: ChannelSource
    inputs: Channels
    outputs: Channels
    kernel: int = Field(ge=1, le=31)
    stride: int = Field(ge=1, le=16)
    dilation: int = Field(ge=1, le=64)
    relu: bool
    ceiling: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    depthwise: bool = False

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels convolved."""
        return (self.source,)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.outputs

    def check(self, widths: Sequence[int]) -> None:
        """Refuse wrong inputs also; see `Step.check`."""
        super().check(widths)
        if self.inputs != channel_count(self.source):
            raise ValueError(f"must have {channel_count(self.source)} inputs, found {self.inputs}")
        if self.depthwise and self.outputs != self.inputs:
            raise ValueError(
                f"a depthwise convolution must have {self.inputs} outputs, found {self.outputs}"
            )

    def add_weights(self, weights: StepWeights) -> None:
        """Add a `ConvNorm`."""
        weights.layers[self.name] = ConvNorm.of(self)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Convolve the channels read."""
        return cast(Tensor, weights.layers[self.name](readers[0](tensors)))

    def again(self, source: ChannelSource) -> "RepeatedConvStep":
        """Return the same convolution, with the same weights, of other channels."""
        return RepeatedConvStep(of=self.name, source=source, outputs=self.outputs)


class RepeatedConvStep(Step):
    """A convolution with the weights of an earlier `ConvStep`, in a compact network.

    Attributes:
        of: Name of that step.
    """

    op: Literal["conv_again"] = "conv_again"
    of: StepName
    source: ChannelSource
    outputs: Channels

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels convolved."""
        return (self.source,)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.outputs

    def check_repeats(self, convs: Mapping[str, ConvStep]) -> None:
        """Refuse a step that does not fit the one whose weights it uses.

        Args:
            convs: Name -> each convolution before it.

        Raises:
            ValueError: It is refused.
        """
        if self.of not in convs:
            raise ValueError(f"must repeat a convolution before it, found {self.of[:100]}")
        first = convs[self.of]
        found, fitting = (channel_count(self.source), self.outputs), (first.inputs, first.outputs)
        if found != fitting:
            raise ValueError(f"must have {fitting} inputs and outputs, found {found}")

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Convolve the channels read."""
        return cast(Tensor, weights.layers[self.of](readers[0](tensors)))
