"""Handlers of layers with weights: convolutions, linear layers and norms."""

from collections.abc import Mapping, Sequence

import torch

from gatesearch.models.imported.builder import Builder, Handler
from gatesearch.models.imported.constants import Constant, combined
from gatesearch.models.imported.layout import CHANNEL_AXIS, View, full_axis
from gatesearch.models.nodes import (
    BatchNorm,
    Conv,
    GlobalResponseNorm,
    GroupNorm,
    LayerNorm,
    Linear,
)
from gatesearch.models.nodes.position_operations import Pad

# ε of the batch norms of all nodes.
EPS = 1e-5


def conv2d(
    b: Builder,
    input: View,
    weight: Constant,
    bias: Constant | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> View:
    """Convolution of a map."""
    source = b.as_map(input)
    outputs, _, *kernel = weight.shape
    inputs = b.sizes[source][CHANNEL_AXIS]
    step, reach = _one(b, stride), _one(b, dilation)
    kept = tuple(reach * (side // 2) for side in kernel)
    depthwise = groups == inputs == outputs and groups > 1
    if padding == "same" and any(reach * (side - 1) % 2 for side in kernel):
        raise b.refused("pads one side more than the other")
    if isinstance(padding, str):
        padding = kept if padding == "same" else 0
    around = (padding, padding) if isinstance(padding, int) else tuple(padding)
    name = b.new_name()
    weights = {"conv.weight": weight}
    if bias is not None:
        weights["conv.bias"] = bias
    node = Conv(
        name, source, inputs, outputs, _same(kernel), stride=step, dilation=reach, relu=False,
        norm=False, bias=bias is not None, depthwise=depthwise, split=1 if depthwise else groups,
        padding=None if around == kept else _same(around),
    )  # fmt: skip
    return b.value(b.add(node, weights))


def linear(b: Builder, input: View, weight: Constant, bias: Constant | None = None) -> View:
    """W x + b along the last axis, at every position."""
    axis = len(input.axes) - 1
    view = b.with_channels_on(input, axis)
    outputs = weight.shape[0]
    node = Linear(b.new_name(), view.name, view.channels, outputs, bias=bias is not None)
    weights = {"linear.weight": weight}
    if bias is not None:
        weights["linear.bias"] = bias
    return view.with_channels(b.add(node, weights), outputs, axis)


def batch_norm(
    b: Builder,
    input: View,
    running_mean: Constant | None,
    running_var: Constant | None,
    weight: Constant | None = None,
    bias: Constant | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> View:
    """Batch norm over axis 1, with running statistics."""
    if training or running_mean is None or running_var is None:
        raise b.refused("norms by the statistics of the batch even in evaluation mode")
    view = b.with_channels_on(input, 1)
    if weight is None:
        weight = running_var.map(torch.ones_like)
    if bias is None:
        bias = running_mean.map(torch.zeros_like)
    if eps != EPS:
        weight = combined(
            lambda w, var: w * ((var + EPS) / (var + eps)).sqrt(), weight, running_var
        )
    weights = {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
        "num_batches_tracked": running_mean.map(lambda mean: torch.zeros((), dtype=torch.long)),
    }
    return view.of(b.add(BatchNorm(b.new_name(), view.name, view.channels), weights))


def layer_norm(
    b: Builder,
    input: View,
    normalized_shape: Sequence[int],
    weight: Constant | None = None,
    bias: Constant | None = None,
    eps: float = 1e-5,
) -> View:
    """Layer norm over the channels, on the last axis."""
    if len(normalized_shape) != 1:
        raise b.refused(f"norms over {len(normalized_shape)} axes, and nodes over the channels")
    view = b.with_channels_on(input, len(input.axes) - 1)
    weights = _affine(weight, bias, view.channels)
    node = LayerNorm(b.new_name(), view.name, view.channels, eps=eps, affine=bool(weights))
    return view.of(b.add(node, weights))


def group_norm(
    b: Builder,
    input: View,
    num_groups: int,
    weight: Constant | None = None,
    bias: Constant | None = None,
    eps: float = 1e-5,
) -> View:
    """Group norm over axis 1."""
    view = b.with_channels_on(input, 1)
    weights = _affine(weight, bias, view.channels)
    node = GroupNorm(
        b.new_name(), view.name, view.channels, split=num_groups, eps=eps, affine=bool(weights)
    )
    return view.of(b.add(node, weights))


def global_response_norm(b: Builder, input: View) -> View:
    """Timm's and torchvision's module of ConvNeXt V2, recorded whole."""
    weight, bias = b.parameter("weight"), b.parameter("bias")
    assert weight is not None
    assert bias is not None
    last = len(input.axes) - 1
    channels = full_axis(CHANNEL_AXIS, input.channels)
    view = b.with_channels_on(input, 1 if input.axes[1] == channels else last)
    weights = {"weight": weight.map(torch.flatten), "bias": bias.map(torch.flatten)}
    return view.of(b.add(GlobalResponseNorm(b.new_name(), view.name, view.channels), weights))


def pad(
    b: Builder,
    input: View,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> View:
    """Zeros around positions; the last axis is named first."""
    if mode != "constant" or value:
        raise b.refused(f"pads with {value or mode}, and nodes with zeros")
    view, operations = input, []
    for i in range(0, len(pad), 2):
        before, after = pad[i], pad[i + 1]
        if (before, after) == (0, 0):
            continue
        view, position = b.position_axis(view, len(view.axes) - 1 - i // 2)
        operations = [Pad(axis=position, before=before, after=after)]
        name = b.rearranged(view.name, operations)
        view = view.with_position(name, position, b.sizes[name][position + 2])
    return view


def _affine(weight: Constant | None, bias: Constant | None, channels: int) -> dict[str, Constant]:
    """γ and β of a norm; none where there are neither."""
    given = weight or bias
    if given is None:
        return {}
    return {
        "weight": weight or given.map(torch.ones_like),
        "bias": bias or given.map(torch.zeros_like),
    }


def _same(sides: Sequence[int]) -> int | tuple[int, int]:
    """Return height and width, as one number if they are equal."""
    height, width = sides if len(sides) == 2 else (*sides, *sides)
    return height if height == width else (height, width)


def _one(b: Builder, sides: int | Sequence[int]) -> int:
    """Return what height and width have in common."""
    listed = [sides] if isinstance(sides, int) else list(sides)
    if len(set(listed)) != 1:
        raise b.refused(f"differs in height and width, {listed}, which no node does")
    return listed[0]


HANDLERS: Mapping[str, Handler] = {
    "conv2d": conv2d,
    "linear": linear,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "module:GlobalResponseNorm": global_response_norm,
    "pad": pad,
}
