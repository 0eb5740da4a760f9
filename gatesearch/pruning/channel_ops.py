"""How a compact network moves channels: reads of stored tensors, sums, mixes, pooling.

Convolutions of a compact network are as fast as their multiply-adds let one expect; what this file
does is what it loses, and inference on a processor is given ways of its own.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.pruning.description import ChannelSlice, ChannelSource, MixStep, Places, places

Tensors = Sequence[Tensor | None]


class Indexed(nn.Module):
    """Channels of stored tensors by one index over them all.

    Exported programs read so what lies in many pieces: they hold few operators, and none that
    writes into a part of a tensor.
    """

    def __init__(self, places: Places, widths: Sequence[int]) -> None:
        super().__init__()
        self.tensors = sorted({tensor for tensor, _ in places})
        offsets, total = {}, 0
        for tensor in self.tensors:
            offsets[tensor] = total
            total += widths[tensor]
        index = torch.tensor([offsets[tensor] + channel for tensor, channel in places])
        self.register_buffer("index", index, persistent=False)

    def forward(self, tensors: Tensors) -> Tensor:
        """(B, C, H, W)."""
        chosen = [cast(Tensor, tensors[tensor]) for tensor in self.tensors]
        x = chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)
        return x.index_select(1, self.get_buffer("index"))


class WholeMix(nn.Module):
    """A mix over all channels for every task, as exported programs compute it."""

    def __init__(self, step: MixStep, widths: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(Indexed(row, widths) for row in _whole_rows(step))
        adds = torch.zeros(step.tasks, step.channels)
        for term in step.terms:
            adds[term.task, term.start : term.stop] = 1
        self.register_buffer("adds", adds, persistent=False)

    def forward(self, tensors: Tensors, weights: Tensor) -> Tensor:
        """(B, C, H, W)."""
        # Where a task adds nothing its row reads some channel, which then weighs nothing.
        weights = (weights * self.get_buffer("adds"))[..., None, None]
        parts = [row(tensors) * w for row, w in zip(self.rows, weights, strict=True)]
        return torch.stack(parts).sum(0)


class Read(nn.Module):
    """Channels of stored tensors as one tensor, without a copy where they lie in one run."""

    def __init__(self, gather: ChannelSource, widths: Sequence[int]) -> None:
        super().__init__()
        self.gather = gather
        # Whether what is read lies in one run and is not copied.
        self.in_place = len(gather) == 1 and gather[0].channels is None
        self.indexed = Indexed(places(gather), widths) if len(gather) > 2 else None
        for i, piece in enumerate(gather):
            if piece.channels is not None:
                self.register_buffer(f"index{i}", torch.tensor(piece.channels), persistent=False)

    def forward(self, tensors: Tensors) -> Tensor:
        """(B, C, H, W)."""
        if self.indexed is not None and torch.compiler.is_exporting():
            return cast(Tensor, self.indexed(tensors))
        pieces = self.pieces(tensors)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    def pieces(self, tensors: Tensors) -> list[Tensor]:
        """The parts that it is put together from."""
        return [self._piece(i, piece, tensors) for i, piece in enumerate(self.gather)]

    def _piece(self, i: int, piece: ChannelSlice, tensors: Tensors) -> Tensor:
        x = cast(Tensor, tensors[piece.tensor])
        if piece.channels is not None:
            return _chosen(x, self.get_buffer(f"index{i}"))
        return x if piece.stop - piece.start == x.shape[1] else _run(x, piece.start, piece.stop)


def _in_inference(x: Tensor) -> bool:
    """Whether nothing but the result counts, and on a processor."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not plain and x.device.type == "cpu"


def _chosen(x: Tensor, index: Tensor) -> Tensor:
    """Channels (B, C, H, W) by their numbers, in x's memory format."""
    if x.is_contiguous():
        return x.index_select(1, index)
    # Of a channels-last tensor that makes one in the other format, ten times slower, and such a
    # gradient, which slows all that it goes back through.
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    taken = rows.gather(1, index.expand(len(rows), -1))
    return taken.view(len(x), *x.shape[2:], len(index)).permute(0, 3, 1, 2)


def _run(x: Tensor, start: int, stop: int) -> Tensor:
    """Channels (B, C, H, W) from start to stop, not copied; the gradient is in x's format."""
    if x.is_contiguous():
        return x[:, start:stop]
    return x.permute(0, 2, 3, 1)[..., start:stop].permute(0, 3, 1, 2)


def pooled(x: Tensor) -> Tensor:
    """3x3 max-pooling of stride 2 and padding 1."""
    if not _in_inference(x) or not x.is_contiguous():
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    # torch's kernel for this format looks at nine values one by one; maxima of whole rows, then of
    # columns, are vectorised: six times as fast.
    return _halved(_halved(x, 2), 3)


def _halved(x: Tensor, dim: int) -> Tensor:
    """Maxima of places 2i - 1 to 2i + 1 along one dimension."""
    size = x.shape[dim]
    odd = x[:, :, 1::2] if dim == 2 else x[..., 1::2]
    even = x[:, :, ::2] if dim == 2 else x[..., ::2]
    most = even.clone()
    behind = most.narrow(dim, 0, size // 2)
    torch.maximum(behind, odd, out=behind)
    before = most.narrow(dim, 1, most.shape[dim] - 1)
    torch.maximum(before, odd.narrow(dim, 0, most.shape[dim] - 1), out=before)
    return most


def added(left: Read, right: Read, tensors: Tensors) -> Tensor:
    """The sum of two reads, one of them piece by piece where the other is a copy of its own."""
    if left.in_place:
        left, right = right, left
    if left.in_place or not _in_inference(cast(Tensor, tensors[left.gather[0].tensor])):
        return left(tensors) + right(tensors)
    total, at = left(tensors), 0
    for piece in right.pieces(tensors):
        total[:, at : at + piece.shape[1]].add_(piece)
        at += piece.shape[1]
    return total


def mixed(step: MixStep, weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W) of a mix from its weights, (T, C), and what its terms read."""
    weights = weights[..., None, None].to(terms[0].dtype)
    first, *others = step.terms
    total = terms[0] * weights[first.task]
    for term, x in zip(others, terms[1:], strict=True):
        run = slice(term.start, term.stop)
        total[:, run].addcmul_(x, weights[term.task, run])
    return total


def _whole_rows(step: MixStep) -> list[Places]:
    """For every task what it adds to all channels; some channel where it adds nothing."""
    first = places(step.terms[0].source)
    rows = [[first[0]] * step.channels for _ in range(step.tasks)]
    for term in step.terms:
        rows[term.task][term.start : term.stop] = places(term.source)
    return list(rows)
