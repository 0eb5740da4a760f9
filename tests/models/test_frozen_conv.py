"""Convolutions with frozen weights compute the same, and keep no input."""

import pytest
import torch
from torch import nn

from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.frozen_conv import convolved_frozen, passes_gradients_alone


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_the_same_to_the_bit(stride, dilation, memory, bf16) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3, stride, dilation, dilation, bias=False).requires_grad_(False)
    conv = conv.to(memory_format=memory)
    image = torch.randn(2, 6, 9, 8).contiguous(memory_format=memory)
    found = []
    for compute in (conv, lambda x: convolved_frozen(x, conv)):
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = compute(x)
        (y.float() ** 2).sum().backward()
        found.append((y.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_it_is_used_where_gradients_pass_and_weights_are_frozen() -> None:
    layer = ConvNorm(3, 4, 3).requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    assert not passes_gradients_alone(x, layer.conv)
    x.requires_grad_()
    kept: list[tuple[int, ...]] = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.convolved(x)
    assert kept == [(4, 3, 3, 3)]
    with torch.no_grad():
        assert not passes_gradients_alone(x, layer.conv)
    layer.requires_grad_(True)
    assert not passes_gradients_alone(x, layer.conv)
