"""The training loop."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError
from gatesearch.study import TrainingSpec
from gatesearch.tasks import Task
from gatesearch.training.augment import augment
from gatesearch.training.checkpoint import Phase, Preempted, Tell, nothing
from gatesearch.training.cuda_graph import CudaGraph
from gatesearch.training.distributed import Ranks
from gatesearch.training.forward import Forward
from gatesearch.training.history import History
from gatesearch.training.micro_batches import MicroBatches, micro_batch
from gatesearch.training.optimizer import build_optimizer, schedule
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import Batch, Frames
from gatesearch.training.training_state import Progress, TrainingState
from gatesearch.training.weightings import Training, UnbalancedError, Weighting


class TrainingError(GatesearchError):
    """A training that cannot go on, such as one whose loss is not a number."""


def train(
    model: nn.Module,
    frames: Frames,
    tasks: Mapping[str, Task],
    *,
    weighting: Weighting,
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
    held_out: Frames | None = None,
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
        weighting: How their losses or gradients are balanced; begins anew with the training.
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
        held_out: The validation part, for a weighting that looks at it; it draws batches of it.
        phase: Where checkpoints are kept, and the one to go on from.
        ranks: The processes that train the network together, each calling this alike.
        tell: Receives what was done about a lack of memory.

    Raises:
        TrainingError: A loss or gradient is not finite; names task, epoch and step. Or batches
            cannot be made.
        Preempted: The training was asked to stop; the last checkpoint holds it.
        torch.OutOfMemoryError: Micro-batches of two frames are too large.
    """
    ranks = ranks or Ranks()
    optimizer = build_optimizer(model, spec, rate, weighting.trained())
    steps_an_epoch = _steps_an_epoch(len(frames), spec.batch_size, ranks)
    before, last = span or (0, spec.epochs)
    # Epochs of a later phase draw what they have not drawn before.
    own_seed = (seed + 7919 * before) % 2**63
    torch.manual_seed(own_seed)
    generator = torch.Generator().manual_seed(own_seed)
    aside = torch.Generator().manual_seed(own_seed)
    place = TrainingState(model, optimizer, weighting, (generator, aside), runtime.device)
    progress = Progress(torch.zeros(len(tasks), dtype=torch.float64), generator.get_state())
    if phase is not None and phase.resume is not None:
        progress = place.restore(phase.resume, phase)
    history = progress.history
    start = time.perf_counter() - history.seconds
    ranks.spread(model)
    batches = MicroBatches(
        model, optimizer, device=runtime.device, parts=progress.parts, agreed=ranks.any, tell=tell,
        clear=weighting.clear,
    )  # fmt: skip
    forward = Forward(model, tasks, runtime)
    trained = [*model.parameters(), *weighting.trained()]
    running = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def decay(done: int) -> None:
        share = (steps_an_epoch * before + done) / (steps_an_epoch * spec.epochs)
        schedule(optimizer, spec, share)

    def learn(part: Batch, share: float) -> Tensor:
        image, outputs = forward.predict(part)
        losses = forward.losses(outputs, part)
        extra = None if penalty is None else penalty(image, outputs)
        weighting.backward(losses, share=share, penalty=extra)
        return torch.stack(losses).detach()

    alike = type(weighting) is Weighting and penalty is None and before_step is None
    learner = CudaGraph(learn, trained, tell=tell) if runtime.graphs and alike else learn

    def unseen(*, exact: bool = False) -> Tensor:
        assert held_out is not None, "this weighting looks at held-out frames"
        size = min(spec.batch_size, len(held_out)) // ranks.size * ranks.size
        drawn = held_out.batch(torch.randperm(len(held_out), generator=aside)[:size])
        return forward.again(ranks.slice(runtime.tensors(drawn)), exact=exact)

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
    with weighting.attached(Training(model, optimizer, ranks.average)):
        for epoch in range(before + 1 + progress.done // steps_an_epoch, last + 1):
            model.train()
            for raw in _batches(frames, spec.batch_size, generator, progress, steps_an_epoch):
                if before_step is not None:
                    before_step(progress.done / (steps_an_epoch * (last - before)))
                batch = augment(
                    runtime.tensors(raw), tasks, generator=generator, **spec.augment.model_dump()
                )
                part = ranks.slice(batch)
                again = partial(forward.again, part)
                weighting.before_step(losses=again, held_out=unseen)
                values = batches.run(part, learner)
                gradients = (p.grad for p in trained if p.grad is not None)
                ranks.average(chain([values], gradients, weighting.pending(), running))
                with _placed(epoch, progress.done + 1):
                    weighting.combine(values)
                optimizer.step()
                weighting.after_step(losses=again)
                progress.done += 1
                progress.parts = batches.parts
                progress.totals += values
                decay(progress.done)
                if progress.done % steps_an_epoch:
                    keep()
            history.images += steps_an_epoch * spec.batch_size
            history.seconds = time.perf_counter() - start
            means = dict(zip(tasks, (progress.totals / steps_an_epoch).tolist(), strict=True))
            seen = {f"loss.{name}": mean for name, mean in means.items()}
            seen |= weighting.end_epoch(means)
            seen["lr"] = optimizer.param_groups[0]["lr"]
            if batches.parts > 1:
                seen["micro_batch"] = float(
                    micro_batch(spec.batch_size // ranks.size, batches.parts)
                )
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


@contextmanager
def _placed(epoch: int, step: int) -> Iterator[None]:
    """Say where it was that a loss or gradient was not finite."""
    try:
        yield
    except UnbalancedError as error:
        raise TrainingError(
            f"{error} in epoch {epoch}, step {step}; lower training.lr, or look for broken labels "
            "with `gatesearch data check`"
        ) from error
