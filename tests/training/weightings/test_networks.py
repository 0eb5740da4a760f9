"""Weightings on the package's own networks, in bf16 and with batch norm."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.tasks import build_tasks
from gatesearch.training import Runtime
from gatesearch.training.weightings import WEIGHTINGS, TrainingView, build_weighting
from gatesearch.training.weightings.representation import heads_of

OMEGA = {"semseg": 1.0, "depth": 0.5, "normals": 2.0}
BF16 = Runtime(device="cpu", precision="bf16", memory_format="nhwc")
FP32 = Runtime(device="cpu", precision="fp32", memory_format="nhwc")


@pytest.fixture(scope="module")
def study():
    return gs.load_study("nyud-small", overrides=["model.width=0.05", "model.head_channels=4"])


class Scene:
    """A network and one batch.

    Args:
        study: The definition.
        method: Of sharing.
        runtime: Device and precision.
    """

    def __init__(self, study, method: str, runtime: Runtime) -> None:
        self.model = runtime.place(gs.build_model(study, method)).train()
        self.tasks = build_tasks(study.tasks)
        self.runtime = runtime
        draw = torch.Generator().manual_seed(0)
        normals = torch.randn(2, 3, 32, 32, generator=draw)
        self.image = runtime.image(torch.randn(2, 3, 32, 32, generator=draw))
        self.labels = {
            "semseg": torch.randint(0, 40, (2, 32, 32), generator=draw).to(torch.uint8),
            "depth": 0.5 + torch.rand(2, 32, 32, generator=draw),
            "normals": nn.functional.normalize(normals, dim=1),
        }

    def losses(self) -> list[Tensor]:
        with self.runtime.autocast():
            outputs = {task: scores.float() for task, scores in self.model(self.image).items()}
        return [task.loss(outputs[name], self.labels[name]) for name, task in self.tasks.items()]

    @contextmanager
    def balanced(self, name: str, *, combine: bool = True):
        """The gradients of a weighting, which it yields."""
        weighting = build_weighting(name, OMEGA)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        with weighting.attached(TrainingView(self.model, optimizer)):
            weighting.before_step(
                losses=lambda exact=False: torch.stack(self.losses()),
                held_out=lambda exact=False: torch.stack(self.losses()),
            )
            losses = self.losses()
            weighting.backward(losses)
            if combine:
                weighting.combine(torch.stack(losses).detach())
            yield weighting


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_bf16_with_batch_norm(study, name) -> None:
    # torchjd's own differentiation fails here: https://github.com/SimplexLab/TorchJD/issues/699
    scene = Scene(study, "mtl", BF16)
    with scene.balanced(name) as weighting:
        pass
    for parameter in scene.model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.stride() == parameter.stride()
    # A head learns from its own task alone.
    for t, (task, loss) in enumerate(zip(OMEGA, scene.losses(), strict=True)):
        own = list(heads_of(scene.model)[task].parameters())
        factor = OMEGA[task] if WEIGHTINGS[name].kind == "gradient" else weighting.weights[t]
        for parameter, slope in zip(own, torch.autograd.grad(loss, own), strict=True):
            expected = (factor * slope).flatten().tolist()
            assert parameter.grad.flatten().tolist() == pytest.approx(expected, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("method", ["stl", "mtl", "mtan", "cross_stitch", "interrogate"])
@pytest.mark.parametrize("name", ["uncertainty", "pcgrad", "mgda_ub", "graddrop"])
def test_every_way_of_sharing(study, method, name) -> None:
    scene = Scene(study, method, BF16)
    plain = Scene(study, method, BF16)
    torch.stack(plain.losses()).sum().backward()
    with scene.balanced(name):
        pass
    theirs = dict(plain.model.named_parameters())
    for key, parameter in scene.model.named_parameters():
        assert (parameter.grad is None) == (theirs[key].grad is None), key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(
    ("method", "shared", "own"),
    [
        ("stl", [], ["encoders", "heads"]),
        ("mtl", ["encoder"], ["heads"]),
        ("mtan", ["encoder", "refine"], ["masks", "heads"]),
        ("cross_stitch", ["encoders", "stitches"], ["heads"]),
        ("interrogate", ["alpha", "beta", "streams"], ["heads"]),
    ],
)
def test_what_is_shared(study, method, shared, own) -> None:
    scene = Scene(study, method, FP32)
    with scene.balanced("pcgrad", combine=False) as weighting:
        reach = {p: len(rows) for p, rows in weighting._rows.items()}
    for name, parameter in scene.model.named_parameters():
        part = name.split(".")[0]
        if part in own:
            assert reach[parameter] == 1, name
        # Behind the last mix a supernet's stream is its task's own, and the shared one ends.
        elif part in shared and not (method == "interrogate" and "layer4" in name):
            assert reach[parameter] == 3, name


def test_uniform_is_the_plain_sum_to_the_bit(study) -> None:
    ours, plain = Scene(study, "interrogate", BF16), Scene(study, "interrogate", BF16)
    weighting = build_weighting("uniform", OMEGA)
    tau = torch.full((3,), 0.1)
    weighting.backward(ours.losses(), penalty=ours.model.sparsity(tau))
    losses = torch.stack(plain.losses())
    loss = torch.dot(losses, torch.tensor(list(OMEGA.values())).to(losses))
    (loss + plain.model.sparsity(tau)).backward()
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)


def test_upper_bound_weighs_gradients_of_the_features(study) -> None:
    scene = Scene(study, "mtl", FP32)
    features: list[Tensor] = []
    hook = scene.model.encoder.register_forward_hook(lambda m, i, out: features.append(out))
    losses = [w * loss for w, loss in zip(OMEGA.values(), scene.losses(), strict=True)]
    hook.remove()
    slopes = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses]
    encoder = list(scene.model.encoder.parameters())
    rows = [torch.autograd.grad(loss, encoder, retain_graph=True) for loss in losses]
    with scene.balanced("mgda_ub") as weighting:
        w = weighting.weights / torch.tensor(list(OMEGA.values()))
    # No mixture is shorter: towards every vertex the length rises.
    mixed = sum(a * s for a, s in zip(w, slopes, strict=True))
    assert w.sum().item() == pytest.approx(1, rel=1e-5)
    assert min((s * mixed).sum() for s in slopes) >= 0.97 * mixed.square().sum()
    for p, *own in zip(encoder, *rows, strict=True):
        expected = sum(a * g for a, g in zip(w, own, strict=True))
        assert torch.allclose(p.grad, expected, rtol=1e-3, atol=1e-5)


def test_upper_bound_counts_each_path_once_where_heads_read_several_maps(study) -> None:
    """Later maps are computed from earlier ones, whose own gradient is what heads alone give."""
    heads = {name: study.tasks[name].model_copy(update={"head": "fpn"}) for name in OMEGA}
    heads["depth"] = study.tasks["depth"]
    scene = Scene(study.model_copy(update={"tasks": heads}), "mtl", FP32)
    losses = [w * loss for w, loss in zip(OMEGA.values(), scene.losses(), strict=True)]
    encoder = list(scene.model.encoder.parameters())
    rows = [torch.autograd.grad(loss, encoder, retain_graph=True) for loss in losses]
    with scene.balanced("mgda_ub") as weighting:
        w = weighting.weights / torch.tensor(list(OMEGA.values()))
    for p, *own in zip(encoder, *rows, strict=True):
        expected = sum(a * g for a, g in zip(w, own, strict=True))
        assert torch.allclose(p.grad, expected, rtol=1e-3, atol=1e-5)


def test_upper_bound_of_separate_features_is_inverse_squares(study) -> None:
    scene = Scene(study, "mtan", FP32)
    with scene.balanced("mgda_ub") as weighting:
        w = weighting.weights / torch.tensor(list(OMEGA.values()))
    features: dict[str, Tensor] = {}
    for task, head in scene.model.heads.items():
        head.register_forward_pre_hook(lambda m, i, task=task: features.update({task: i[0]}))
    squares = torch.stack(
        [
            (omega * torch.autograd.grad(loss, features[task], retain_graph=True)[0]).square().sum()
            for (task, omega), loss in zip(OMEGA.items(), scene.losses(), strict=True)
        ]
    )
    expected = 1 / squares / (1 / squares).sum()
    assert w.tolist() == pytest.approx(expected.tolist(), rel=0.05)


def test_hooks_are_gone_afterwards(study) -> None:
    scene = Scene(study, "mtl", FP32)
    with scene.balanced("mgda_ub"):
        pass
    assert not any(head._forward_pre_hooks for head in scene.model.heads.values())
