"""Time and peak memory of a multi-task network's step under each weighting, beside the plain sum.

ResNet-18 at full and a quarter width, three tasks, 96x128, batches of 16. At full width a step of a
method on gradients takes as many FLOPs as 2.24 plain steps: three backward passes of the encoder,
not one. Where torchjd has the same method, its simplest use is timed in turns with ours:
`mtl_backward` on the encoder's features, then `jac_to_grad`.
"""

from collections.abc import Callable

import torch
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.networks import BATCH, full_width_study
from benchmarks.step_memory import peak_bytes
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import Runtime, resolve_runtime
from gatesearch.training.forward import Forward
from gatesearch.training.optimizer import build_optimizer
from gatesearch.training.weightings import WEIGHTINGS, TrainingView, build_weighting

LOSS_BAR, GRADIENT_BAR, MEMORY_BAR, THEIRS_BAR = 1.02, 2.2, 2.0, 1.0
ROUNDS = 5
THEIRS: dict[str, Callable[[], aggregation.Aggregator]] = {
    "mgda": aggregation.MGDA,
    "pcgrad": aggregation.PCGrad,
    "cagrad": lambda: aggregation.CAGrad(c=0.4),
    "upgrad": aggregation.UPGrad,
    "aligned_mtl": aggregation.AlignedMTL,
    "imtl_g": aggregation.IMTLG,
}


class Step:
    """One training step of a multi-task network, as `Trainer` takes it."""

    def __init__(self, study: Study, name: str, runtime: Runtime) -> None:
        self.model = runtime.place(gs.build_model(study, "mtl")).train()
        self.forward = Forward(self.model, build_tasks(study.tasks), runtime)
        omega = {task: spec.weight for task, spec in study.tasks.items()}
        self.weighting = build_weighting(name, omega, device=runtime.device)
        self.optimizer = build_optimizer(
            self.model, study.training, learned=self.weighting.learned_parameters()
        )
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-6  # so that losses stay where they are
        self.batch = _batch(study, runtime.device)

    def again(self, *, exact: bool = False) -> torch.Tensor:
        """Losses of the batch at the current parameters."""
        return self.forward.current_losses(self.batch, exact=exact)

    def __call__(self) -> None:
        """Take the step."""
        with self.weighting.attached(TrainingView(self.model, self.optimizer)):
            self.weighting.before_step(losses=self.again, held_out=self.again)
            self.optimizer.zero_grad(set_to_none=True)
            losses = self.forward.losses(self.forward.predict(self.batch)[1], self.batch)
            self.weighting.backward(losses)
            self.weighting.combine(torch.stack(losses).detach().double().cpu())
            self.optimizer.step()
            self.weighting.after_step(losses=self.again)


class Theirs(Step):
    """The same step by torchjd alone."""

    def __init__(self, study: Study, name: str, runtime: Runtime) -> None:
        super().__init__(study, "uniform", runtime)
        self.aggregator = THEIRS[name]()

    def __call__(self) -> None:
        """Take the step."""
        model = self.model
        assert isinstance(model, MultiTaskNet)
        seen = []
        hooks = [
            head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
            for head in model.heads.values()
        ]
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.forward.losses(self.forward.predict(self.batch)[1], self.batch)
        for hook in hooks:
            hook.remove()
        mtl_backward(losses, features=seen[0])
        jac_to_grad(model.encoder.parameters(), self.aggregator)
        self.optimizer.step()


def measure() -> list[Figure]:
    quarter = gs.load_study("nyud-small")
    return [*_of(full_width_study(), "full"), *_of(quarter, "quarter")]


def _of(study: Study, width: str) -> list[Figure]:
    runtime = resolve_runtime("fp32", "nhwc")
    uniform = Step(study, "uniform", runtime)
    least = peak_bytes(uniform)
    figures = []
    for name, entry in WEIGHTINGS.items():
        if name == "uniform":
            continue
        step = Step(study, name, runtime)
        ratio, ours, plain = in_turns(step, uniform, rounds=ROUNDS)
        bar = GRADIENT_BAR if entry.kind == "gradient" else LOSS_BAR
        detail = f"{ours:.2f} s against {plain:.2f} s"
        figures.append(Figure(f"step time, {width}, {name}", ratio, bar, "x", detail))
        if entry.kind == "gradient":
            most = peak_bytes(step)
            detail = f"{most / 2**30:.2f} GiB against {least / 2**30:.2f} GiB"
            figures.append(
                Figure(f"step memory, {width}, {name}", most / least, MEMORY_BAR, "x", detail)
            )
        if name in THEIRS and width == "full":
            ratio, ours, other = in_turns(step, Theirs(study, name, runtime), rounds=ROUNDS)
            detail = f"{ours:.2f} s against {other:.2f} s"
            figures.append(Figure(f"{name} over torchjd's", ratio, THEIRS_BAR, "x", detail))
    return figures


def _batch(study: Study, device: str) -> dict[str, torch.Tensor]:
    height, width = study.protocol.size
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(BATCH, 3, height, width, generator=generator)
    labels = {
        "image": torch.randint(0, 256, (BATCH, 3, height, width), generator=generator).byte(),
        "semseg": torch.randint(0, 40, (BATCH, height, width), generator=generator).byte(),
        "depth": 1 + 4 * torch.rand(BATCH, height, width, generator=generator),
        "normals": torch.nn.functional.normalize(normals, dim=1),
    }
    return {name: tensor.to(device) for name, tensor in labels.items()}
