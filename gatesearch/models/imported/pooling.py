"""Handlers of pooling, means over positions, and resizing."""

from collections.abc import Mapping, Sequence
from typing import Any

from gatesearch.models.imported.builder import Builder, Handler
from gatesearch.models.imported.layout import View
from gatesearch.models.nodes import Interpolate, MaxPool, Pool, Windows

Sides = int | Sequence[int]


def max_pool2d(
    b: Builder,
    input: View,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    dilation: Sides = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> View:
    """Maxima over windows."""
    if _both(dilation) != (1, 1) or return_indices:
        raise b.refused("takes dilated windows or returns indices")
    source = b.as_map(input)
    channels = b.sizes[source][1]
    shape = _both(kernel_size), _both(stride or kernel_size), _both(padding)
    if shape == ((3, 3), (2, 2), (1, 1)):
        return b.value(b.add(MaxPool(b.new_name(), source, channels, ceil_mode=ceil_mode)))
    windows = Windows(
        kind="max", kernel=shape[0], strides=shape[1], padding=shape[2], ceil_mode=ceil_mode
    )
    return b.value(b.add(Pool(b.new_name(), source, channels, windows)))


def avg_pool2d(
    b: Builder,
    input: View,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> View:
    """Averages over windows."""
    if divisor_override is not None:
        raise b.refused("divides by a number of its own")
    source = b.as_map(input)
    windows = Windows(
        kind="average",
        kernel=_both(kernel_size),
        strides=_both(stride or kernel_size),
        padding=_both(padding),
        ceil_mode=ceil_mode,
        count_padding=count_include_pad,
    )
    return b.value(b.add(Pool(b.new_name(), source, b.sizes[source][1], windows)))


def adaptive(kind: str) -> Handler:
    """Return the handler of averages or maxima over a fixed number of windows."""

    def handle(b: Builder, input: View, output_size: Any, return_indices: bool = False) -> View:
        source = b.as_map(input)
        positions = b.sizes[source][2:]
        wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * 2
        divide = tuple(n or side for n, side in zip(wanted, positions, strict=True))
        if divide == positions:
            return b.value(source)
        windows = Windows.model_validate({"kind": kind, "divide": divide})
        return b.value(b.add(Pool(b.new_name(), source, b.sizes[source][1], windows)))

    return handle


def over_positions(kind: str) -> Handler:
    """Return the handler of means or maxima over all positions."""

    def handle(
        b: Builder, input: View, dim: Any = None, keepdim: bool = False, **keywords: Any
    ) -> View:
        count = len(input.axes)
        dims = [dim] if isinstance(dim, int) else list(range(count) if dim is None else dim)
        chosen = {i % count for i in dims}
        kept = [axis for i, axis in enumerate(input.axes) if i not in chosen]
        if any(f.axis < 2 for i in chosen for f in input.axes[i]):
            raise b.refused("reduces channels or images, and nodes positions")
        if any(f.axis >= 2 for axis in kept for f in axis):
            raise b.refused("reduces some positions, and nodes all of them")
        name, ones = input.name, (1,) * len(input.positions)
        if input.positions != ones:
            windows = Windows.model_validate({"kind": kind, "divide": ones})
            name = b.add(Pool(b.new_name(), name, input.channels, windows))
        axes = [() if i in chosen else axis for i, axis in enumerate(input.axes)]
        return View(name, (*input.sizes[:2], *ones), tuple(axes if keepdim else kept))

    return handle


def interpolate(
    b: Builder,
    input: View,
    size: Sides | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> View:
    """A map resized."""
    modes = ("nearest", "nearest-exact", "bilinear", "bicubic")
    if mode not in modes or antialias:
        raise b.refused(
            f"resizes by {mode}{' with antialiasing' * antialias}, and nodes by {', '.join(modes)}"
        )
    source = b.as_map(input)
    fixed = None if size is None else _both(size)
    scales = {scale_factor} if isinstance(scale_factor, int | float) else set(scale_factor or (1,))
    if len(scales) > 1:
        raise b.refused("scales height and width differently")
    if fixed == b.sizes[source][2:]:
        return b.value(source)
    node = Interpolate(
        b.new_name(), source, b.sizes[source][1], mode,  # type: ignore[arg-type]
        size=fixed, scale=float(scales.pop()), align_corners=align_corners,
    )  # fmt: skip
    return b.value(b.add(node))


def _both(sides: Any) -> tuple[int, int]:
    if isinstance(sides, int):
        return (sides, sides)
    height, width = sides if len(sides) == 2 else (*sides, *sides)
    return (height, width)


HANDLERS: Mapping[str, Handler] = {
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "adaptive_avg_pool2d": adaptive("average"),
    "adaptive_max_pool2d": adaptive("max"),
    "mean": over_positions("average"),
    "amax": over_positions("max"),
    "interpolate": interpolate,
}
