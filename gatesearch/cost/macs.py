"""Count the multiply-adds of a network with fvcore, and check them with thop and torch.

Multi-task papers count FLOPs as 2 x multiply-adds of convolutions, linear layers and matrix
products (attention included), and leave out normalisation, resampling, pooling and element-wise
arithmetic; so do we. Any other operator that is not counted is reported by name.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gatesearch.cost.cost import Cost
from gatesearch.errors import UsageError, first_line

HEADS = "heads"

# Operators that the convention leaves out, and their in-place forms: they move, compare, add,
# scale, pool, resample or normalise. (fvcore itself ignores some that only move data.)
_FREE_NAMES = """
abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d add addcdiv
addcmul adjoint alias all amax amin any arange argmax argmin argsort as_strided atan atan2
avg_pool1d avg_pool2d avg_pool3d batch_norm bernoulli bitwise_and bitwise_not bitwise_or
broadcast_tensors broadcast_to ceil channel_shuffle chunk clamp clamp_max clamp_min clone concat
constant_pad_nd contiguous copy cos cosh cumprod cumsum div dropout dstack elu empty_like eq erf
exp exp2 expand_as expm1 eye feature_dropout fill flip floor_divide fmod frac ge gelu glu
group_norm gt hardshrink hardsigmoid hardswish hardtanh hstack hypot imag index_add index_copy
index_fill index_put index_select instance_norm isfinite isinf isnan layer_norm le leaky_relu lerp
lift_fresh linalg_vector_norm linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp
logical_and logical_not logical_or logsumexp lt mH mT masked_fill matrix_H max max_pool1d
max_pool2d max_pool3d maximum mean meshgrid min minimum mish movedim mul multiply narrow ne neg
norm numel numpy_T one_hot ones ones_like pad pixel_shuffle pixel_unshuffle pow prelu prod rand
rand_like randn randn_like real reciprocal reflection_pad1d reflection_pad2d relu relu6 remainder
repeat repeat_interleave replication_pad1d replication_pad2d reshape_as rms_norm roll round rsqrt
rsub scalar_tensor scatter scatter_add scatter_reduce select_scatter selu sigmoid sign silu sin sinh
slice slice_scatter softmax softplus sort sqrt square squeeze std sub sum swapaxes t take tanh
tensor_split threshold tile topk transpose tril triu true_divide trunc unflatten unfold
unsafe_chunk unsafe_split upsample_bicubic2d upsample_bilinear2d upsample_nearest1d
upsample_nearest2d var view_as vstack where zero zeros_like
"""
FREE = frozenset(f"aten::{name}" for name in _FREE_NAMES.split())


def count_macs(model: nn.Module, input_shape: tuple[int, ...], *, cross_check: bool = True) -> Cost:
    """Count the multiply-adds of one forward pass in evaluation mode.

    They are counted on a copy without data (device `meta`), which needs no memory for weights or
    features and does not change `model`.

    Args:
        model: Called with one image batch; returns tensors in any nesting of dicts and tuples.
        input_shape: (N, 3, H, W) of that batch.
        cross_check: Also count with thop and torch, and report disagreements.

    Raises:
        UsageError: No module or shape is given, or the forward pass fails on tensors without data.

    >>> count_macs(nn.Conv2d(3, 8, 3, bias=False), (1, 3, 10, 10)).macs  # 8 x 8 outputs
    13824
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"count_macs takes a torch module, found {type(model).__name__}")
    if not isinstance(input_shape, tuple | list) or not all(
        isinstance(n, int) and n >= 0 for n in input_shape
    ):
        raise UsageError(
            "count_macs takes the shape of a batch of images, as (1, 3, 480, 640), found "
            f"{input_shape!r:.100}"
        )
    meta_model = without_data(model).eval()
    image = torch.empty(input_shape, device="meta")
    with _quiet_and_countable(), torch.no_grad():
        try:
            analysis = _traced(meta_model, image)
            counts: Counter[str] = analysis.by_operator()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise UsageError(
                f"{type(model).__name__} cannot be counted on input {tuple(input_shape)}: its "
                f"forward pass must run on shapes alone (device meta), found: {first_line(error)}"
            ) from error
        macs = sum(counts.values())
        heads = analysis.total(f"model.{HEADS}") if hasattr(meta_model, HEADS) else 0
        uncounted = {
            name.removeprefix("aten::"): calls
            for name, calls in sorted(analysis.unsupported_ops().items())
            if name.rstrip("_") not in FREE
        }
        disagreements = _cross_check(meta_model, image, counts) if cross_check else ()
    return Cost(
        macs=macs,
        backbone_macs=macs - heads,
        params=sum(p.numel() for p in model.parameters()),
        uncounted=uncounted,
        disagreements=disagreements,
    )


def without_data(model: nn.Module) -> nn.Module:
    """Copy a model, with parameters, buffers and tensors in attributes that have shapes only."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        values = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in (value for value in values if isinstance(value, Tensor)):
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(model, memo)


@contextmanager
def _quiet_and_countable() -> Iterator[None]:
    """Silence warnings, and have attention run as operators that can be counted.

    The fast path of nn.MultiheadAttention is one fused operator, which no counter knows.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _Flat(nn.Module):
    """A model whose outputs are flattened into a tuple of tensors, which the tracer needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in tree_leaves(self.model(image)) if isinstance(leaf, Tensor))


def _traced(model: nn.Module, image: Tensor) -> Any:
    """Trace a forward pass with fvcore, with counters for the operators of the convention."""
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, linear_flop_jit

    analysis = FlopCountAnalysis(_Flat(model), image).clear_op_handles()
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    analysis.set_op_handle("aten::_convolution", conv_flop_jit)
    analysis.set_op_handle("aten::linear", linear_flop_jit)
    for name in ("matmul", "mm", "bmm", "mv", "dot"):
        analysis.set_op_handle(f"aten::{name}", _product(0))
    for name in ("addmm", "baddbmm", "addmv"):
        analysis.set_op_handle(f"aten::{name}", _product(1))
    analysis.set_op_handle("aten::einsum", _einsum)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    with _RecordConvolutions():
        analysis.total()
    return analysis


def _sizes(value: Any) -> list[int]:
    return list(value.type().sizes())


def _product(first: int) -> Callable[[Sequence[Any], Sequence[Any]], int]:
    """Make a counter of products whose left factor is argument `first`.

    It counts number of outputs x contracted length.
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return math.prod(_sizes(outputs[0])) * _sizes(inputs[first])[-1]

    return handle


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count an einsum of two terms as the product of all index lengths.

    fvcore's own counter, used for all others, rounds to four digits.
    """
    from fvcore.nn.jit_handles import einsum_flop_jit

    terms = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    shapes = [_sizes(value) for value in inputs[1].node().inputs()]
    if len(terms) != 2 or any("." in term for term in terms):
        return int(einsum_flop_jit(inputs, outputs))
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, length in zip(term, shape, strict=True):
            lengths[letter] = max(length, lengths.get(letter, 1))
    return math.prod(lengths.values())


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the scores q k^T (L x S x E) and their product with v (L x S x Ev), for every head."""
    query, key, value = (_sizes(item) for item in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# On device meta, `_convolution` calls `convolution_overrideable`, for which torch 2.11 has no
# kernel there. This registers one.
_ON_META = torch.library.Library("aten", "IMPL", "Meta")
_ON_META.impl("convolution_overrideable", lambda *args: torch.ops.aten.convolution.default(*args))


class _CopyForNorms(TorchFunctionMode):
    """A mode in which norms are copies of their inputs, which is all that shapes tell of them.

    On device meta torch computes norms by a dozen operations in Python each, which takes half of
    the time of a count, and norms count nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NORMS:
            return (args[0] if args else kwargs["input"]).clone()
        return func(*args, **kwargs)


_NORMS = frozenset({F.batch_norm, F.layer_norm})


class _RecordConvolutions(_CopyForNorms):
    """A mode that makes convolutions visible to the tracer on device meta.

    The tracer records `aten::_convolution`, which `F.conv*` calls on real devices but not on meta.
    In this mode `F.conv*` calls it directly.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            return _convolution(_CONVOLUTIONS[func], *args, **kwargs)
        if func in _TRANSPOSED:
            return _transposed(_TRANSPOSED[func], *args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_TRANSPOSED = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}


def _convolution(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(_each(dilation, n), weight.shape[2:], strict=True)]
        input = F.pad(input, [side for r in reversed(reach) for side in (r // 2, r - r // 2)])
    padding = 0 if isinstance(padding, str) else padding
    return _raw(n, input, weight, bias, stride, padding, dilation, False, 0, groups)


def _transposed(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return _raw(n, input, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _raw(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    single = input.dim() == n + 1
    output = torch._convolution(
        input.unsqueeze(0) if single else input,
        weight,
        bias,
        _each(stride, n),
        _each(padding, n),
        _each(dilation, n),
        transposed,
        _each(output_padding, n),
        groups,
        False,
        False,
        True,
        True,
    )
    return output.squeeze(0) if single else output


def _each(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _cross_check(model: nn.Module, image: Tensor, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a line such as `thop counts 2 multiply-adds in ...` for each count that differs."""
    conv, linear = counts.get("conv", 0), counts.get("linear", 0)
    products = sum(counts.values()) - conv
    with _CopyForNorms():
        torch_conv, torch_products = _torch_counts(model, image)
        in_modules = _thop_count(model, image)
    figures = [
        ("torch", "convolutions", torch_conv, conv),
        ("torch", "linear layers and matrix products", torch_products, products),
        ("thop", "convolution and linear modules", in_modules, conv + linear),
    ]
    return tuple(
        f"{counter} counts {theirs:,} multiply-adds in {what}, fvcore {ours:,}"
        for counter, what, theirs, ours in figures
        if theirs != ours
    )


def _torch_counts(model: nn.Module, image: Tensor) -> tuple[int, int]:
    """Count multiply-adds of (convolutions, everything else that torch counts)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(image)
    flops = counter.get_flop_counts().get("Global", {})
    conv = sum(n for op, n in flops.items() if "convolution" in str(op))
    return conv // 2, (sum(flops.values()) - conv) // 2


def _thop_count(model: nn.Module, image: Tensor) -> int:
    """Count multiply-adds of nn.Conv* and nn.Linear modules; thop does not see functional calls.

    thop adds buffers to the model, so the model must not be used afterwards.
    """
    from thop import profile
    from thop.vision.basic_hooks import zero_ops

    counted = (nn.modules.conv._ConvNd, nn.Linear)
    # thop looks counters up by type. A type that has children anywhere in the model must not count
    # as free, because thop would then ignore the children.
    with_children = {type(module) for module in model.modules() if next(module.children(), None)}
    free = {
        type(module): zero_ops
        for module in model.modules()
        if not isinstance(module, counted) and type(module) not in with_children
    }
    # thop sums in tensors, which must hold data even if the caller's default device is meta.
    with torch.device("cpu"):
        total, _ = profile(model, (image,), custom_ops=free, verbose=False)
    return int(total)
