"""Handlers of element-wise functions, sums and products."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gatesearch.models.imported.alignment import aligned
from gatesearch.models.imported.builder import Builder, Handler, Value
from gatesearch.models.imported.constants import Constant
from gatesearch.models.imported.layout import CHANNEL_AXIS, Factor, View, cut, full_axis
from gatesearch.models.nodes import (
    Activation,
    Add,
    DropPath,
    Multiply,
    PositionEmbedding,
    Scale,
    Shift,
)

Number = int | float


def activation(b: Builder, input: View, function: str, *arguments: float) -> View:
    """Add an element-wise function of one value."""
    numbers = tuple(map(float, arguments))
    node = Activation(b.new_name(function), input.name, input.channels, function, numbers)
    return input.of(b.add(node))


def of_name(name: str) -> Handler:
    """Return the handler of a function without numbers."""

    def handle(b: Builder, input: View, *_: Any, **keywords: Any) -> View:
        return activation(b, input, name)

    return handle


def gelu(b: Builder, input: View, approximate: str = "none") -> View:
    """GELU, exact or by tanh."""
    return activation(b, input, "gelu" if approximate == "none" else "gelu_tanh")


def leaky_relu(
    b: Builder, input: View, negative_slope: float = 0.01, inplace: bool = False
) -> View:
    """Leaky ReLU."""
    return activation(b, input, "leaky_relu", negative_slope)


def elu(b: Builder, input: View, alpha: float = 1.0, *_: Any, **keywords: Any) -> View:
    """ELU."""
    return activation(b, input, "elu", alpha)


def softplus(b: Builder, input: View, beta: float = 1.0, threshold: float = 20.0) -> View:
    """Softplus."""
    return activation(b, input, "softplus", beta, threshold)


def hardtanh(
    b: Builder, input: View, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> View:
    """Values cut off on both sides."""
    return activation(b, input, "hardtanh", min_val, max_val)


def clamp(b: Builder, input: View, min: float | None = None, max: float | None = None) -> View:
    """Values cut off on one side or both."""
    infinity = float("inf")
    if min is not None and max is None:
        return activation(b, input, "relu") if min == 0 else activation(b, input, "clamp", min)
    return activation(b, input, "clamp", -infinity if min is None else min, float(max or 0))


def drop_path(b: Builder, input: View, probability: float) -> View:
    """Stochastic depth, image by image."""
    return input.of(b.add(DropPath(b.new_name(), input.name, input.channels, probability)))


def add(b: Builder, input: Value, other: Value, *, alpha: Number = 1) -> Value:
    """Sum of two values, or of a value and what does not depend on the image."""
    if alpha != 1:
        other = multiply(b, other, alpha)
    if not isinstance(input, View):
        input, other = other, input
    if isinstance(other, View):
        one, two, view = aligned(b, input, other)
        return view.of(b.add(Add(b.new_name(), one, two, view.channels, relu=False)))
    if isinstance(other, Constant):
        number = b.number(other)
        if number is None:
            return b.call("add_constant", input, other)
        other = number
    return input if other == 0 else activation(b, input, "add", other)


def subtract(b: Builder, input: Value, other: Value, *, alpha: Number = 1) -> Value:
    """Difference, as the sum with the negative."""
    if isinstance(input, Number) and isinstance(other, View):
        return add(b, multiply(b, other, -alpha), input)
    return add(b, input, multiply(b, other, -alpha))


def multiply(b: Builder, input: Value, other: Value) -> Value:
    """Product of two values, or of a value and what does not depend on the image."""
    if not isinstance(input, View):
        input, other = other, input
    if isinstance(input, Constant):
        return input.map(lambda x: x * other)
    if not isinstance(input, View):
        return input * other
    if isinstance(other, View):
        one, two, view = aligned(b, input, other)
        return view.of(b.add(Multiply(b.new_name(), one, two, view.channels)))
    if isinstance(other, Constant):
        number = b.number(other)
        if number is None:
            return b.call("multiply_constant", input, other)
        other = number
    return input if other == 1 else activation(b, input, "multiply", other)


def divide(b: Builder, input: Value, other: Value, **keywords: Any) -> Value:
    """Quotient."""
    if isinstance(other, Constant):
        return multiply(b, input, other.map(torch.reciprocal))
    if isinstance(other, View):
        return multiply(b, input, activation(b, other, "power", -1.0))
    return activation(b, input, "divide", other)


def power(b: Builder, input: View, exponent: Number) -> View:
    """Power of a fixed exponent."""
    return activation(b, input, "power", exponent)


def add_constant(b: Builder, input: View, constant: Constant) -> View:
    """Sum with a parameter: of each channel, or of each position too."""
    if varies_by_position(b, input, constant):
        weights = {"weight": by_channel(input, constant, positions=True)}
        node = PositionEmbedding(
            b.new_name(), input.name, input.channels, positions=input.positions
        )
        return input.of(b.add(node, weights))
    shift = Shift(b.new_name(), input.name, input.channels)
    return input.of(b.add(shift, {"bias": by_channel(input, constant)}))


def multiply_constant(b: Builder, input: View, constant: Constant) -> View:
    """Product with a parameter of each channel."""
    if varies_by_position(b, input, constant):
        raise b.refused("scales every position by a parameter of its own")
    scale = Scale(b.new_name(), input.name, input.channels)
    return input.of(b.add(scale, {"weight": by_channel(input, constant)}))


def varies_by_position(b: Builder, view: View, constant: Constant) -> bool:
    """Whether a constant that a tensor meets differs between positions.

    Raises:
        UsageError: It differs between images.
    """
    shape = (1,) * (len(view.axes) - len(constant.shape)) + constant.shape
    axes = [axis for axis, size in zip(view.axes, shape, strict=True) if size > 1]
    if any(f.axis == 0 for axis in axes for f in axis):
        value = constant.compute(b.state)
        alone = axes[0] == view.axes[0] == full_axis(0, view.sizes[0])
        if not alone or not value.eq(value[:1]).all():
            raise b.refused("meets the images of a batch with a parameter each")
    return any(f.axis >= 2 for axis in axes for f in axis)


def by_channel(view: View, constant: Constant, *, positions: bool = False) -> Constant:
    """Return a constant that a tensor meets as (C,) or (C, *positions) of the tensor's value."""
    factors = [f for axis in view.axes for f in axis]
    kept: list[Factor] = cut(view, CHANNEL_AXIS)
    sizes = [view.channels]
    if positions:
        kept = [*kept, *(f for i in range(2, len(view.sizes)) for f in cut(view, i))]
        sizes += view.positions
    dropped = [i for i, f in enumerate(factors) if f not in kept]
    order = [i for i in range(len(factors)) if i not in dropped]
    order = [order.index(factors.index(f)) for f in kept]

    def ordered(x: Tensor) -> Tensor:
        cells = x.expand(view.shape).reshape([f.size for f in factors])
        for i in reversed(dropped):
            cells = cells.select(i, 0)
        return cells.permute(order).reshape(sizes).contiguous()

    return constant.map(ordered)


_SAME_NAME = [
    "abs",
    "celu",
    "exp",
    "hardsigmoid",
    "hardswish",
    "log",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "sqrt",
    "tanh",
]

HANDLERS: Mapping[str, Handler] = {
    **{name: of_name(name) for name in _SAME_NAME},
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "softplus": softplus,
    "hardtanh": hardtanh,
    "clamp": clamp,
    "drop_path": drop_path,
    "clamp_min": clamp,
    "add": add,
    "__add__": add,
    "__radd__": add,
    "__iadd__": add,
    "sub": subtract,
    "subtract": subtract,
    "rsub": lambda b, input, other: subtract(b, other, input),
    "__rsub__": lambda b, input, other: subtract(b, other, input),
    "neg": lambda b, input: activation(b, input, "multiply", -1.0),
    "mul": multiply,
    "multiply": multiply,
    "__mul__": multiply,
    "__rmul__": multiply,
    "__imul__": multiply,
    "div": divide,
    "true_divide": divide,
    "__truediv__": divide,
    "pow": power,
    "__pow__": power,
    "square": lambda b, input: activation(b, input, "power", 2.0),
    "reciprocal": lambda b, input: activation(b, input, "power", -1.0),
    "rsqrt": lambda b, input: activation(b, input, "power", -0.5),
    "add_constant": add_constant,
    "multiply_constant": multiply_constant,
}
