"""How the axes of a recorded tensor are made of the axes of a value of the graph.

A value is (B, C, *positions). A tensor that holds the same elements in another order, as after
`permute`, `reshape` or `flatten`, is no new value but a `View`: each of its axes is a product of
factors of the value's axes. So these functions cost nothing, and attention's heads or a window
partition can be read off the factors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

BATCH_AXIS, CHANNEL_AXIS = 0, 1


@dataclass(frozen=True)
class Factor:
    """Part of an axis of a value: `size` entries, each `stride` entries after the one before.

    Attributes:
        axis: Of the value: 0 the batch, 1 the channels, 2 and up the positions.
        size: Above 1.
        stride: 0 where a tensor repeats the value.
    """

    axis: int
    size: int
    stride: int


# An axis of a tensor, the outermost factor first; empty for an axis of length 1.
Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class View:
    """A tensor that holds the elements of one value of the graph.

    Attributes:
        name: The node, or `INPUT`.
        sizes: (B, C, *positions) of the value.
        axes: The tensor's axes.
    """

    name: str
    sizes: tuple[int, ...]
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the tensor's axes."""
        return tuple(map(length, self.axes))

    @property
    def channels(self) -> int:
        """Channels of the value."""
        return self.sizes[CHANNEL_AXIS]

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the value."""
        return self.sizes[CHANNEL_AXIS + 1 :]

    def of(self, name: str) -> "View":
        """Return the same layout of another value of equal sizes."""
        return replace(self, name=name)

    def with_channels(self, name: str, channels: int, axis: int) -> "View":
        """Return the same layout of a value with other channels, which lie on one axis."""
        axes = list(self.axes)
        axes[axis] = full_axis(CHANNEL_AXIS, channels)
        return View(name, (self.sizes[0], channels, *self.positions), tuple(axes))

    def with_position(self, name: str, position: int, size: int) -> "View":
        """Return the same layout of a value with another length of one axis of positions.

        Args:
            name: The node.
            position: Of the value; one axis of the tensor is all of it, or it has length 1.
            size: Its new length.
        """
        axis = position + 2
        old, new = full_axis(axis, self.sizes[axis]), full_axis(axis, size)
        sizes = (*self.sizes[:axis], size, *self.sizes[axis + 1 :])
        return View(name, sizes, tuple(new if old and a == old else a for a in self.axes))


class LayoutError(Exception):
    """A tensor is no regular arrangement of a value's elements."""


def length(axis: Axis) -> int:
    """Return the length of an axis."""
    return math.prod(factor.size for factor in axis)


def full_axis(axis: int, size: int) -> Axis:
    """Return an axis that is a whole axis of a value."""
    return (Factor(axis, size, 1),) if size > 1 else ()


def whole(name: str, sizes: Sequence[int]) -> View:
    """Return the value itself as a view."""
    return View(name, tuple(sizes), tuple(full_axis(i, size) for i, size in enumerate(sizes)))


def permuted(view: View, order: Sequence[int]) -> View:
    """Reorder the axes: new axis i is the old axis `order[i]`."""
    return replace(view, axes=tuple(view.axes[i] for i in order))


def reshaped(view: View, shape: Sequence[int]) -> View:
    """Regroup the factors into axes of other lengths.

    Args:
        view: The tensor.
        shape: Lengths of the new axes; at most one is -1.

    Raises:
        LayoutError: An axis would hold part of a factor that does not divide.
    """
    total = math.prod(view.shape)
    known = math.prod(n for n in shape if n >= 0)
    sizes = [total // known if n < 0 else n for n in shape]
    factors = [factor for axis in view.axes for factor in axis]
    axes: list[Axis] = []
    for size in sizes:
        axis: list[Factor] = []
        while size > 1:
            if not factors:
                raise LayoutError
            first = factors.pop(0)
            if size % first.size == 0:
                axis.append(first)
                size //= first.size
            elif first.size % size == 0:
                inner = first.size // size
                axis.append(Factor(first.axis, size, first.stride * inner))
                factors.insert(0, Factor(first.axis, inner, first.stride))
                size = 1
            else:
                raise LayoutError
        axes.append(joined(axis))
    if factors:
        raise LayoutError
    return replace(view, axes=tuple(axes))


def joined(factors: Sequence[Factor]) -> Axis:
    """Join neighbouring factors that together are one."""
    axis: list[Factor] = []
    for factor in factors:
        if (
            axis
            and axis[-1].axis == factor.axis
            and (axis[-1].stride == factor.stride * factor.size)
        ):
            axis[-1] = Factor(factor.axis, axis[-1].size * factor.size, factor.stride)
        else:
            axis.append(factor)
    return tuple(axis)


def cut(view: View, axis: int) -> list[Factor]:
    """Return all factors of an axis of the value, the outermost first.

    They are cut finely enough that every axis of the tensor is a product of whole ones.

    Raises:
        LayoutError: The tensor does not hold every entry of the axis once.
    """
    factors = sorted(
        {f for tensor_axis in view.axes for f in tensor_axis if f.axis == axis and f.stride},
        key=lambda f: -f.stride,
    )
    stride = view.sizes[axis]
    for factor in factors:
        if factor.stride * factor.size != stride:
            raise LayoutError
        stride = factor.stride
    if stride != 1:
        raise LayoutError
    return factors


def regrouped(view: View, kept: Sequence[Sequence[Factor]]) -> dict[Factor, Factor]:
    """Return where factors are in a new value whose axes are products of old factors.

    Args:
        view: The old value.
        kept: For each axis of the new value, batch included, old factors, the outermost first.
    """
    places: dict[Factor, Factor] = {}
    for axis, factors in enumerate(kept):
        stride = 1
        for factor in reversed(factors):
            places[factor] = Factor(axis, factor.size, stride)
            stride *= factor.size
    return places


def moved(view: View, name: str, kept: Sequence[Sequence[Factor]]) -> View:
    """Return the same tensor as a view of a new value; see `regrouped`."""
    places = regrouped(view, kept)
    sizes = tuple(math.prod(f.size for f in factors) for factors in kept)
    axes = tuple(
        joined([places[f] if f.stride else f for f in axis if f in places or not f.stride])
        for axis in view.axes
    )
    return View(name, sizes, axes)


def numbers(factors: Sequence[Factor]) -> list[int]:
    """Return the index that each combination of factors stands for, the last factor fastest."""
    ranges = [[i * f.stride for i in range(f.size)] for f in factors]
    return [sum(combination) for combination in product(*ranges)]
