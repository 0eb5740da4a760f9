"""A convolution with its batch norm and ReLU."""

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
    def kernel(self) -> int:
        """Height and width of the kernel."""

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


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if `relu`, ReLU up to `ceiling`.

    Initialised as torchvision's ResNets: Kaiming normal by fan-out, unit norms.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        ceiling: float | None = None,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=inputs if depthwise else 1,
            bias=False,
        )
        if not self.conv.weight.is_meta:  # drawing nothing takes torch seconds to set up
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
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
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        x = self.bn(self.convolved(x))
        return rectified(x, self.ceiling) if self.relu else x

    def convolved(self, x: Tensor) -> Tensor:
        """Compute the convolution alone."""
        if self.conv.groups == 1 and passes_gradients_alone(x, self.conv):
            return convolved_frozen(x, self.conv)
        return depthwise(x, self.conv) if self.conv.groups > 1 else cast(Tensor, self.conv(x))

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over channels of larger `ConvNorm`s, one slice after the other."""
        layers = [cast(ConvNorm, part.layer) for part in slices]
        self.conv.weight.copy_(
            torch.cat(
                [
                    layer.conv.weight[part.outputs][:, part.inputs]
                    for layer, part in zip(layers, slices, strict=True)
                ]
            )
        )
        for name in ("weight", "bias", "running_mean", "running_var"):
            rows = [
                getattr(layer.bn, name)[part.outputs]
                for layer, part in zip(layers, slices, strict=True)
            ]
            getattr(self.bn, name).copy_(torch.cat(rows))
        self.bn.eps, self.bn.momentum = layers[0].bn.eps, layers[0].bn.momentum
