"""A convolution with its batch norm and ReLU, or without a norm."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from gatesearch.models.activation import rectified
from gatesearch.models.depthwise import depthwise
from gatesearch.models.frozen_conv import convolved_frozen, passes_gradients_alone
from gatesearch.models.layer import LayerSlice


class ConvShape(Protocol):
    """A description of a `ConvNorm`: a node of a graph, or a step of a compact network."""

    @property
    def inputs(self) -> int:
        """Input channels."""

    @property
    def outputs(self) -> int:
        """Output channels."""

    @property
    def kernel(self) -> int | tuple[int, int]:
        """Height and width of the kernel; one number if they are equal."""

    @property
    def stride(self) -> int:
        """Input pixels for each output pixel."""

    @property
    def dilation(self) -> int:
        """Pixels between the kernel's entries."""

    @property
    def relu(self) -> bool:
        """Whether a ReLU follows the norm."""

    @property
    def ceiling(self) -> float | None:
        """Upper limit of the ReLU; None for no limit."""

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads the input channel of the same index alone."""

    @property
    def norm(self) -> bool:
        """Whether a batch norm follows the convolution."""

    @property
    def bias(self) -> bool:
        """Whether the convolution has a bias."""

    @property
    def split(self) -> int:
        """Number of groups of a grouped convolution."""

    @property
    def padding(self) -> int | tuple[int, int] | None:
        """Pixels added at each border; None for as many as keep the size at stride 1."""


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if `relu`, ReLU up to `ceiling`.

    Initialised as torchvision's ResNets: Kaiming normal by fan-out, unit norms.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        ceiling: float | None = None,
        depthwise: bool = False,
        split: int = 1,
        bias: bool = False,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.conv = _conv(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=inputs if depthwise else split,
            bias=bias,
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.relu, self.ceiling = relu, ceiling

    @classmethod
    def of(cls, shape: ConvShape) -> "ConvNorm":
        """Build the module that a node or a step describes."""
        return cls(
            shape.inputs,
            shape.outputs,
            shape.kernel,
            stride=shape.stride,
            dilation=shape.dilation,
            relu=shape.relu,
            ceiling=shape.ceiling,
            depthwise=shape.depthwise,
            split=shape.split,
            bias=shape.bias,
            padding=shape.padding,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        x = self.bn(self.convolved(x))
        return rectified(x, self.ceiling) if self.relu else x

    def convolved(self, x: Tensor) -> Tensor:
        """Compute the convolution alone."""
        return _convolved(x, self.conv)

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger `ConvNorm`s, one slice after the other."""
        layers = [cast(ConvNorm, part.layer) for part in slices]
        copy_filters(self.conv, [layer.conv for layer in layers], slices)
        for name in ("weight", "bias", "running_mean", "running_var"):
            rows = [
                getattr(layer.bn, name)[part.outputs]
                for layer, part in zip(layers, slices, strict=True)
            ]
            getattr(self.bn, name).copy_(torch.cat(rows))
        self.bn.eps, self.bn.momentum = layers[0].bn.eps, layers[0].bn.momentum


class BareConv(nn.Module):
    """Convolution and, if `relu`, ReLU up to `ceiling`, without a norm."""

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        self.conv = _conv(
            shape.inputs,
            shape.outputs,
            shape.kernel,
            stride=shape.stride,
            padding=shape.padding,
            dilation=shape.dilation,
            groups=shape.inputs if shape.depthwise else shape.split,
            bias=shape.bias,
        )
        self.relu, self.ceiling = shape.relu, shape.ceiling

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        x = _convolved(x, self.conv)
        return rectified(x, self.ceiling) if self.relu else x

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger layers of this kind, one slice after the other."""
        copy_filters(self.conv, [cast(BareConv, part.layer).conv for part in slices], slices)


def conv_layer(shape: ConvShape) -> ConvNorm | BareConv:
    """Build the module that a node or a step describes, with a norm or without."""
    return ConvNorm.of(shape) if shape.norm else BareConv(shape)


def both(sides: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width, of which one number may stand for both."""
    return (sides, sides) if isinstance(sides, int) else sides


def _conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int,
    padding: int | tuple[int, int] | None,
    dilation: int,
    groups: int,
    bias: bool,
) -> nn.Conv2d:
    sides = both(kernel)
    if padding is None:
        padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
    conv = nn.Conv2d(
        inputs,
        outputs,
        sides,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    if not conv.weight.is_meta:  # drawing nothing takes torch seconds to set up
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute a convolution, in the way that is fastest and takes the least memory."""
    if conv.groups == 1 and conv.bias is None and passes_gradients_alone(x, conv):
        return convolved_frozen(x, conv)
    return depthwise(x, conv) if conv.groups > 1 else cast(Tensor, conv(x))


def copy_filters(
    target: nn.Conv2d, convs: Sequence[nn.Conv2d], slices: Sequence[LayerSlice]
) -> None:
    """Copy rows and columns of larger convolutions, and their biases, one after the other."""
    pairs = list(zip(convs, slices, strict=True))
    target.weight.copy_(
        torch.cat([conv.weight[part.outputs][:, part.inputs] for conv, part in pairs])
    )
    if target.bias is not None:
        target.bias.copy_(torch.cat([cast(Tensor, conv.bias)[p.outputs] for conv, p in pairs]))
