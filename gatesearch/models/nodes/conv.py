"""Convolutions: dense, grouped and depthwise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gatesearch.errors import UsageError
from gatesearch.models.channel_source import Channels, ChannelSource, channel_count
from gatesearch.models.conv_norm import BareConv, ConvNorm, both, conv_layer
from gatesearch.models.nodes.layered import Layered, LayeredStep
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.step import Ids, StepWeights

Kernel = Annotated[int, Field(ge=1, le=127)]
Padding = Annotated[int, Field(ge=0, le=1024)]


@dataclass(frozen=True)
class Conv(Layered):
    """Convolution, batch norm if `norm` and, if `relu`, ReLU.

    Attributes:
        kernel: Height and width of the kernel; one number if they are equal.
        ceiling: Upper limit of the ReLU, 6 in mobile networks; None for no limit.
        depthwise: Output channel c reads channel c of the source alone; `outputs` equals `inputs`.
        ends_block: Whether a block ends here, for lack of a residual sum.
        norm: Whether a batch norm follows the convolution.
        bias: Whether the convolution has a bias.
        split: Number of groups of a grouped convolution; 1 for a dense or a depthwise one.
        padding: Pixels added at each border; None for as many as keep the size at stride 1.
    """

    name: str
    source: str
    inputs: int
    outputs: int
    kernel: int | tuple[int, int]
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    ceiling: float | None = None
    depthwise: bool = False
    stage: int = 0
    ends_block: bool = False
    norm: bool = True
    bias: bool = False
    split: int = 1
    padding: int | tuple[int, int] | None = None
    takes_gates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.inputs % self.split or self.outputs % self.split:
            raise UsageError(
                f"{self.name}: a grouped convolution must have whole groups of channels, found "
                f"{self.inputs} inputs and {self.outputs} outputs in {self.split} groups; leave "
                "model.width at 1"
            )

    @property
    def groups(self) -> int:
        """One or `split`; each channel is a group of a depthwise convolution."""
        return self.outputs if self.depthwise else self.split

    @property
    def whole_groups(self) -> bool:  # type: ignore[override]
        """Whether it is a grouped convolution."""
        return self.split > 1

    @property
    def ends_in_norm(self) -> bool:  # type: ignore[override]
        """Whether it has a norm."""
        return self.norm

    @property
    def params_per_channel(self) -> int:
        """One filter, its bias, and the scale and shift of the batch norm."""
        return self._filter_size + self.bias + 2 * self.norm

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """One filter at every output pixel; the norm and the ReLU are not counted."""
        return self._filter_size * math.prod(sizes[self.name])

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """The default padding keeps the size at stride 1."""
        kernel, dilation = both(self.kernel), self.dilation
        padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
        padding = padding if self.padding is None else both(self.padding)
        return tuple(
            (side + 2 * pad - dilation * (width - 1) - 1) // self.stride + 1
            for side, pad, width in zip(sizes[self.source], padding, kernel, strict=True)
        )

    def build(self) -> ConvNorm | BareConv:
        """Build convolution, norm and ReLU with fresh weights."""
        return conv_layer(self)

    def narrowed(self, outputs: int) -> Self:
        """Return it with fewer outputs: it reads all inputs, a depthwise one as many as outputs.

        Of a grouped one as many whole groups are left as hold so many outputs.
        """
        if self.split == 1:
            return replace(self, inputs=outputs if self.depthwise else self.inputs, outputs=outputs)
        outputs_each, inputs_each = self.outputs // self.split, self.inputs // self.split
        kept = -(-outputs // outputs_each)
        return replace(self, inputs=kept * inputs_each, outputs=kept * outputs_each, split=kept)

    def cut(self, inputs: Sequence[Ids], outputs: Ids) -> Self:
        """Return it with the inputs and outputs that are kept, whole groups of a grouped one."""
        split = len(outputs) * self.split // self.outputs if self.split > 1 else 1
        return replace(self, inputs=len(inputs[0]), outputs=len(outputs), split=split)

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
            norm=self.norm,
            bias=self.bias,
            split=outputs * self.split // self.outputs if self.split > 1 else 1,
            padding=self.padding,
        )

    @property
    def _filter_size(self) -> int:
        return (1 if self.depthwise else self.inputs // self.split) * math.prod(both(self.kernel))


class ConvStep(LayeredStep):
    """A convolution, its batch norm and, if `relu`, ReLU, in a compact network.

    The last fields have defaults because files written before they existed lack them. Those since
    `norm` are written only where they differ from their defaults, as such files are.
    """

    op: Literal["conv"] = "conv"
    kernel: Kernel | tuple[Kernel, Kernel]
    stride: int = Field(ge=1, le=16)
    dilation: int = Field(ge=1, le=64)
    relu: bool
    ceiling: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    depthwise: bool = False
    norm: bool = True
    bias: bool = False
    split: Channels = 1
    padding: Padding | tuple[Padding, Padding] | None = None

    def check(self, widths: Sequence[int]) -> None:
        """Refuse impossible groups also; see `Step.check`."""
        super().check(widths)
        if self.depthwise and self.outputs != self.inputs:
            raise ValueError(
                f"a depthwise convolution must have {self.inputs} outputs, found {self.outputs}"
            )
        if self.inputs % self.split or self.outputs % self.split:
            raise ValueError(
                f"must have whole groups of channels, found {self.inputs} inputs and "
                f"{self.outputs} outputs in {self.split} groups"
            )

    @property
    def channel_groups(self) -> int:
        """One or `split`; each channel is a group of a depthwise convolution."""
        return self.outputs if self.depthwise else self.split

    @property
    def whole_groups(self) -> bool:  # type: ignore[override]
        """Whether it is a grouped convolution."""
        return self.split > 1

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return it with some of its outputs, whole groups of them."""
        step = super().narrowed(sources=sources, outputs=outputs)
        return step.model_copy(update={"split": self.split * len(outputs) // self.outputs or 1})

    def add_weights(self, weights: StepWeights) -> None:
        """Add its module."""
        weights.layers[self.name] = conv_layer(self)

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table: dict[str, Any] = serialize(self)
        for name in ("norm", "bias", "split", "padding"):
            if getattr(self, name) == type(self).model_fields[name].default:
                table.pop(name, None)
        return table
