"""Linear layers fused with gates give what separate operations do, backward too."""

import pytest
import torch
from torch import nn

from gatesearch.models.gated_linear import linear_gate_and_mix
from gatesearch.models.gated_norm import gate_and_mix


@pytest.mark.parametrize("positions", [(7,), (3, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_values_and_gradients(positions, bias, mixed) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6, bias=bias, dtype=torch.double) for _ in range(4)]
    inputs = [torch.randn(2, 5, *positions, dtype=torch.double).requires_grad_() for _ in layers]
    gates = torch.rand(3, 6, dtype=torch.double).requires_grad_()
    mix = torch.rand(3, 6, dtype=torch.double).softmax(0).requires_grad_() if mixed else None

    def apart():
        outputs = [
            layer(x.movedim(1, -1)).movedim(-1, 1) for layer, x in zip(layers, inputs, strict=True)
        ]
        gated, shared = gate_and_mix(outputs, gates, mix)
        return gated if shared is None else [*gated, shared]

    def fused():
        gated, shared = linear_gate_and_mix(inputs, layers, gates, mix)
        return gated if shared is None else [*gated, shared]

    for ours, theirs in zip(fused(), apart(), strict=True):
        torch.testing.assert_close(ours, theirs)
    learned = [*inputs, gates, *(p for layer in layers for p in layer.parameters())]
    leaves = [x for x in [*learned, mix] if x is not None and x.is_leaf]
    found, expected = (
        torch.autograd.grad(sum((x**3).sum() for x in outputs), leaves)
        for outputs in (fused(), apart())
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 3, 4)])
@pytest.mark.parametrize("mixed", [True, False])
def test_gating_alone_has_the_gradients_of_its_definition(shape, mixed) -> None:
    torch.manual_seed(0)
    streams = [torch.randn(shape, dtype=torch.double).requires_grad_() for _ in range(4)]
    gates = torch.rand(3, 5, dtype=torch.double).requires_grad_()
    mix = torch.rand(3, 5, dtype=torch.double).requires_grad_() if mixed else None

    def outputs(gates, mix, *streams):
        gated, shared = gate_and_mix(list(streams), gates, mix)
        return tuple(gated) if shared is None else (*gated, shared)

    assert torch.autograd.gradcheck(outputs, (gates, mix, *streams))
