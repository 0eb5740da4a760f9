"""What a module adds to the scores of attention, as a bias by position."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gatesearch.models.imported.builder import Builder
from gatesearch.models.imported.constants import Constant, entry
from gatesearch.models.nodes import PositionBias


def position_bias(
    b: Builder, terms: Sequence[Constant]
) -> tuple[PositionBias | None, dict[str, Constant]]:
    """Return the bias that terms of scores are, and the weights of its table.

    One term reads a parameter by a constant index; others are constant masks.

    Args:
        b: The builder.
        terms: Each (heads, N, M) or (heads, windows, N, M).

    Raises:
        UsageError: They are something else.
    """
    learned = [term for term in terms if _tables(b, term)]
    masks = [term.compute(b.state) for term in terms if term not in learned]
    mask = torch.stack(torch.broadcast_tensors(*masks)).sum(0) if masks else None
    if mask is not None and not mask.any():
        mask = None
    if not learned and mask is None:
        return None, {}
    if len(learned) != 1:
        raise b.refused("adds to scores more than one table of biases, or a mask without one")
    index, rows, table = _table(b, learned[0])
    regions, masked = (None, -100.0) if mask is None else _regions(b, mask)
    bias = PositionBias(rows=rows, index=index, regions=regions, masked=masked)
    return bias, {"table": table}


def _table(b: Builder, term: Constant) -> tuple[tuple[tuple[int, ...], ...], int, Constant]:
    """Return index, rows and table of a term that reads a parameter by numbers.

    The term is computed from a parameter whose entries are their own numbers.
    """
    name, *others = _tables(b, term)
    if others:
        raise b.refused("computes biases of scores from several parameters")
    shape = b.state[name].shape
    entries = torch.arange(b.state[name].numel(), dtype=torch.float64).reshape(shape)
    read = term.compute({**b.state, name: entries})
    heads, tokens, keys = read.shape[0], *read.shape[-2:]
    read = read.reshape(heads, -1, tokens, keys)
    numbers, rows = read[:, 0].round().long(), entries.numel() // heads
    head = torch.arange(heads)[:, None, None]
    if (numbers == read.movedim(1, 0)).all():
        for by_head in (False, True):
            index = numbers - head * rows if by_head else (numbers - head) // heads
            same = index + head * rows if by_head else index * heads + head
            if (same == numbers).all() and (index == index[:1]).all() and int(index.min()) >= 0:
                table = entry(name, b.state[name]).map(partial(_rows, heads, by_head))
                return tuple(map(tuple, index[0].tolist())), rows, table
    raise b.refused("computes biases of scores otherwise than by reading a table")


def _rows(heads: int, by_head: bool, parameter: Tensor) -> Tensor:
    """Return a parameter as a table (rows, heads)."""
    if by_head:
        return parameter.reshape(heads, -1).t().contiguous()
    return parameter.reshape(-1, heads)


def _regions(b: Builder, mask: Tensor) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Return regions (windows, N) that a mask (heads, windows, N, N) hides from one another."""
    hidden = mask != 0
    masked = float(mask.min())
    if mask.dim() == 4 and (mask == mask[:1]).all() and (mask[hidden] == masked).all():
        # The first token that each one sees names its region.
        labels = (~hidden[0]).long().argmax(-1)
        if ((labels[:, :, None] != labels[:, None, :]) == hidden[0]).all() and masked < 0:
            return tuple(map(tuple, labels.tolist())), masked
    raise b.refused("adds a mask to scores that does not hide regions from one another")


def _tables(b: Builder, term: Constant) -> list[str]:
    """Return the parameters that a term is computed from; indices are whole numbers."""
    return [name for name in term.names if b.state[name].is_floating_point()]
