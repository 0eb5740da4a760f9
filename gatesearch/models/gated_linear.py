"""Linear layers, gates and β mix of all streams, fused for training.

With separate operations, gating a linear layer takes about twenty passes over its outputs more
than a plain one. Here the gradient of a gate comes from that of the weight, which is computed
anyway: Σ h y = Σ_i W_i (Σ h x_i) for the outputs y = W x of a channel and their gradients h, summed
over positions. The ungated outputs are overwritten, and gates scale weights in place of outputs.
Operations on the same values follow each other, so that a processor still has these in its cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.gated_norm import channel_dots
from gatesearch.models.mixing import mixing_sum


def linear_gate_and_mix(
    inputs: Sequence[Tensor], layers: Sequence[nn.Linear], gates: Tensor, mix: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    """Compute a linear layer of every stream, then `gate_and_mix`.

    Args:
        inputs: T+1 values (B, inputs, *positions), the shared one last.
        layers: Their linear layers, over the channels.
        gates: G, (T, C).
        mix: M, (T, C), or None.

    Returns:
        The T gated values (B, C, *positions), and the mixed shared one.
    """
    dtype = inputs[0].dtype
    if torch.is_autocast_enabled(inputs[0].device.type):
        dtype = torch.get_autocast_dtype(inputs[0].device.type)
    rows = [x.movedim(1, -1).to(dtype) for x in inputs]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    result = [x.movedim(-1, 1) for x in _LinearGateMix.apply(gates, mix, *rows, *parameters)]
    return (result, None) if mix is None else (result[:-1], result[-1])


class _LinearGateMix(torch.autograd.Function):
    """See `linear_gate_and_mix`; on (B, *positions, C)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, mix: Tensor | None, *flat: Tensor) -> tuple[Tensor, ...]:
        n = len(gates) + 1
        inputs, parameters = flat[:n], flat[n:]
        dtype = inputs[0].dtype
        cast = [None if p is None else p.to(dtype) for p in parameters]
        with torch.autocast(inputs[0].device.type, enabled=False):
            shared = F.linear(inputs[-1], *cast[-2:])
            gated = [
                F.linear(inputs[t], *cast[2 * t : 2 * t + 2]).lerp_(shared, keep)
                for t, keep in enumerate((1 - gates).to(dtype))
            ]
        ctx.save_for_backward(gates, mix, *inputs, *cast, shared, *([] if mix is None else gated))
        ctx.dtypes = [None if p is None else p.dtype for p in parameters]
        if mix is None:
            return tuple(gated)
        return (*gated, mixing_sum([x.movedim(-1, 1) for x in gated], mix).movedim(1, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gates, mix, *saved = ctx.saved_tensors
        tasks = len(gates)
        inputs, saved = [_flat(x) for x in saved[: tasks + 1]], saved[tasks + 1 :]
        parameters, saved = saved[: 2 * tasks + 2], saved[2 * tasks + 2 :]
        shared, gated = _flat(saved[0]), [_flat(x) for x in saved[1:]]
        dot, total = channel_dots(shared), None
        if mix is not None:
            total = _filled(grads[-1], shared)
            mix_rows = mix.to(shared.dtype)
        keep = (1 - gates).to(shared.dtype)
        grad_gates, grad_mix, grad_inputs = [], [], []
        grad_parameters: list[Tensor | None] = []
        grad_shared = torch.empty_like(shared)
        for t in range(tasks):
            grad = _filled(grads[t], shared)
            if total is not None:
                grad = torch.addcmul(grad, total, mix_rows[t])
                grad_mix.append(dot(total, gated[t]))
            if t == 0:
                torch.mul(grad, keep[t], out=grad_shared)
            else:
                grad_shared.addcmul_(grad, keep[t])
            found = -dot(grad, shared)
            weight, bias = parameters[2 * t : 2 * t + 2]
            ungated = grad.T @ inputs[t]
            gate = gates[t].to(weight.dtype)
            precise = torch.promote_types(weight.dtype, torch.float32)
            found += (ungated.to(precise) * weight).sum(1)
            grad_inputs.append(grad @ (weight * gate[:, None]))
            grad_parameters.append(ungated.mul_(gate[:, None]))
            if bias is None:
                grad_parameters.append(None)
            else:
                one = grad.sum(0)
                found += one.to(precise) * bias
                grad_parameters.append(one * gate)
            grad_gates.append(found)
        weight, bias = parameters[-2:]
        grad_inputs.append(grad_shared @ weight)
        grad_parameters += [
            grad_shared.T @ inputs[-1], None if bias is None else grad_shared.sum(0)
        ]  # fmt: skip
        return (
            torch.stack(grad_gates).to(gates.dtype),
            torch.stack(grad_mix).to(mix.dtype) if grad_mix else None,
            *(x.view_as(like) for x, like in zip(grad_inputs, ctx.saved_tensors[2:], strict=False)),
            *(
                None if x is None else x.to(dtype)
                for x, dtype in zip(grad_parameters, ctx.dtypes, strict=True)
            ),
        )


def _filled(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else _flat(grad)


def _flat(x: Tensor) -> Tensor:
    """(B, *positions, C) -> (B·positions, C)."""
    return x.reshape(-1, x.shape[-1])
