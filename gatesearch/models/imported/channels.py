"""Handlers of what moves elements about: shapes, parts of axes, concatenation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gatesearch.models.imported.builder import Builder, Handler, Value
from gatesearch.models.imported.constants import Constant
from gatesearch.models.imported.layout import (
    CHANNEL_AXIS,
    Factor,
    LayoutError,
    View,
    cut,
    numbers,
    permuted,
    reshaped,
)
from gatesearch.models.nodes.position_operations import Roll, Take


def reshape(b: Builder, input: View, *shape: Any, **keywords: Any) -> View:
    """Regroup the axes, as of `view` and `reshape`."""
    return reshaped(input, _listed(shape or tuple(keywords.values())))


def flatten(b: Builder, input: View, start_dim: int = 0, end_dim: int = -1) -> View:
    """Join a run of axes."""
    shape, count = input.shape, len(input.axes)
    start, end = start_dim % count, end_dim % count
    return reshaped(input, [*shape[:start], _product(shape[start : end + 1]), *shape[end + 1 :]])


def unflatten(b: Builder, input: View, dim: int, sizes: Sequence[int]) -> View:
    """Cut an axis."""
    dim %= len(input.axes)
    known = _product([n for n in sizes if n > 0])
    full = [input.shape[dim] // known if n < 0 else n for n in sizes]
    return reshaped(input, [*input.shape[:dim], *full, *input.shape[dim + 1 :]])


def permute(b: Builder, input: View, *dims: Any, **keywords: Any) -> View:
    """Reorder the axes."""
    order = _listed(dims or tuple(keywords.values()))
    return permuted(input, [i % len(input.axes) for i in order])


def transpose(b: Builder, input: View, dim0: int = -1, dim1: int = -2) -> View:
    """Swap two axes."""
    order = list(range(len(input.axes)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permuted(input, order)


def movedim(b: Builder, input: View, source: int, destination: int) -> View:
    """Move one axis."""
    count = len(input.axes)
    order = [i for i in range(count) if i != source % count]
    order.insert(destination % count, source % count)
    return permuted(input, order)


def same(b: Builder, input: Value, *arguments: Any, **keywords: Any) -> Value:
    """The tensor itself, as of `contiguous` or of `dropout` in evaluation mode."""
    return input


def dropout(
    b: Builder, input: View, p: float = 0.5, training: bool = False, inplace: bool = False
) -> View:
    """Nothing, in evaluation mode.

    Raises:
        UsageError: It is on even there.
    """
    if training and p:
        raise b.refused("drops values even in evaluation mode")
    return input


def squeeze(b: Builder, input: View, dim: int | Sequence[int] | None = None) -> View:
    """Drop axes of length 1."""
    count = len(input.axes)
    chosen = range(count) if dim is None else [i % count for i in _listed((dim,))]
    axes = tuple(a for i, a in enumerate(input.axes) if a or i not in chosen)
    return replace(input, axes=axes)


def unsqueeze(b: Builder, input: View, dim: int) -> View:
    """Add an axis of length 1."""
    axes = list(input.axes)
    axes.insert(dim % (len(axes) + 1), ())
    return replace(input, axes=tuple(axes))


def expand(b: Builder, input: View, *sizes: Any) -> View:
    """Repeat axes of length 1."""
    wanted = _listed(sizes)
    added = len(wanted) - len(input.axes)
    axes = [
        (),
    ] * added + list(input.axes)
    for i, size in enumerate(wanted):
        if size > 1 and not axes[i]:
            axes[i] = (Factor(2, size, 0),)
    return replace(input, axes=tuple(axes))


def expand_as(b: Builder, input: View, other: View | Constant) -> View:
    """Repeat axes of length 1."""
    return expand(b, input, tuple(other.shape))


def getitem(b: Builder, input: View, index: Any) -> View:
    """Parts of axes by numbers and slices."""
    index = index if isinstance(index, tuple) else (index,)
    named = sum(item is not None and item is not Ellipsis for item in index)
    position = next((i for i, item in enumerate(index) if item is Ellipsis), len(index))
    fill = (slice(None),) * (len(input.axes) - named)
    index = (*index[:position], *fill, *index[position + 1 :])
    axis = 0
    for item in index:
        if item is None:
            input = unsqueeze(b, input, axis)
        elif isinstance(item, int):
            input = select(b, input, axis, item)
            continue
        elif isinstance(item, slice):
            input = taken(b, input, axis, range(*item.indices(input.shape[axis])))
        else:
            raise b.refused("reads entries by a tensor of their numbers")
        axis += 1
    return input


def select(b: Builder, input: View, dim: int, index: int) -> View:
    """One entry of an axis, without the axis."""
    dim %= len(input.axes)
    index %= input.shape[dim]
    view = taken(b, input, dim, range(index, index + 1))
    return replace(view, axes=(*view.axes[:dim], *view.axes[dim + 1 :]))


def narrow(b: Builder, input: View, dim: int, start: int, length: int) -> View:
    """A run of entries of an axis."""
    return taken(b, input, dim % len(input.axes), range(start, start + length))


def unbind(b: Builder, input: View, dim: int = 0) -> list[View]:
    """Every entry of an axis."""
    return [select(b, input, dim, i) for i in range(input.shape[dim])]


def split(b: Builder, input: View, split_size: int | Sequence[int], dim: int = 0) -> list[View]:
    """Runs of entries of an axis, of one length or of several."""
    dim %= len(input.axes)
    size = input.shape[dim]
    if isinstance(split_size, int):
        split_size = [min(split_size, size - i) for i in range(0, size, split_size)]
    starts = [sum(split_size[:i]) for i in range(len(split_size))]
    return [narrow(b, input, dim, start, n) for start, n in zip(starts, split_size, strict=True)]


def chunk(b: Builder, input: View, chunks: int, dim: int = 0) -> list[View]:
    """Runs of entries of an axis, so many."""
    return split(b, input, -(-input.shape[dim] // chunks), dim)


def taken(b: Builder, view: View, axis: int, kept: range) -> View:
    """Return some entries of an axis of a tensor.

    Channels become a `Route`, positions a `Rearrange`.
    """
    if kept == range(view.shape[axis]):
        return view
    if not kept:
        raise b.refused("makes a tensor without entries")
    factors = view.axes[axis]
    kinds = {f.axis for f in factors}
    if kinds == {CHANNEL_AXIS}:
        return _taken_channels(b, view, axis, kept)
    if kinds and min(kinds) >= 2 and all(f.stride for f in factors):
        view, position = b.position_axis(view, axis)
        start, stop, step = kept.start, kept[-1] + 1, kept.step
        operation = Take(axis=position, start=start, stop=stop, step=step)
        name = b.rearranged(view.name, [operation])
        return view.with_position(name, position, len(kept))
    raise LayoutError("takes a part of images, or of channels and positions together")


def cat(b: Builder, tensors: Sequence[View | Constant], dim: int = 0) -> View:
    """Concatenation of channels; of positions it is a matter of `cat_positions`."""
    first = next(t for t in tensors if isinstance(t, View))
    dim %= len(first.axes)
    on_channels = any(f.axis == CHANNEL_AXIS for f in first.axes[dim])
    if not all(isinstance(t, View) for t in tensors) or not (
        on_channels or (not first.axes[dim] and first.channels == 1)
    ):
        joined: View = b.call("cat_positions", tensors, dim)
        return joined
    views = [b.with_channels_on(t, dim) for t in tensors if isinstance(t, View)]
    if any(_positions(view, dim) != _positions(views[0], dim) for view in views):
        views = [b.settled(view) for view in views]
        if any(_positions(view, dim) != _positions(views[0], dim) for view in views):
            raise LayoutError("joins tensors whose positions differ")
    name = b.joined([view.name for view in views])
    return views[0].with_channels(name, sum(view.channels for view in views), dim)


def roll(
    b: Builder,
    input: View,
    shifts: int | Sequence[int],
    dims: int | Sequence[int],
) -> View:
    """Cyclic shifts of positions."""
    view = input
    for shift, dim in zip(_listed((shifts,)), _listed((dims,)), strict=True):
        if shift:
            view, position = b.position_axis(view, dim % len(view.axes))
            view = view.of(b.rearranged(view.name, [Roll(axis=position, shift=shift)]))
    return view


def channel_shuffle(b: Builder, input: View, groups: int) -> View:
    """Channels of several groups, dealt out in turn."""
    batch, channels, *positions = input.shape
    grouped = reshaped(input, [batch, groups, channels // groups, *positions])
    order = [0, 2, 1, *range(3, len(grouped.axes))]
    return reshaped(permuted(grouped, order), input.shape)


def _taken_channels(b: Builder, view: View, axis: int, kept: range) -> View:
    if len(view.axes[axis]) > 1:
        view = b.with_channels_on(view, axis)
    (mine,) = view.axes[axis]
    factors = cut(view, CHANNEL_AXIS)
    place = factors.index(mine)
    outer, inner = numbers(factors[:place]), numbers(factors[place + 1 :])
    chosen = numbers([mine])
    rows = [o + chosen[i] + c for o in outer for i in kept for c in inner]
    name = b.routed(view.name, rows)

    def new(factor: Factor) -> Factor:
        if factor.axis != CHANNEL_AXIS or factor.stride <= mine.stride:
            return factor
        return replace(factor, stride=factor.stride // mine.size * len(kept))

    axes = [tuple(map(new, a)) for a in view.axes]
    axes[axis] = (replace(mine, size=len(kept)),) if len(kept) > 1 else ()
    return View(name, (view.sizes[0], len(rows), *view.positions), tuple(axes))


def _positions(view: View, axis: int) -> tuple[object, ...]:
    """What tensors that are concatenated have in common: all but the channels."""
    return view.positions, tuple(a for i, a in enumerate(view.axes) if i != axis)


def _listed(sizes: Sequence[Any]) -> list[int]:
    """Return numbers that are given one by one, or as one list."""
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        return [int(n) for n in sizes[0]]
    return [int(n) for n in sizes]


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


HANDLERS: Mapping[str, Handler] = {
    "view": reshape,
    "reshape": reshape,
    "reshape_as": lambda b, input, other: reshaped(input, other.shape),
    "view_as": lambda b, input, other: reshaped(input, other.shape),
    "flatten": flatten,
    "unflatten": unflatten,
    "permute": permute,
    "transpose": transpose,
    "swapaxes": transpose,
    "T": transpose,
    "mT": transpose,
    "t": lambda b, input: transpose(b, input, 0, 1),
    "movedim": movedim,
    "moveaxis": movedim,
    "contiguous": same,
    "clone": same,
    "detach": same,
    "to": same,
    "float": same,
    "type_as": same,
    "data": same,
    "identity": same,
    "dropout": dropout,
    "dropout2d": dropout,
    "dropout3d": dropout,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "expand_as": expand_as,
    "__getitem__": getitem,
    "select": select,
    "narrow": narrow,
    "unbind": unbind,
    "split": split,
    "split_with_sizes": split,
    "tensor_split": chunk,
    "chunk": chunk,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "roll": roll,
    "channel_shuffle": channel_shuffle,
}
