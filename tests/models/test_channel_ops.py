"""Ways to move channels that are faster than torch's own operators give what those give."""

import pytest
import torch
import torch.nn.functional as F

from gatesearch.models.channel_ops import MANY_SLICES, Read, _chosen, together
from gatesearch.models.channel_source import ChannelSlice
from gatesearch.models.nodes.max_pool import pooled

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (5, 4), (6, 7), (9, 9)])
def test_pooling_is_torchs(size, memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 3, *size) - 3).contiguous(memory_format=memory_format)
    x[0, 0, 0, 0] = float("nan")
    with torch.inference_mode():
        ours = pooled(x)
    theirs = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    assert torch.equal(ours.nan_to_num(99), theirs.nan_to_num(99))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("count", [1, 2])
def test_choosing_keeps_values_and_memory_format(count, memory_format) -> None:
    x = torch.randn(count, 5, 3, 4).contiguous(memory_format=memory_format)
    index = torch.tensor([0, 3, 4])
    with torch.inference_mode():
        chosen = _chosen(x, index)
    assert torch.equal(chosen, x[:, index])
    assert chosen.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "piece", [ChannelSlice(tensor=0, start=1, stop=4), ChannelSlice(tensor=0, channels=(0, 3, 4))]
)
def test_gradients_keep_the_memory_format_of_what_was_read(piece, memory_format) -> None:
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format).requires_grad_()
    read = Read((piece,), widths=[5])([x])
    weight = torch.randn(read.shape).contiguous(memory_format=memory_format)
    (gradient,) = torch.autograd.grad((read * weight).sum(), x)
    places = piece.channels or range(piece.start, piece.stop)
    expected = torch.zeros_like(x)
    expected[:, list(places)] = weight
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_of_several_pieces_are_dense(memory_format) -> None:
    tensors = [
        torch.randn(2, channels, 3, 4).contiguous(memory_format=memory_format).requires_grad_()
        for channels in (2, 3)
    ]
    source = tuple(ChannelSlice(tensor=i, start=0, stop=i + 2) for i in range(2))
    weight = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format)
    read = Read(source, widths=[2, 3])(tensors)
    gradients = torch.autograd.grad((read * weight).sum(), tensors)
    for gradient, expected in zip(gradients, weight.split([2, 3], 1), strict=True):
        assert torch.equal(gradient, expected)
        assert gradient.is_contiguous(memory_format=memory_format)


def test_gradients_of_pieces_of_tokens_are_dense() -> None:
    tokens = [torch.randn(2, 5, 3).movedim(1, -1).requires_grad_() for _ in range(2)]
    source = tuple(ChannelSlice(tensor=i, start=0, stop=3) for i in range(2))
    read = Read(source, widths=[3, 3])(tokens)
    for gradient in torch.autograd.grad(read.square().sum(), tokens):
        assert gradient.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("slices", [2 * MANY_SLICES, 2 * MANY_SLICES + 2])
def test_many_slices_are_read_in_their_order(slices, memory_format) -> None:
    """Channels of two tensors that take turns, few slices in one way and many in another."""
    half = slices // 2
    tensors = [
        torch.randn(2, half, 3, 4).contiguous(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    ]
    source = tuple(ChannelSlice(tensor=i % 2, start=i // 2, stop=i // 2 + 1) for i in range(slices))
    read = Read(source, widths=[half, half])(tensors)
    assert torch.equal(read, torch.stack(tensors, 2).flatten(1, 2))
    weight = torch.randn(read.shape)
    gradients = torch.autograd.grad((read * weight).sum(), tensors)
    for gradient, expected in zip(gradients, weight.unflatten(1, (half, 2)).unbind(2), strict=True):
        assert torch.equal(gradient, expected)


def test_many_slices_take_few_operators() -> None:
    """Grouped convolutions read thousands of them, each of which would be an operator."""
    source = tuple(ChannelSlice(tensor=i % 2, start=i, stop=i + 1) for i in range(1000))
    read = Read(source, widths=[1000, 1000])
    with torch.profiler.profile() as profile:
        read([torch.randn(1, 1000, 2, 2)] * 2)
    assert sum(event.count for event in profile.key_averages()) < 50


@pytest.mark.parametrize("memory_format", FORMATS)
def test_pieces_together_keep_the_memory_format_of_images(memory_format) -> None:
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format)
    joined = together([x[:, :2], x[:, 3:]])
    assert torch.equal(joined, torch.cat([x[:, :2], x[:, 3:]], 1))
    assert joined.is_contiguous(memory_format=memory_format)


def test_pieces_of_channels_last_tokens_stay_channels_last() -> None:
    """As attention's fast kernels and linear layers want them."""
    x = torch.randn(2, 5, 4).movedim(-1, 1)
    joined = together([x[:, :1], x[:, 2:]])
    assert torch.equal(joined, torch.cat([x[:, :1], x[:, 2:]], 1))
    assert joined.movedim(1, -1).is_contiguous()
