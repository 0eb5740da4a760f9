"""Convolutions with frozen weights that gradients pass through.

torch keeps a convolution's input for the gradient of its weight even where nobody asks for that.
"""

from typing import Any

import torch
from torch import Tensor, nn


def passes_gradients_alone(x: Tensor, conv: nn.Conv2d) -> bool:
    """Tell whether `convolved_frozen` saves memory: gradients are wanted of the input alone."""
    return torch.is_grad_enabled() and x.requires_grad and not conv.weight.requires_grad


def convolved_frozen(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute a convolution without bias, (B, C, H, W) -> (B, C', H', W'), and keep no input."""
    y: Tensor = _Frozen.apply(x, conv.weight, conv)
    return y


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
        y: Tensor = nn.functional.conv2d(
            x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        ctx.save_for_backward(weight)
        ctx.conv, ctx.dtype, ctx.shape, ctx.strides = conv, x.dtype, x.shape, x.stride()
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        conv, weight = ctx.conv, weight.to(grad.dtype)
        # Only its shape and layout are read.
        x = torch.empty_strided(ctx.shape, ctx.strides, dtype=grad.dtype, device=grad.device)
        found: Tensor = torch.ops.aten.convolution_backward(
            grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0],
            conv.groups, [True, False, False],
        )[0]  # fmt: skip
        return found.to(ctx.dtype), None, None
