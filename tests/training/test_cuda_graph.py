"""Recorded steps are the steps that would have been taken."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gatesearch.methods import build_model
from gatesearch.pruning import extract
from gatesearch.study import AugmentSpec, load_study
from gatesearch.training import Runtime
from gatesearch.training.cuda_graph import CudaGraphStep
from gatesearch.training.weightings import build_weighting
from tests.training.toys import Toy, spec, toy_frames, toy_pack, toy_supernet, toy_tasks, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = Runtime(device="cuda", precision="fp32", memory_format="nhwc")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy", train=24))


def trained(frames, model: nn.Module, *, graphs: bool, **options):
    told: list[str] = []
    model = model.cuda()
    weighting = build_weighting("uniform", dict.fromkeys(toy_tasks(), 1.0), device="cuda")
    history = train(
        model, frames, toy_tasks(), weighting=weighting, seed=1, tell=told.append,
        runtime=replace(CUDA, graphs=graphs),
        spec=spec(epochs=4, augment=AugmentSpec(zoom=(1.0, 1.5)), **options),
    )  # fmt: skip
    return history, {name: tensor.clone() for name, tensor in model.state_dict().items()}, told


@pytest.fixture
def _same_sums_twice(monkeypatch):
    """Leaves out TF32 and the atomic additions there is another way for, which amplify."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_same_sums_twice")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize("make", [
    lambda: Toy(dropout=0.0), lambda: extract(toy_supernet(*toy_tasks())),
])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "weight_decay": 0.1}])
def test_they_learn_alike(frames, make, options) -> None:
    torch.manual_seed(0)
    network = make()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain, expected, _ = trained(frames, network, graphs=False, **options)
    network.load_state_dict(state)
    recorded, found, told = trained(frames, network, graphs=True, **options)
    assert told == []
    for name, curve in plain.curves.items():
        assert recorded.curves[name] == pytest.approx(curve, rel=1e-3)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)


def test_a_recorded_step_gives_losses_gradients_and_draws_of_its_own() -> None:
    weight = nn.Parameter(torch.tensor([2.0], device="cuda"))
    seen = []

    def learn(part, share):
        seen.append(share)
        loss = (weight * part["image"]).sum()
        (share * loss).backward()
        return torch.stack([loss, torch.rand((), device="cuda")]).detach()

    step = CudaGraphStep(learn, [weight], tell=pytest.fail)
    drawn = set()
    for i in range(8):
        weight.grad = None
        loss, draw = step({"image": torch.full((3,), float(i), device="cuda")}, 1.0).tolist()
        assert loss == 6.0 * i
        assert weight.grad.item() == 3.0 * i
        drawn.add(draw)
        with torch.no_grad():
            weight.fill_(2.0)
    assert len(drawn) == 8
    assert len(seen) == 4  # three times as it is, and once to record
    weight.grad = None
    for _ in range(2):  # two halves of a batch add up
        step({"image": torch.ones(3, device="cuda")}, 0.5)
    assert weight.grad.item() == 3.0


def test_what_cannot_be_recorded_is_done_as_before() -> None:
    weight = nn.Parameter(torch.tensor([2.0], device="cuda"))
    told = []

    def learn(part, share):
        loss = (weight * part["image"]).sum()
        loss.backward()
        return torch.tensor([loss.item()], device="cuda")

    step = CudaGraphStep(learn, [weight], tell=told.append)
    for i in range(8):
        weight.grad = None
        assert step({"image": torch.full((3,), float(i), device="cuda")}, 1.0).item() == 6.0 * i
        assert weight.grad.item() == 3.0 * i
    assert len(told) == 1
    assert "cannot be recorded as a CUDA graph: the processor waits" in told[0]
    torch.rand(1, device="cuda")  # which a recording that failed would refuse


@pytest.mark.parametrize("method", ["stl", "mtl", "cross_stitch", "mtan"])
def test_every_method_can_be_recorded(method) -> None:
    study = load_study("nyud-small")
    model = CUDA.place(build_model(study, method)).train()
    image = torch.randn(2, 3, *study.protocol.size, device="cuda")

    def learn(part, share):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            outputs = model(part["image"])
        losses = torch.stack([output.float().square().mean() for output in outputs.values()])
        losses.sum().backward()
        return losses.detach()

    step = CudaGraphStep(learn, model.parameters(), tell=pytest.fail)
    values = []
    for _ in range(6):
        model.zero_grad()
        values.append(step({"image": image}, 1.0))
        assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(values[-1], values[0], rtol=0.05, atol=1e-3)
