"""How a compact network reads channels of stored tensors.

Convolutions of a compact network are as fast as their multiply-adds let one expect; moving channels
is where it loses time, so inference on a processor does it in ways of its own.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatesearch.models.channel_source import (
    ChannelSlice,
    ChannelSource,
    Positions,
    channel_count,
    channel_positions,
)

Tensors = Sequence[Tensor | None]

# Slices of a tensor, on average, from which on channels are faster read one by one.
MANY_SLICES = 4
# Slices that exported programs read by an operator each at most.
MOST_EXPORTED = 16


class Indexed(nn.Module):
    """Channels of stored tensors, by one index over all of these tensors.

    Sources of many slices are read this way, and in exported programs those of several: it takes
    few operators, and none that writes into a part of a tensor.
    """

    def __init__(self, positions: Positions, widths: Sequence[int]) -> None:
        super().__init__()
        self.tensors = sorted({tensor for tensor, _ in positions})
        offsets, total = {}, 0
        for tensor in self.tensors:
            offsets[tensor] = total
            total += widths[tensor]
        index = torch.tensor([offsets[tensor] + channel for tensor, channel in positions])
        self.register_buffer("index", index, persistent=False)

    def forward(self, tensors: Tensors) -> Tensor:
        """Read (B, C, *positions)."""
        chosen = [cast(Tensor, tensors[tensor]) for tensor in self.tensors]
        x = chosen[0] if len(chosen) == 1 else together(chosen)
        if torch.compiler.is_exporting():
            return x.index_select(1, self.get_buffer("index"))
        return _chosen(x, self.get_buffer("index"))


class Read(nn.Module):
    """Channels of stored tensors as one tensor, without a copy if they are one run of one tensor.

    Attributes:
        source: The channels.
        in_place: Whether they are read without a copy.
    """

    def __init__(self, source: ChannelSource, widths: Sequence[int]) -> None:
        super().__init__()
        self.source = source
        self.in_place = len(source) == 1 and source[0].channels is None
        self.indexed = Indexed(channel_positions(source), widths) if len(source) > 2 else None
        tensors = {piece.tensor for piece in source}
        self.scattered = len(source) > MANY_SLICES * len(tensors)
        copied = sum(channel_count((piece,)) for piece in source if not _is_whole(piece, widths))
        joined = sum(widths[tensor] for tensor in tensors) if len(tensors) > 1 else 0
        self.exported_indexed = len(source) > MOST_EXPORTED or joined <= copied
        for i, piece in enumerate(source):
            if piece.channels is not None:
                self.register_buffer(f"index{i}", torch.tensor(piece.channels), persistent=False)

    def forward(self, tensors: Tensors) -> Tensor:
        """Read (B, C, *positions)."""
        if self.indexed and self.exported_indexed and torch.compiler.is_exporting():
            return cast(Tensor, self.indexed(tensors))
        pieces = self.pieces(tensors)
        if len(pieces) == 1:
            return pieces[0]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            pieces = [cast(Tensor, _DenseGradient.apply(piece)) for piece in pieces]
        return together(pieces)

    def pieces(self, tensors: Tensors) -> list[Tensor]:
        """Read one tensor (B, C, *positions) for each slice of the source; one of many slices."""
        if self.scattered and self.indexed is not None:
            return [self.indexed(tensors)]
        return [self._piece(i, piece, tensors) for i, piece in enumerate(self.source)]

    def _piece(self, i: int, piece: ChannelSlice, tensors: Tensors) -> Tensor:
        x = cast(Tensor, tensors[piece.tensor])
        if piece.channels is not None:
            return _chosen(x, self.get_buffer(f"index{i}"))
        return x if piece.stop - piece.start == x.shape[1] else _run(x, piece.start, piece.stop)


def _is_whole(piece: ChannelSlice, widths: Sequence[int]) -> bool:
    """Whether a slice is all of its tensor."""
    return piece.channels is None and piece.stop - piece.start == widths[piece.tensor]


class _DenseGradient(torch.autograd.Function):
    """The same tensor, whose gradient is copied if it is a slice of another.

    Torch's backward pass of batch norm is many times slower for slices.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.last = not x.is_contiguous()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.movedim(1, -1).contiguous().movedim(-1, 1) if ctx.last else grad.contiguous()


def together(pieces: Sequence[Tensor]) -> Tensor:
    """Concatenate channels, (B, C, *positions), in the memory format of the first piece.

    Torch does so for images only; of channels-last tokens it makes ones in the other format.
    """
    exported_image = torch.compiler.is_exporting() and pieces[0].dim() > 3
    if pieces[0].stride(1) != 1 or exported_image:
        return torch.cat(list(pieces), 1)
    return torch.cat([piece.movedim(1, -1) for piece in pieces], -1).movedim(-1, 1)


def in_inference(x: Tensor) -> bool:
    """Whether x is on a processor, without gradients and outside compilation.

    Then tensors may be overwritten and ways other than torch's own operators are faster.
    """
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not plain and x.device.type == "cpu"


def _chosen(x: Tensor, index: Tensor) -> Tensor:
    """Channels (B, C, *positions) by their numbers, in x's memory format."""
    if x.is_contiguous():
        return x.index_select(1, index)
    # Of a channels-last tensor index_select makes one in the other format, ten times slower, and
    # its gradient too, which slows everything further back.
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    # Sizes by `shape`: an exported program keeps those as they vary, and not what `len` gives.
    taken = rows.gather(1, index.expand(rows.shape[0], -1))
    return taken.view(x.shape[0], *x.shape[2:], index.shape[0]).movedim(-1, 1)


def _run(x: Tensor, start: int, stop: int) -> Tensor:
    """Channels (B, C, *positions) from start to stop, not copied; gradients are in x's format."""
    if x.is_contiguous():
        return x[:, start:stop]
    return x.movedim(1, -1)[..., start:stop].movedim(-1, 1)


def at_positions(values: Tensor, x: Tensor) -> Tensor:
    """View values of channels, (..., C), so that they meet x, (B, C, *positions)."""
    return values[(..., *(None,) * (x.dim() - 2))]
