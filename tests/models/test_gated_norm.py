"""The fused layer against the same arithmetic written with separate operations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.gated_norm import gate_and_mix, norm_gate_and_mix

TASKS, CHANNELS = 2, 3
SHAPE = (2, CHANNELS, 4, 3)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.fixture(autouse=True)
def _device(request):
    """Where all tensors are made: `device` of the test's parameters."""
    callspec = getattr(request.node, "callspec", None)
    with torch.device(callspec.params.get("device", "cpu") if callspec else "cpu"):
        yield


def case(*, hard: bool, mix: bool, dtype: torch.dtype = torch.float64, shape=SHAPE, form=None):
    """Leaves (outputs, gates, logits of the mix) and norms with weights of both signs."""
    torch.manual_seed(5)
    outputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(TASKS + 1)]
    if form is not None:
        outputs = [x.detach().to(memory_format=form).requires_grad_() for x in outputs]
    gates = torch.rand(TASKS, shape[1], dtype=dtype)
    gates = (gates > 0.5).to(dtype) if hard else gates
    norms = []
    for _ in range(TASKS + 1):
        norm = nn.BatchNorm2d(shape[1], dtype=dtype, eps=1e-3)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norms.append(norm)
    logits = torch.randn(TASKS, shape[1], dtype=dtype, requires_grad=True) if mix else None
    return outputs, norms, gates.requires_grad_(), logits


def separately(
    outputs, norms, gates, mix, relu, ceiling=None
) -> tuple[list[Tensor], Tensor | None]:
    streams = []
    for x, norm in zip(outputs, norms, strict=True):
        mean = x.mean((0, 2, 3))
        var = x.var((0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            norm.running_mean.lerp_(mean, 0.1)
            norm.running_var.lerp_(var * count / (count - 1), 0.1)
            norm.num_batches_tracked += 1
        scale = norm.weight / (var + norm.eps).sqrt()
        y = (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        streams.append(y.clamp(0, ceiling) if relu else y)
    *own, shared = streams
    rows = gates[:, :, None, None]
    gated = [g * x + (1 - g) * shared for g, x in zip(rows, own, strict=True)]
    if mix is None:
        return gated, None
    return gated, sum(m * x for m, x in zip(mix[:, :, None, None], gated, strict=True))


def everything(function, outputs, norms, gates, logits, *activation):
    """Values, gradients of all leaves, running statistics."""
    mix = None if logits is None else logits.softmax(0)
    gated, total = function(outputs, norms, gates, mix, *activation)
    values = [*gated, *([] if total is None else [total])]
    torch.manual_seed(6)
    loss = sum((torch.randn_like(v) * v + v.square()).sum() for v in values)
    leaves = [*outputs, gates, *([] if logits is None else [logits])]
    leaves += [p for norm in norms for p in norm.parameters()]
    gradients = torch.autograd.grad(loss, leaves)
    buffers = [b for norm in norms for b in norm.buffers()]
    return {"values": values, "gradients": gradients, "statistics": buffers}


@pytest.mark.parametrize("activation", [(True, None), (True, 0.7), (False, None)])
@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("device", DEVICES)
def test_fused_is_the_same_as_separate(activation, mix, hard, form, device) -> None:
    outputs, norms, gates, logits = case(hard=hard, mix=mix, form=form)
    again = copy.deepcopy(norms)
    fused = everything(norm_gate_and_mix, outputs, norms, gates, logits, *activation)
    plain = everything(separately, outputs, again, gates, logits, *activation)
    for name in fused:
        for ours, theirs in zip(fused[name], plain[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("relu", [True, False])
def test_where_only_some_results_are_used(relu) -> None:
    # nobody reads the first task's features: their gradient is none, not zero
    outputs, norms, gates, logits = case(hard=False, mix=True)
    leaves = [*outputs, gates, logits, *(p for norm in norms for p in norm.parameters())]

    def gradients(function, norms, used):
        gated, total = function(outputs, norms, gates, logits.softmax(0), relu)
        chosen = [gated[1], total][used]
        own = [*outputs, gates, logits, *(p for norm in norms for p in norm.parameters())]
        return torch.autograd.grad(chosen.square().sum(), own, materialize_grads=True)

    for used in (0, 1):
        fused = gradients(norm_gate_and_mix, norms, used)
        plain = gradients(separately, copy.deepcopy(norms), used)
        assert len(fused) == len(leaves)
        for ours, theirs in zip(fused, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("mix", [True, False])
def test_gradients_are_those_of_finite_differences(relu, mix) -> None:
    outputs, norms, gates, logits = case(hard=False, mix=mix, shape=(2, 2, 2, 2))
    affine = [p for norm in norms for p in norm.parameters()]

    def function(gates, logits, *flat):
        fresh = copy.deepcopy(norms)
        for norm, weight, bias in zip(fresh, flat[3::2], flat[4::2], strict=True):
            norm.weight, norm.bias = None, None
            norm.weight, norm.bias = weight, bias
        weights = None if logits is None else logits.softmax(0)
        gated, total = norm_gate_and_mix(list(flat[:3]), fresh, gates, weights, relu)
        return tuple(gated) if total is None else (*gated, total)

    with torch.no_grad():
        flat = [p.detach().clone() for p in affine]
    for norm in norms:
        del norm.weight, norm.bias
    flat = [p.requires_grad_() for p in flat]
    assert torch.autograd.gradcheck(function, (gates, logits, *outputs, *flat), eps=1e-7, atol=1e-6)


def test_a_closed_gate_gives_its_own_stream_no_gradient_but_the_gate_one() -> None:
    outputs, norms, _, _ = case(hard=True, mix=False)
    gates = torch.zeros(TASKS, CHANNELS, dtype=torch.float64, requires_grad=True)
    gated, _ = norm_gate_and_mix(outputs, norms, gates, None, True)
    sum(x.square().sum() for x in gated).backward()
    assert all(x.grad.abs().max() == 0 for x in outputs[:-1])
    assert outputs[-1].grad.abs().max() > 0
    assert (gates.grad.abs() > 0).any()


def test_evaluation_moves_no_statistics() -> None:
    outputs, norms, gates, _ = case(hard=True, mix=False)
    before = copy.deepcopy([norm.state_dict() for norm in norms])
    for norm in norms:
        norm.eval()
    gated, _ = norm_gate_and_mix(outputs, norms, gates, None, True)
    assert all(
        torch.equal(a[k], b[k])
        for a, b in zip(before, (norm.state_dict() for norm in norms), strict=True)
        for k in a
    )
    streams = [norm(x).relu() for norm, x in zip(norms, outputs, strict=True)]
    chosen = torch.where(gates[0][:, None, None] > 0, streams[0], streams[-1])
    assert torch.equal(gated[0], chosen)


def test_training_mode_without_gradients_still_normalises_by_the_batch() -> None:
    outputs, norms, gates, logits = case(hard=False, mix=True)
    again = copy.deepcopy(norms)
    mix = logits.softmax(0)
    fused = norm_gate_and_mix(outputs, norms, gates, mix, True)
    with torch.no_grad():
        plain = norm_gate_and_mix(outputs, again, gates, mix, True)
    torch.testing.assert_close(fused[1], plain[1])
    for a, b in zip(norms, again, strict=True):
        torch.testing.assert_close(a.state_dict(), b.state_dict())


def test_a_mix_by_hand() -> None:
    # one channel of one pixel: shared 1, tasks 3 and 5, gates 1 and 1/4, mix 3/4 and 1/4
    streams = [torch.full((1, 1, 1, 1), value) for value in (3.0, 5.0, 1.0)]
    gated, total = gate_and_mix(
        streams, torch.tensor([[1.0], [0.25]]), torch.tensor([[0.75], [0.25]])
    )
    assert [x.item() for x in gated] == [3.0, 2.0]
    assert total.item() == 0.75 * 3 + 0.25 * 2


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_fp32_up_to_its_precision(device) -> None:
    torch.manual_seed(7)
    convs = [nn.Conv2d(3, CHANNELS, 3, bias=False) for _ in range(TASKS + 1)]
    _, norms, gates, logits = case(hard=False, mix=True, dtype=torch.float32)
    image = torch.randn(4, 3, 8, 8)

    def run(enabled: bool, norms):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            outputs = [conv(image) for conv in convs]
            gated, total = norm_gate_and_mix(outputs, norms, gates, logits.softmax(0), True)
        loss = sum(F.mse_loss(x.float(), torch.ones_like(x).float()) for x in (*gated, total))
        leaves = [gates, logits, *(p for m in (*convs, *norms) for p in m.parameters())]
        return gated[0], torch.autograd.grad(loss, leaves)

    (half, ours), (full, theirs) = run(True, copy.deepcopy(norms)), run(False, norms)
    assert half.dtype == torch.bfloat16
    assert full.dtype == torch.float32
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-4
