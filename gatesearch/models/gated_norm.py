"""Batch norm, ReLU, gates and β mix of all streams of a layer, fused for training.

With separate operations, gating keeps one more activation per stream than a plain encoder: the
ungated one beside the gated one. Here the ungated activation is recomputed in the backward pass
from the convolution's output, which batch norm keeps anyway, and batch norm's own backward pass
yields the sums over a feature map that the gates' gradient needs. So a training step costs little
more time and memory than T+1 plain streams (`benchmarks/` has the ratios).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.activation import rectified, through_rectified
from gatesearch.models.channel_ops import at_positions
from gatesearch.models.mixing import mixing_sum


def gate_and_mix(
    streams: list[Tensor], gates: Tensor, mix: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    """Equations 2 and 3 of InterroGate on activations.

    φ'_t = G_t φ_t + (1 - G_t) ψ and ψ' = Σ_t M_t φ'_t, channel by channel.

    Args:
        streams: T+1 activations (B, C, *positions), the shared one last.
        gates: G, (T, C).
        mix: M, (T, C), columns summing to 1; None where nothing reads the mixed shared stream.

    Returns:
        The T gated activations, and the mixed shared one.
    """
    if torch.is_grad_enabled():
        result = _GateMix.apply(gates, mix, *streams)
        return (list(result), None) if mix is None else (list(result[:-1]), result[-1])
    gated = _gated(streams, gates)
    return gated, None if mix is None else mixing_sum(gated, mix)


def _gated(streams: Sequence[Tensor], gates: Tensor) -> list[Tensor]:
    *own, shared = streams
    rows = _rows(gates, shared)
    return [torch.lerp(shared, x, gate) for x, gate in zip(own, rows, strict=True)]


class _GateMix(torch.autograd.Function):
    """See `gate_and_mix`; saves its inputs, and of a step backward no product with an activation.

    With h_t the gradient of φ'_t, the one through ψ' included, that of a gate is Σ h_t (φ_t - ψ),
    and that of a weight of the mix Σ g φ'_t, g being the gradient of ψ'.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, mix: Tensor | None, *streams: Tensor
    ) -> tuple[Tensor, ...]:
        gated = _gated(streams, gates)
        ctx.save_for_backward(gates, mix, *streams)
        return tuple(gated) if mix is None else (*gated, mixing_sum(gated, mix))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gates, mix, *streams = ctx.saved_tensors
        *own, shared = streams
        total = None if mix is None else grads[-1]
        keep, dot = 1 - gates, channel_dots(shared)
        grad_gates, grad_mix, grad_streams = [], [], []
        rows, keep_rows = _rows(gates, shared), _rows(keep, shared)
        grad_shared = None
        if total is not None:
            total_shared = dot(total, shared)
            grad_shared = total * _rows((keep * mix).sum(0), shared)
            through = _rows(gates * mix, shared)
        for t, x in enumerate(own):
            grad = _filled(grads[t], shared)
            difference = dot(grad, x) - dot(grad, shared)
            found = grad * rows[t]
            grad_shared = (
                grad * keep_rows[t]
                if grad_shared is None
                else grad_shared.addcmul_(grad, keep_rows[t])
            )
            if total is not None:
                total_own = dot(total, x)
                difference = difference + mix[t] * (total_own - total_shared)
                grad_mix.append(gates[t] * total_own + keep[t] * total_shared)
                found.addcmul_(total, through[t])
            grad_gates.append(difference)
            grad_streams.append(found)
        return (
            torch.stack(grad_gates).to(gates.dtype),
            torch.stack(grad_mix).to(mix.dtype) if grad_mix else None,
            *grad_streams,
            grad_shared,
        )


def norm_gate_and_mix(
    outputs: list[Tensor],
    norms: list[nn.BatchNorm2d],
    gates: Tensor,
    mix: Tensor | None,
    relu: bool,
    ceiling: float | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Batch norm and ReLU of every stream, then `gate_and_mix`.

    Args:
        outputs: T+1 outputs of the streams' convolutions, (B, C, H, W), the shared one last.
        norms: Their batch norms; in training mode their running statistics move.
        gates: G, (T, C).
        mix: M, (T, C), or None.
        relu: Whether a ReLU follows the norm.
        ceiling: Upper limit of the ReLU; None for no limit.
    """
    if not (norms[0].training and torch.is_grad_enabled()):
        streams = [norm(x) for norm, x in zip(norms, outputs, strict=True)]
        return gate_and_mix(
            [rectified(x, ceiling) for x in streams] if relu else streams, gates, mix
        )
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    result = _NormGateMix.apply(norms, relu, ceiling, gates, mix, *outputs, *affine)
    if mix is None:
        return list(result), None
    return list(result[:-1]), result[-1]


class _NormGateMix(torch.autograd.Function):
    """See `norm_gate_and_mix`; saves the convolutions' outputs and its own outputs, no more."""

    @staticmethod
    def forward(
        ctx: Any,
        norms: list[nn.BatchNorm2d],
        relu: bool,
        ceiling: float | None,
        gates: Tensor,
        mix: Tensor | None,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        n = len(norms)
        outputs, affine = flat[:n], flat[n:]
        activations, statistics = [], []
        for x, norm in zip(outputs, norms, strict=True):
            y, mean, inverse = torch.native_batch_norm(
                x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                True, norm.momentum or 0.0, norm.eps,
            )  # fmt: skip
            activations.append(rectified(y, ceiling) if relu else y)
            statistics += [mean, inverse]
        shared = activations.pop()
        keep = (1 - gates).to(shared.dtype)[:, :, None, None]
        # In place: the ungated activation is recomputed backward.
        gated = [y.lerp_(shared, k) for y, k in zip(activations, keep, strict=True)]
        ctx.relu, ctx.ceiling = relu, ceiling
        ctx.eps, ctx.mixes = [norm.eps for norm in norms], mix is not None
        total = [] if mix is None else [mixing_sum(gated, mix)]
        ctx.save_for_backward(
            gates, *([] if mix is None else [mix]), *outputs, *affine, *statistics,
            *(gated if mix is not None else []),
        )  # fmt: skip
        return (*gated, *total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        gates = saved.pop(0)
        mix = saved.pop(0) if ctx.mixes else None
        count = gates.shape[0]
        n = count + 1
        outputs, saved = saved[:n], saved[n:]
        affine, saved = saved[: 2 * n], saved[2 * n :]
        statistics, gated = saved[: 2 * n], saved[2 * n :]

        dot = channel_dots(outputs[0])
        grad_gated = [_filled(g, outputs[0]) for g in grads[:count]]
        grad_mix = None
        if mix is not None:
            grad_total = _filled(grads[count], outputs[0])
            grad_mix = torch.stack([dot(grad_total, x) for x in gated])
            rows = mix.to(grad_total.dtype)[:, :, None, None]
            grad_gated = [
                torch.addcmul(g, grad_total, row) for g, row in zip(grad_gated, rows, strict=True)
            ]

        def activation(stream: int) -> Tensor:
            weight, bias = affine[2 * stream : 2 * stream + 2]
            mean, inverse = statistics[2 * stream : 2 * stream + 2]
            eps = ctx.eps[stream]
            y = F.batch_norm(
                outputs[stream], mean, inverse.pow(-2) - eps, weight, bias, training=False, eps=eps
            )
            return rectified(y, ctx.ceiling) if ctx.relu else y

        shared = activation(count)
        keep = (1 - gates).to(shared.dtype)[:, :, None, None]
        grad_shared = grad_gated[0] * keep[0]
        for g, k in zip(grad_gated[1:], keep[1:], strict=True):
            grad_shared.addcmul_(g, k)

        grad_gates, grad_outputs, grad_affine = [], [], []
        for t, grad in enumerate(grad_gated):
            weight, bias = affine[2 * t : 2 * t + 2]
            mean, inverse = statistics[2 * t : 2 * t + 2]
            through = grad
            if ctx.relu:
                ungated = activation(t)
                through = through_rectified(grad, ungated, ctx.ceiling)
            # Scaling the weight by the gate gates dx; the two sums come out ungated.
            gate = gates[t]
            dx, sum_xhat, sum_one = _norm_backward(
                through, outputs[t], weight * gate.to(weight.dtype), mean, inverse, ctx.eps[t]
            )
            grad_gate = weight * sum_xhat + bias * sum_one - dot(grad, shared)
            if ctx.relu and ctx.ceiling is not None:  # the gate scales values at the limit too
                grad_gate = grad_gate + dot(grad - through, ungated)
            grad_gates.append(grad_gate)
            grad_outputs.append(dx)
            grad_affine += [sum_xhat * gate, sum_one * gate]

        if ctx.relu:
            grad_shared = through_rectified(grad_shared, shared, ctx.ceiling)
        dx, sum_xhat, sum_one = _norm_backward(
            grad_shared, outputs[-1], affine[-2], statistics[-2], statistics[-1], ctx.eps[-1]
        )
        return (
            None, None, None, torch.stack(grad_gates).to(gates.dtype), grad_mix,
            *grad_outputs, dx, *grad_affine, sum_xhat, sum_one,
        )  # fmt: skip


def _rows(weights: Tensor, like: Tensor) -> Tensor:
    """Lay weights (..., C) along the channels of an activation, in its precision."""
    return at_positions(weights.to(like.dtype), like)


def _filled(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, and the sums over a channel of grad * x_hat and of grad."""
    return torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, inverse, True, eps, [True, True, True]
    )


def channel_dots(like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function Σ over all but the channels of a * b, in fp32.

    For a and b of (B, C, *positions) or (rows, C), like `like`, it returns (C,). It is batch norm's
    own reduction with zero mean and unit deviation: one pass, no product kept.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    zero = torch.zeros(like.shape[1], dtype=dtype, device=like.device)
    one = torch.ones_like(zero)  # without a weight CUDA gives no gradient of one

    def dot(a: Tensor, b: Tensor) -> Tensor:
        if a.dim() not in (2, 4):  # tokens: one row of channels each
            a, b = (x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (a, b))
        found: Tensor = torch.ops.aten.native_batch_norm_backward(
            a, b, one, None, None, zero, one, True, 0.0, [False, True, False]
        )[1]
        return found

    return dot
