"""Handlers for transformers: tokens in front of others, products of queries and keys, attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from gatesearch.models.imported.builder import Builder, Handler, Value
from gatesearch.models.imported.channels import permute, transpose
from gatesearch.models.imported.constants import Constant
from gatesearch.models.imported.elementwise import (
    add_constant,
    by_channel,
    divide,
    multiply,
)
from gatesearch.models.imported.layout import (
    CHANNEL_AXIS,
    Axis,
    Factor,
    LayoutError,
    View,
    cut,
    full_axis,
    length,
    moved,
    reshaped,
)
from gatesearch.models.imported.score_bias import position_bias
from gatesearch.models.nodes import Activation, Attention, ClassToken


@dataclass(frozen=True, kw_only=True)
class Scores(View):
    """Scores of queries and keys: a tensor that no node computes by itself.

    As a view it is of a value (B, heads, *windows, N, M), so that it is reshaped as others are.

    Attributes:
        query: Node of the queries, (B, heads·D, *windows, N).
        key: Node of the keys, (B, heads·D, *windows, M).
        scale: Number that they are multiplied by.
        terms: What is added to them, each (heads, *windows, N, M).
        weights: Whether their softmax has been taken.
    """

    query: str
    key: str
    scale: float = 1.0
    terms: tuple[Constant, ...] = ()
    weights: bool = False

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.sizes[1]


def scaled_dot_product_attention(
    b: Builder,
    query: View,
    key: View,
    value: View,
    attn_mask: Constant | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> View:
    """Attention, (..., N, D) each."""
    if is_causal or enable_gqa:
        raise b.refused("is causal, or has fewer keys than queries, which no node is")
    scores = products(b, query, transpose(b, key))
    scores = replace(scores, scale=query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = with_term(scores, attn_mask)
    return attended(b, replace(scores, weights=True), value)


def matmul(b: Builder, input: Value, other: Value, **keywords: Any) -> Value:
    """Product of queries and keys, of attention weights and values, or with a parameter."""
    if isinstance(input, Scores):
        return attended(b, input, other)
    if isinstance(input, View) and isinstance(other, View):
        return products(b, input, other)
    if isinstance(input, View) and isinstance(other, Constant) and len(other.shape) == 2:
        return b.call("linear", input, other.map(lambda w: w.t().contiguous()))
    raise b.refused("multiplies what are not queries and keys")


def softmax(b: Builder, input: Value, dim: int = -1, *_: Any, **keywords: Any) -> Scores:
    """Softmax of scores over the keys."""
    if not isinstance(input, Scores) or input.weights:
        raise b.refused("is of other values than scores of queries and keys")
    keys = len(input.sizes) - 1
    if input.axes[dim] != full_axis(keys, input.sizes[keys]):
        raise LayoutError("the softmax is not over the keys")
    return replace(input, weights=True)


def with_constant(b: Builder, input: View, constant: Constant) -> View:
    """Sum with a parameter: a bias of scores, or as of other values."""
    return (
        with_term(input, constant)
        if isinstance(input, Scores)
        else add_constant(b, input, constant)
    )


def times(b: Builder, input: Value, other: Value) -> Value:
    """Product: of scores and a number, or as of other values."""
    if isinstance(other, Scores):
        input, other = other, input
    number = b.number(other) if isinstance(other, Constant) else other
    if not isinstance(input, Scores):
        return multiply(b, input, other)
    if not isinstance(number, int | float) or input.weights or input.terms:
        raise b.refused("scales scores otherwise than by a number before anything is added")
    return replace(input, scale=input.scale * number)


def over(b: Builder, input: Value, other: Value, **keywords: Any) -> Value:
    """Quotient: of scores and a number, or as of other values."""
    if isinstance(input, Scores) and isinstance(other, int | float):
        return times(b, input, 1 / other)
    return divide(b, input, other, **keywords)


def multi_head_attention_forward(
    b: Builder,
    query: View,
    key: View,
    value: View,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Constant | None,
    in_proj_bias: Constant | None,
    bias_k: Constant | None,
    bias_v: Constant | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Constant,
    out_proj_bias: Constant | None,
    **keywords: Any,
) -> tuple[View, None]:
    """The attention of `nn.MultiheadAttention`, (N, B, C) each."""
    masks = [keywords.get("key_padding_mask"), keywords.get("attn_mask"), bias_k, bias_v]
    if any(mask is not None for mask in masks) or add_zero_attn or in_proj_weight is None:
        raise b.refused("has masks, keys of its own, or widths that differ, which no node has")
    if query == key == value:
        together = b.call("linear", query, in_proj_weight, in_proj_bias)
        parts = b.call("chunk", together, 3, -1)
    else:
        parts = [
            b.call(
                "linear",
                source,
                in_proj_weight.map(partial(_third, i)),
                None if in_proj_bias is None else in_proj_bias.map(partial(_third, i)),
            )
            for i, source in enumerate((query, key, value))
        ]
    q, k, v = (
        permute(b, reshaped(part, [*part.shape[:2], num_heads, part.shape[2] // num_heads]),
                (1, 2, 0, 3))
        for part in parts
    )  # fmt: skip
    out = scaled_dot_product_attention(b, q, k, v)
    out = reshaped(permute(b, out, (2, 0, 1, 3)), query.shape)
    return b.call("linear", out, out_proj_weight, out_proj_bias), None


def cat_positions(b: Builder, tensors: Sequence[View | Constant], dim: int) -> View:
    """Learned tokens in front of those of the image."""
    *tokens, last = tensors
    if not isinstance(last, View) or not all(isinstance(t, Constant) for t in tokens):
        raise b.refused("joins positions otherwise than with parameters in front of them")
    view, position = b.position_axis(last, dim)
    if position != len(view.positions) - 1:
        raise LayoutError("tokens must be the last axis of positions")
    for constant in reversed(tokens):
        count = cast(Constant, constant).shape[dim]
        shape = view.with_position(view.name, position, count)
        if count == 1:  # of which no axis tells that it is one of positions
            axes = (*shape.axes[:dim], (), *shape.axes[dim + 1 :])
            shape = replace(shape, axes=axes)
        weight = by_channel(shape, cast(Constant, constant), positions=True)
        weight = weight.map(lambda w: w.reshape(w.shape[0], -1, w.shape[-1])[:, 0])
        node = ClassToken(b.new_name("class_token"), view.name, view.channels, tokens=count)
        name = b.add(node, {"weight": weight})
        view = view.with_position(name, position, view.sizes[position + 2] + count)
    return view


def products(b: Builder, query: View, transposed: View) -> Scores:
    """Return the scores of queries (..., N, D) and keys (..., D, M)."""
    query, scale = _unscaled(b, query)
    key, factor = _unscaled(b, transpose(b, transposed))
    q, k = in_heads(b, query), in_heads(b, key)
    if length(q.axes[-1]) != length(k.axes[-1]) or _lead(q) != _lead(k):
        raise LayoutError("queries and keys differ in heads or windows")
    heads = _heads(q)
    last = len(q.sizes)
    sizes = (q.sizes[0], heads, *q.sizes[2:], k.sizes[-1])
    axes = (*_lead(q), q.axes[-2], full_axis(last, k.sizes[-1]))
    return Scores("scores", sizes, axes, query=q.name, key=k.name, scale=scale * factor)


def attended(b: Builder, scores: Scores, value: View) -> View:
    """Return the product of attention weights (..., N, M) and values (..., M, D)."""
    if not scores.weights:
        raise b.refused("multiplies scores whose softmax was not taken")
    v = in_heads(b, value)
    if _lead(v) != scores.axes[:-2]:
        raise LayoutError("weights and values differ in heads or windows")
    channels = b.sizes[scores.query][CHANNEL_AXIS]
    if v.channels != channels:
        raise b.refused("has values of another size than queries and keys, which no node has")
    size = channels // scores.heads
    bias, weights = position_bias(b, scores.terms)
    node = Attention(
        b.new_name("attention"),
        scores.query,
        scores.key,
        v.name,
        channels,
        scores.heads,
        scale=scores.scale,
        bias=bias,
    )
    name = b.add(node, weights)
    lead = [tuple(_times(f, size) for f in axis) for axis in scores.axes[:-2]]
    return View(name, b.sizes[name], (*lead, scores.axes[-2], full_axis(CHANNEL_AXIS, size)))


def in_heads(b: Builder, view: View) -> View:
    """Return a tensor (..., N, D) as a view of a value (B, heads·D, *windows, N).

    Raises:
        LayoutError: Its last axis holds no channels, or the one before no positions.
    """
    *lead, tokens, size = view.axes
    heads = [f for axis in lead for f in axis if f.axis == CHANNEL_AXIS]
    windows = tuple(f for axis in lead for f in axis if f.axis > CHANNEL_AXIS)
    if any(f.axis != CHANNEL_AXIS for f in size) or any(f.axis <= CHANNEL_AXIS for f in tokens):
        raise LayoutError("attention is not over positions")
    positions: list[Axis] = [windows, tokens] if windows else [tokens]
    channels = [*heads, *size]
    name = b.arranged(view, channels=channels, positions=positions)
    return moved(view, name, [cut(view, 0), channels, *positions])


def with_term(scores: Scores, constant: Constant) -> Scores:
    """Add to scores what does not depend on the image."""
    if scores.weights:
        raise LayoutError("something is added to attention weights")
    term = by_channel(scores, constant, positions=True)
    return replace(scores, terms=(*scores.terms, term))


def _unscaled(b: Builder, view: View) -> tuple[View, float]:
    """Return a tensor before it was multiplied by a number, and the number."""
    node = b.node(view.name)
    if isinstance(node, Activation) and node.function == "multiply":
        return view.of(node.source), node.arguments[0]
    return view, 1.0


def _third(i: int, rows: Tensor) -> Tensor:
    return rows.chunk(3)[i]


def _heads(view: View) -> int:
    return view.channels // length(view.axes[-1])


def _lead(view: View) -> tuple[Axis, ...]:
    """Axes of images, heads and windows; factors of channels count heads."""
    size = length(view.axes[-1])
    return tuple(
        tuple(replace(f, stride=f.stride // size) if f.axis == CHANNEL_AXIS else f for f in axis)
        for axis in view.axes[:-2]
    )


def _times(factor: Factor, size: int) -> Factor:
    return replace(factor, stride=factor.stride * size) if factor.axis == CHANNEL_AXIS else factor


HANDLERS: Mapping[str, Handler] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "matmul": matmul,
    "__matmul__": matmul,
    "bmm": matmul,
    "softmax": softmax,
    "add_constant": with_constant,
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__"), times),
    **dict.fromkeys(("div", "true_divide", "__truediv__"), over),
    "multi_head_attention_forward": multi_head_attention_forward,
    "cat_positions": cat_positions,
}
