"""The training loop."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError
from gatesearch.study import TrainingSpec
from gatesearch.tasks import Task
from gatesearch.training.augment import augment
from gatesearch.training.checkpoint import Phase, Preempted, Tell, nothing
from gatesearch.training.frames import Batch, Frames, normalised
from gatesearch.training.history import History
from gatesearch.training.memory import MicroBatches, micro_batch
from gatesearch.training.progress import Place, Progress
from gatesearch.training.ranks import Ranks
from gatesearch.training.runtime import Runtime


class TrainingError(GatesearchError):
    """A training that cannot go on, such as one whose loss is not a number."""


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
    observe: Callable[[int], Mapping[str, float]] | None = None,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
    halt: Callable[[], bool] | None = None,
    phase: Phase | None = None,
    ranks: Ranks | None = None,
    tell: Tell = nothing,
) -> History:
    """Train a network for `spec.epochs`, or a span of them; the last counts, none is chosen.

    A step that runs out of memory is taken again in micro-batches (see `MicroBatches`), and so are
    all later ones; the curve `micro_batch` then tells their frames.

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
        observe: Number of an epoch, from 1 -> values to keep for it.
        on_epoch: Called behind each epoch with its number from 1 and its values.
        halt: Whether to end here, asked behind each epoch.
        phase: Where checkpoints are kept, and the one to go on from.
        ranks: The processes that train the network together, each calling this alike.
        tell: Receives what was done about a lack of memory.

    Raises:
        TrainingError: A loss is not finite; names task, epoch and step. Or batches cannot be made.
        Preempted: The training was asked to stop; the last checkpoint holds it.
        torch.OutOfMemoryError: Micro-batches of two frames are too large.
    """
    ranks = ranks or Ranks()
    optimizer = _optimizer(model, spec, rate)
    steps_an_epoch = _steps_an_epoch(len(frames), spec.batch_size, ranks)
    before, last = span or (0, spec.epochs)
    # Epochs of a later phase draw what they have not drawn before.
    own_seed = (seed + 7919 * before) % 2**63
    torch.manual_seed(own_seed)
    generator = torch.Generator().manual_seed(own_seed)
    place = Place(model, optimizer, generator, runtime.device)
    progress = Progress(torch.zeros(len(tasks), dtype=torch.float64), generator.get_state())
    if phase is not None and phase.resume is not None:
        progress = place.restore(phase.resume, phase)
    history = progress.history
    start = time.perf_counter() - history.seconds
    ranks.spread(model)
    batches = MicroBatches(
        model, optimizer, device=runtime.device, parts=progress.parts, agreed=ranks.any, tell=tell
    )
    running = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def decay(done: int) -> None:
        share = (steps_an_epoch * before + done) / (steps_an_epoch * spec.epochs)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * _decay(share, spec)

    def learn(part: Batch, share: float) -> Tensor:
        with runtime.autocast():
            image = runtime.image(normalised(part["image"]))
            outputs = {task: scores.float() for task, scores in model(image).items()}
        losses = torch.stack([tasks[t].loss(outputs[t], part[t]) for t in tasks])
        loss = torch.dot(losses, torch.tensor([weights[t] for t in tasks]).to(losses))
        if penalty is not None:
            loss = loss + penalty(image, outputs)
        (share * loss).backward()
        return losses.detach().double().cpu()

    def keep() -> None:
        history.seconds = time.perf_counter() - start
        if phase is None:
            return
        stopping = ranks.any(phase.checkpoints.stopping())
        if ranks.rank == 0 and (stopping or phase.checkpoints.due()):
            phase.checkpoints.save(place.checkpoint(phase, progress))
        if stopping:
            raise Preempted

    decay(progress.done)
    for epoch in range(before + 1 + progress.done // steps_an_epoch, last + 1):
        model.train()
        for raw in _batches(frames, spec.batch_size, generator, progress, steps_an_epoch):
            if before_step is not None:
                before_step(progress.done / (steps_an_epoch * (last - before)))
            batch = augment(
                runtime.tensors(raw), tasks, generator=generator, **spec.augment.model_dump()
            )
            values = batches.run(ranks.slice(batch), learn)
            gradients = (p.grad for p in model.parameters() if p.grad is not None)
            ranks.average(chain([values], gradients, running))
            _refuse_nonfinite(values, tasks, epoch=epoch, step=progress.done)
            optimizer.step()
            progress.done += 1
            progress.parts = batches.parts
            progress.totals += values
            decay(progress.done)
            if progress.done % steps_an_epoch:
                keep()
        history.images += steps_an_epoch * spec.batch_size
        history.seconds = time.perf_counter() - start
        means = (progress.totals / steps_an_epoch).tolist()
        seen = {f"loss.{name}": mean for name, mean in zip(tasks, means, strict=True)}
        seen["lr"] = optimizer.param_groups[0]["lr"]
        if batches.parts > 1:
            seen["micro_batch"] = float(micro_batch(spec.batch_size // ranks.size, batches.parts))
        if observe is not None:
            seen |= observe(epoch)
        history.add(seen)
        if on_epoch is not None:
            on_epoch(epoch, seen)
        if ranks.any(halt is not None and halt()):
            break
        # Not before the epoch's end, so that `observe` sees what the last step left.
        keep()
    return history


def _steps_an_epoch(frames: int, batch_size: int, ranks: Ranks) -> int:
    if batch_size % ranks.size:
        raise TrainingError(
            f"training.batch_size must divide among the processes: {batch_size} frames on "
            f"{ranks.size}; take {batch_size // ranks.size * ranks.size + ranks.size}"
        )
    if frames < batch_size:
        raise TrainingError(
            f"training.batch_size is {batch_size} but only {frames} frames are left to "
            "train on; lower it, or raise data.train_frames"
        )
    return frames // batch_size


def _batches(
    frames: Frames,
    batch_size: int,
    generator: torch.Generator,
    progress: Progress,
    steps_an_epoch: int,
) -> Iterator[Batch]:
    """What is left of an epoch."""
    skip = progress.done % steps_an_epoch
    now = generator.get_state()
    if skip:
        generator.set_state(progress.order)
    else:
        progress.order = now
        progress.totals.zero_()
    left = frames.shuffled(batch_size, generator, skip=skip)
    if skip:
        generator.set_state(now)
    return left


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
            "initial_lr": spec.lr * multiple,
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
