"""Depthwise convolutions, whose backward pass on a processor is slow in bf16 and under dilation.

There oneDNN has no fast kernel for most of them: of 1152 channels, 5x5, dilation 2, on 16 maps of
6x8 (torch 2.15) it takes 48 ms in bf16 and 54 in fp32, and 13 in fp32 without dilation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """What `conv` computes, (B, C, H, W) -> (B, C, H', W').

    With gradients on a processor: in the precision of the weights, and undilated on each of the
    d x d grids of every d-th pixel, which is the same sum.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return conv(x)
    (d, _), (step, _) = conv.dilation, conv.stride
    batch, channels, height, width = x.shape
    with torch.autocast("cpu", enabled=False):
        given = x.to(conv.weight.dtype)
        if d == 1 or step > 1 or height % d or width % d:
            return conv(given).to(x.dtype)
        rows = given.permute(0, 2, 3, 1).reshape(batch, height // d, d, width // d, d, channels)
        grids = rows.permute(0, 2, 4, 5, 1, 3).flatten(0, 2)
        reach = conv.kernel_size[0] // 2
        y = F.conv2d(grids, conv.weight, padding=reach, groups=channels)
        rows = y.unflatten(0, (batch, d, d)).permute(0, 4, 1, 5, 2, 3)
        y = rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return y.to(x.dtype)
