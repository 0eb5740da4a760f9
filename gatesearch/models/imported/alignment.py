"""Brings two tensors that are added or multiplied to values whose elements meet one by one."""

from dataclasses import replace

from gatesearch.models.imported.builder import Builder, position_runs
from gatesearch.models.imported.layout import (
    CHANNEL_AXIS,
    Axis,
    Factor,
    LayoutError,
    View,
    full_axis,
    length,
    numbers,
)


def aligned(b: Builder, one: View, two: View) -> tuple[str, str, View]:
    """Return the names of values that meet channel by channel and position by position.

    One of them may have 1 position where the other has more.

    Returns:
        Both names, and the layout of the result, over the first value.

    Raises:
        LayoutError: The tensors meet in another way.
    """
    count = max(len(one.axes), len(two.axes))
    one, two = _of_rank(one, count), _of_rank(two, count)
    one, two = _repeated(b, one, two), _repeated(b, two, one)
    if _meet(one, two):
        return one.name, two.name, _larger(one, two)
    larger = [a > b for a, b in zip(one.shape, two.shape, strict=True)]
    smaller = [a < b for a, b in zip(one.shape, two.shape, strict=True)]
    if any(smaller) and any(larger):
        raise LayoutError("each tensor is larger along another axis")
    if any(smaller):
        second, first, view = aligned(b, two, one)
        return first, second, view
    settled = b.settled(one)
    return settled.name, _settled_like(b, two, one, settled), settled


def _repeated(b: Builder, view: View, like: View) -> View:
    """Return a tensor of one channel as one of as many as another has."""
    if view.channels != 1 or like.channels == 1:
        return view
    axis = like.axes.index(full_axis(CHANNEL_AXIS, like.channels))
    name = b.routed(view.name, [0] * like.channels)
    return view.with_channels(name, like.channels, axis)


def _of_rank(view: View, count: int) -> View:
    """Return a tensor with axes of length 1 in front, and none that repeat it."""
    axes = tuple(() if all(not f.stride for f in axis) else axis for axis in view.axes)
    return replace(view, axes=((),) * (count - len(axes)) + axes)


def _meet(one: View, two: View) -> bool:
    """Whether the elements of both values meet as those of the tensors do."""
    if len(one.sizes) != len(two.sizes) or one.channels != two.channels:
        return False
    if any(a != b and 1 not in (a, b) for a, b in zip(one.positions, two.positions, strict=True)):
        return False
    return all(
        a == b or (not (a and b) and all(f.axis >= 2 for f in a + b))
        for a, b in zip(one.axes, two.axes, strict=True)
    )


def _larger(one: View, two: View) -> View:
    sizes = tuple(max(pair) for pair in zip(one.sizes, two.sizes, strict=True))
    return View(one.name, sizes, tuple(a or b for a, b in zip(one.axes, two.axes, strict=True)))


def _settled_like(b: Builder, view: View, like: View, settled: View) -> str:
    """Return the name of a value of a tensor that meets that of a larger one.

    Args:
        b: The builder.
        view: The tensor.
        like: The larger tensor.
        settled: The same, settled.
    """
    channels: list[Factor] = []
    positions: list[Axis] = []
    for axis, wanted in zip(view.axes, like.axes, strict=True):
        mine = [f for f in axis if f.axis == CHANNEL_AXIS]
        missing = length(tuple(f for f in wanted if f.axis == CHANNEL_AXIS)) // length(tuple(mine))
        channels += [*mine, *([Factor(CHANNEL_AXIS, missing, 0)] if missing > 1 else [])]
        runs = len(position_runs([wanted]))
        own = position_runs([axis])
        if len(own) not in (0, runs):
            raise LayoutError
        positions += own or [()] * runs
    positions = positions or [()] * len(settled.positions)
    order = numbers(channels)
    if len(order) != settled.channels:
        raise LayoutError
    stored = sorted((f for f in channels if f.stride), key=lambda f: -f.stride)
    name = b.arranged(view, channels=stored, positions=positions)
    return b.routed(name, order)
