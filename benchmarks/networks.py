"""A supernet's training step, and the plain steps it is compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.models import GatedSupernet, parts_of
from gatesearch.study import Study
from gatesearch.training import Runtime

BATCH = 16


def full_width_study() -> Study:
    """ResNet-18 at full width and output stride 8, three tasks, light heads, 96x128."""
    return gs.load_study("nyud-small", overrides=["model.width=1.0"])


def image_batch(study: Study, runtime: Runtime) -> Tensor:
    """A random batch at the study's size."""
    return runtime.image(torch.randn(BATCH, 3, *study.protocol.size))


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # as in training


@dataclass(frozen=True)
class SupernetStep:
    """Forward, squares of the predictions and the gates' penalty as loss, backward, optimizer."""

    model: GatedSupernet
    optimizer: torch.optim.Optimizer
    image: Tensor
    runtime: Runtime

    @classmethod
    def of(cls, study: Study, image: Tensor, runtime: Runtime) -> "SupernetStep":
        """For a study's supernet."""
        model = runtime.place(gs.build_model(study, "interrogate")).train()
        assert isinstance(model, GatedSupernet)
        return cls(model, _adamw(model), image, runtime)

    def __call__(self) -> None:
        """One step."""
        with self.runtime.autocast():
            outputs = self.model(self.image)
        losses = [output.square().mean() for output in outputs.values()]
        penalty = self.model.sparsity(torch.full((len(losses),), 0.1, device=self.image.device))
        self.optimizer.zero_grad(set_to_none=True)
        (torch.stack(losses).sum() + penalty).backward()
        self.optimizer.step()


@dataclass(frozen=True)
class PlainSteps:
    """T+1 plain encoders and T heads, each with an optimizer of its own.

    The encoder that no head reads has the mean of its features as loss, which costs next to
    nothing: the comparison is not flattered.
    """

    encoders: list[nn.Module]
    heads: list[nn.Module]
    optimizers: dict[nn.Module, torch.optim.Optimizer]
    image: Tensor
    runtime: Runtime

    @classmethod
    def of(cls, study: Study, image: Tensor, runtime: Runtime) -> "PlainSteps":
        """For a study's encoders and heads."""
        parts = parts_of(study)
        encoders = [runtime.place(parts.encoder()).train() for _ in range(len(parts.tasks) + 1)]
        heads = [runtime.place(parts.head(task)).train() for task in parts.tasks]
        optimizers = {module: _adamw(module) for module in [*encoders, *heads]}
        return cls(encoders, heads, optimizers, image, runtime)

    def one_by_one(self) -> None:
        """T+1 encoder steps, then T steps of heads on given features."""
        for encoder in self.encoders:
            with self.runtime.autocast():
                features = encoder(self.image)
            self._finish(encoder, features.mean(dtype=torch.float32))
        # In the network a head's input needs a gradient too.
        features = features.detach().requires_grad_()
        for head in self.heads:
            with self.runtime.autocast():
                output = head(features, self.image.shape[-2:])
            self._finish(head, output.square().mean())

    def together(self) -> None:
        """One step of all: everything forward, then everything backward."""
        with self.runtime.autocast():
            *own, shared = [encoder(self.image) for encoder in self.encoders]
            size = self.image.shape[-2:]
            outputs = [head(x, size) for head, x in zip(self.heads, own, strict=True)]
        losses = [*(output.square().mean() for output in outputs), shared.mean(dtype=torch.float32)]
        del own, shared, outputs
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

    def _finish(self, module: nn.Module, loss: Tensor) -> None:
        self.optimizers[module].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[module].step()
