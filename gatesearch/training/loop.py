"""The training loop."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError
from gatesearch.study import TrainingSpec
from gatesearch.tasks import Task
from gatesearch.training.augment import augment
from gatesearch.training.frames import Frames, normalised
from gatesearch.training.runtime import Runtime


class TrainingError(GatesearchError):
    """A training that cannot go on, such as one whose loss is not a number."""


@dataclass
class History:
    """What a training leaves behind beside the weights.

    Attributes:
        curves: Name -> one value an epoch: `loss.<task>`, `lr`, and what `observe` adds.
        seconds: Wall-clock time.
        images: Images seen.
        epochs: Epochs trained.
    """

    curves: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0
    epochs: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Append one epoch's values."""
        for name, value in values.items():
            self.curves.setdefault(name, []).append(value)

    def follow(self, later: "History") -> None:
        """Append a later phase of the same training; NaN where a phase has no such curve."""
        for name in self.curves | later.curves:
            values = self.curves.setdefault(name, [math.nan] * self.epochs)
            values += later.curves.get(name, [math.nan] * later.epochs)
        self.seconds += later.seconds
        self.images += later.images
        self.epochs += later.epochs


def train(
    model: nn.Module,
    frames: Frames,
    tasks: Mapping[str, Task],
    *,
    weights: Mapping[str, float],
    spec: TrainingSpec,
    runtime: Runtime,
    seed: int,
    span: tuple[int, int] | None = None,
    rate: Callable[[str], float] = lambda name: 1.0,
    penalty: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None = None,
    before_step: Callable[[float], None] | None = None,
    observe: Callable[[], Mapping[str, float]] | None = None,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> History:
    """Train a network for `spec.epochs`, or a span of them; the last counts, none is chosen.

    Args:
        model: Image (B, 3, H, W) -> task -> (B, channels, H, W); already placed on the device.
        frames: The training part.
        tasks: Task name -> task.
        weights: Task name -> ω_t, the weight of its loss.
        spec: Optimizer, schedule, epochs, augmentation.
        runtime: Device and precision.
        seed: Of data order, augmentation and whatever the network draws.
        span: (epochs done before, last epoch) of one phase of a longer training: schedule, data
            order and numbers of epochs go on from there. The optimizer begins anew.
        rate: Parameter name -> multiple of the learning rate, kept through the schedule.
        penalty: Added to the loss each step, from the images and predictions of the batch.
        before_step: Called with the share of the span done, in [0, 1).
        observe: Values to keep for each epoch.
        on_epoch: Called behind each epoch with its number from 1 and its values.

    Raises:
        TrainingError: A loss is not finite; names task, epoch and step.
    """
    optimizer = _optimizer(model, spec, rate)
    steps_an_epoch = len(frames) // spec.batch_size
    if steps_an_epoch == 0:
        raise TrainingError(
            f"training.batch_size is {spec.batch_size} but only {len(frames)} frames are left to "
            "train on; lower it, or raise data.train_frames"
        )
    before, last = span or (0, spec.epochs)
    steps = steps_an_epoch * spec.epochs
    first_step = steps_an_epoch * before
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: _decay((first_step + s) / steps, spec)
    )
    # Epochs of a later phase draw what they have not drawn before.
    own_seed = (seed + 7919 * before) % 2**63
    torch.manual_seed(own_seed)
    generator = torch.Generator().manual_seed(own_seed)
    history = History()
    start = time.perf_counter()
    step = 0
    for epoch in range(before + 1, last + 1):
        model.train()
        totals = torch.zeros(len(tasks), dtype=torch.float64)
        for raw in frames.shuffled(spec.batch_size, generator):
            if before_step is not None:
                before_step(step / (steps_an_epoch * (last - before)))
            batch = augment(
                runtime.tensors(raw), tasks, generator=generator, **spec.augment.model_dump()
            )
            with runtime.autocast():
                image = runtime.image(normalised(batch["image"]))
                outputs = {task: scores.float() for task, scores in model(image).items()}
            losses = torch.stack([tasks[t].loss(outputs[t], batch[t]) for t in tasks])
            values = losses.detach().double().cpu()
            _refuse_nonfinite(values, tasks, epoch=epoch, step=step)
            loss = torch.dot(losses, torch.tensor([weights[t] for t in tasks]).to(losses))
            if penalty is not None:
                loss = loss + penalty(image, outputs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            totals += values
            step += 1
        history.images += steps_an_epoch * spec.batch_size
        history.epochs += 1
        history.seconds = time.perf_counter() - start
        means = (totals / steps_an_epoch).tolist()
        seen = {f"loss.{name}": mean for name, mean in zip(tasks, means, strict=True)}
        seen["lr"] = scheduler.get_last_lr()[0]
        if observe is not None:
            seen |= observe()
        history.add(seen)
        if on_epoch is not None:
            on_epoch(epoch, seen)
    return history


def _optimizer(
    model: nn.Module, spec: TrainingSpec, rate: Callable[[str], float]
) -> torch.optim.Optimizer:
    # Mixing weights, gates, norms and biases have an optimum of their own, which is not zero.
    dense = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, dense)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rate(name), id(parameter) in decayed), []).append(parameter)
    described: Iterable[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": spec.lr * multiple,
            "weight_decay": spec.weight_decay if decays else 0.0,
        }
        for (multiple, decays), parameters in groups.items()
    ]
    # One kernel for the whole step; on other devices one for each of its operations.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    one_pass: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    if spec.optimizer == "sgd":
        return torch.optim.SGD(described, lr=spec.lr, momentum=spec.momentum, **one_pass)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(described, lr=spec.lr, **one_pass)


def _decay(share: float, spec: TrainingSpec) -> float:
    if spec.schedule == "constant":
        return 1.0
    return float(max(0.0, 1.0 - share) ** spec.power)


def _refuse_nonfinite(values: Tensor, tasks: Mapping[str, Task], *, epoch: int, step: int) -> None:
    for name, value in zip(tasks, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss of {name} became {value} in epoch {epoch}, step {step + 1}; "
                "lower training.lr, or look for broken labels with `gatesearch data check`"
            )
