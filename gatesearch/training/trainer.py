"""The training loop."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError
from gatesearch.study import TrainingSpec
from gatesearch.training.augment import augment
from gatesearch.training.checkpoint import PhaseCheckpoints, Preempted, Tell, ignore_message
from gatesearch.training.cuda_graph import CudaGraphStep
from gatesearch.training.distributed import Ranks
from gatesearch.training.forward import Forward
from gatesearch.training.history import History
from gatesearch.training.hooks import NO_HOOKS, Hooks
from gatesearch.training.label_counts import count_labels
from gatesearch.training.micro_batches import Learn, MicroBatches, micro_batch_size
from gatesearch.training.optimizer import (
    ParameterGroup,
    build_optimizer,
    set_learning_rates,
)
from gatesearch.training.prefetch import prefetch
from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import Batch, TrainingData
from gatesearch.training.training_state import Progress, TrainingState
from gatesearch.training.turns import Turn, shuffled_in_turn
from gatesearch.training.weightings import TrainingView, UnbalancedError, Weighting


class TrainingError(GatesearchError):
    """A training that cannot go on, such as one whose loss is not a number."""


class Trainer:
    """Trains a network for `spec.epochs`, or a span of them.

    The network after the last epoch counts; none is chosen. A step that runs out of memory is taken
    again in micro-batches (see `MicroBatches`), and so are all later ones; the curve `micro_batch`
    then holds their frames. All that changes with the steps is in `TrainingState`.

    Args:
        model: Image (B, 3, H, W) -> task -> (B, channels, H, W); already placed on the device.
        data: Frames and tasks.
        weighting: How losses or gradients of the tasks are balanced; begins anew with the training.
        spec: Optimizer, schedule, epochs, augmentation.
        runtime: Device and precision.
        seed: Seed of data order, augmentation and whatever the network draws.
        span: (epochs done before, last epoch) of one phase of a longer training: schedule, data
            order and numbers of epochs go on from there. The optimizer begins anew.
        groups: Which parameters are trained, and how; all at the study's rate when None. Parameters
            in no group are frozen meanwhile, though batch norm still updates its statistics.
        turns: Turns that every epoch consists of, with their groups in place of `groups`; an epoch
            is one pass over all frames without any.
        hooks: What the phase adds to plain training.
        checkpoints: Where checkpoints are kept, and the one to go on from.
        ranks: The processes that train the network together, each with a trainer of its own.
        on_epoch: Called after each epoch with its number, from 1, and its values.
        tell: Receives what was done about a lack of memory.

    Raises:
        TrainingError: Batches cannot be made.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        *,
        weighting: Weighting,
        spec: TrainingSpec,
        runtime: Runtime,
        seed: int,
        span: tuple[int, int] | None = None,
        groups: Sequence[ParameterGroup] | None = None,
        turns: Sequence[Turn] = (),
        hooks: Hooks = NO_HOOKS,
        checkpoints: PhaseCheckpoints | None = None,
        ranks: Ranks | None = None,
        on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
        tell: Tell = ignore_message,
    ) -> None:
        self.model = model
        self.data = data
        self.weighting = weighting
        self.spec = spec
        self.runtime = runtime
        self.hooks = hooks
        self.checkpoints = checkpoints
        self.ranks = ranks or Ranks()
        self.on_epoch = on_epoch
        self.epochs_before, self.last_epoch = span or (0, spec.epochs)
        self.parts = [turn.frames(data.train) for turn in turns] or [data.train]
        self.turn_steps = [
            _steps_per_epoch(len(part), spec.batch_size, self.ranks) for part in self.parts
        ]
        self.steps_per_epoch = sum(self.turn_steps)
        # A later phase draws other numbers than the phases before it.
        self.seed = (seed + 7919 * self.epochs_before) % 2**63
        if turns:
            groups = [group for turn in turns for group in turn.groups]
        self.turn_parameters = [
            [p for group in turn.groups for p in group.parameters if p.requires_grad]
            for turn in turns
        ]
        self.optimizer = build_optimizer(model, spec, groups, weighting.learned_parameters())
        self.state = self._initial_state()
        self.forward = Forward(model, data.tasks, runtime)
        self.micro_batches = MicroBatches(
            model,
            self.optimizer,
            device=runtime.device,
            any_rank=self.ranks.any,
            tell=tell,
            clear=weighting.clear,
        )
        chosen = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        everything = [*model.parameters(), *weighting.learned_parameters()]
        self.trained = [p for p in everything if id(p) in chosen]
        self.running_statistics = [b for b in model.buffers() if b.is_floating_point()]
        self.learn = self._choose_learn(tell)
        self._started = 0.0  # on the clock, less the seconds before the checkpoint gone on from

    def run(self) -> History:
        """Train the network.

        Returns:
            The history of the span, empty if the span is.

        Raises:
            TrainingError: A loss or gradient is not finite; names task, epoch and step.
            Preempted: The training was asked to stop; the last checkpoint holds it.
            torch.OutOfMemoryError: Micro-batches of two frames are too large.
        """
        if self.epochs_before == self.last_epoch:
            return History()
        with self.prepared():
            for epoch in self.epochs_left():
                self.model.train()
                for batch in self.make_batches():
                    self.step(batch, epoch)
                    if self.steps_of_epoch:
                        self.keep_checkpoint()
                self.close_epoch(epoch)
                if self.should_halt():
                    break
                # Not before `close_epoch`, so that hooks observe what the last step left.
                self.keep_checkpoint()
        return self.state.progress.history

    @property
    def steps_of_epoch(self) -> int:
        """Steps taken in the epoch that is under way; 0 between two epochs."""
        return self.state.progress.done % self.steps_per_epoch

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Start or go on, and freeze what is not trained; steps are taken within."""
        self.restore_or_start()
        view = TrainingView(self.model, self.optimizer, self.ranks.average)
        with _freeze_others(self.model, self.trained), self.weighting.attached(view):
            yield

    def restore_or_start(self) -> None:
        """Go on from the checkpoint, if there is one, with the same parameters in all processes."""
        torch.manual_seed(self.seed)
        if self.checkpoints is not None and self.checkpoints.resume is not None:
            self.state.restore(self.checkpoints.resume, self.checkpoints)
        self._started = time.perf_counter() - self.state.progress.history.seconds
        self.ranks.broadcast(self.model)
        self.set_learning_rates()

    def epochs_left(self) -> range:
        """Return the numbers of the epochs that are not done; the first may be begun."""
        done = self.state.progress.done // self.steps_per_epoch
        return range(self.epochs_before + 1 + done, self.last_epoch + 1)

    def make_batches(self) -> Iterator[Batch]:
        """Draw an epoch's order of frames, or the same order again where one was interrupted.

        Returns:
            The augmented batches that the epoch has not yet learned from, on the device.
        """
        batches, generator = self.draw_order(), self.state.data_generator
        if self.runtime.device == "cpu":
            return prefetch(batches, self.augment, generator)
        return (self.augment(batch, generator) for batch in batches)  # the device works ahead

    def draw_order(self) -> Iterator[Batch]:
        """Return the batches of `make_batches` as the data has them."""
        progress, generator = self.state.progress, self.state.data_generator
        size, taken = self.spec.batch_size, self.steps_of_epoch
        now = generator.get_state()
        if not taken:
            progress.order = now
            progress.totals.zero_()
            progress.unlabelled.zero_()
            return shuffled_in_turn(self.parts, self.turn_steps, size, generator)
        generator.set_state(progress.order)
        batches = shuffled_in_turn(self.parts, self.turn_steps, size, generator, skip=taken)
        generator.set_state(now)
        return batches

    def step(self, batch: Batch, epoch: int) -> None:
        """Learn from one augmented batch: weigh the losses, change the parameters.

        Tasks of which no frame has labels take no part.
        """
        progress = self.state.progress
        counts = count_labels(batch, processes=self.ranks.size)
        self.take_turn()
        if self.hooks.before_step is not None:
            steps = self.steps_per_epoch * (self.last_epoch - self.epochs_before)
            self.hooks.before_step(progress.done / steps)
        part = self.ranks.slice(batch)
        current_losses = partial(self.forward.current_losses, part, counts=counts)
        self.weighting.present = None if counts is None else counts.present
        self.weighting.before_step(losses=current_losses, held_out=self.held_out_losses)
        losses, progress.parts = self.micro_batches.run(
            part, self.learn, parts=progress.parts, counts=counts
        )
        self.average_over_ranks(losses)
        with _add_location(epoch, progress.done + 1):
            self.weighting.combine(losses)
        self.optimizer.step()
        if self.hooks.after_step is not None:
            self.hooks.after_step()
        self.weighting.after_step(losses=current_losses)
        progress.done += 1
        if counts is None:
            progress.totals += losses
        else:
            progress.totals += losses * (counts.labelled / counts.frames)
            progress.unlabelled += counts.frames - counts.labelled
        self.set_learning_rates()

    def take_turn(self) -> None:
        """Freeze the parameters that learn in other turns of the epoch than the next step's."""
        current = bisect_right(list(accumulate(self.turn_steps)), self.steps_of_epoch)
        for index, parameters in enumerate(self.turn_parameters):
            for parameter in parameters:
                parameter.requires_grad_(index == current)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Move a batch to the device and change its frames at random."""
        return augment(
            self.runtime.tensors(batch),
            self.data.tasks,
            generator=generator,
            **self.spec.augment.model_dump(),
        )

    def held_out_losses(self, *, exact: bool = False) -> Tensor:
        """Return the (T,) losses of a random batch of the validation part; 0 for absent tasks."""
        held_out = self.data.held_out
        assert held_out is not None, "this weighting looks at held-out frames"
        size = min(self.spec.batch_size, len(held_out)) // self.ranks.size * self.ranks.size
        order = torch.randperm(len(held_out), generator=self.state.held_out_generator)
        batch = held_out.batch(order[:size])
        counts = count_labels(batch, processes=self.ranks.size)
        part = self.ranks.slice(self.runtime.tensors(batch))
        return self.forward.current_losses(part, counts=counts, exact=exact)

    def average_over_ranks(self, losses: Tensor) -> None:
        """Average losses, gradients and statistics of batch norm over the processes."""
        gradients = (p.grad for p in self.trained if p.grad is not None)
        pending = self.weighting.pending()
        self.ranks.average(chain([losses], gradients, pending, self.running_statistics))

    def set_learning_rates(self) -> None:
        """Set the learning rates of the next step."""
        done = self.steps_per_epoch * self.epochs_before + self.state.progress.done
        share = done / (self.steps_per_epoch * self.spec.epochs)
        set_learning_rates(self.optimizer, self.spec, share)

    def close_epoch(self, epoch: int) -> None:
        """Add an epoch's values to the history."""
        history = self.state.progress.history
        history.images += self.steps_per_epoch * self.spec.batch_size
        history.seconds = time.perf_counter() - self._started
        values = self.epoch_values(epoch)
        history.add(values)
        if self.on_epoch is not None:
            self.on_epoch(epoch, values)

    def epoch_values(self, epoch: int) -> dict[str, float]:
        """Return the losses, weights and learning rate of an epoch, and what hooks observe.

        Losses are means over labelled frames. A task that had none in the epoch has no loss.
        """
        progress = self.state.progress
        labelled_steps = self.steps_per_epoch - progress.unlabelled / self.spec.batch_size
        losses = (progress.totals / labelled_steps).tolist()
        means = {
            name: loss
            for name, loss, steps in zip(
                self.data.tasks, losses, labelled_steps.tolist(), strict=True
            )
            if steps > 0
        }
        values = {f"loss.{name}": mean for name, mean in means.items()}
        values |= self.weighting.end_epoch(means)
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        if progress.parts > 1:
            frames = self.spec.batch_size // self.ranks.size
            values["micro_batch"] = float(micro_batch_size(frames, progress.parts))
        if self.hooks.observe is not None:
            values |= self.hooks.observe(epoch)
        return values

    def should_halt(self) -> bool:
        """Return whether the hooks of any process end the phase."""
        return self.ranks.any(self.hooks.halt is not None and self.hooks.halt())

    def keep_checkpoint(self) -> None:
        """Write a checkpoint if it is time for one.

        Raises:
            Preempted: A process was asked to stop.
        """
        self.state.progress.history.seconds = time.perf_counter() - self._started
        if self.checkpoints is None:
            return
        kept = self.checkpoints.checkpoints
        stopping = self.ranks.any(kept.stopping())
        if self.ranks.rank == 0 and (stopping or kept.due()):
            kept.save(self.state.checkpoint(self.checkpoints))
        if stopping:
            raise Preempted

    def _initial_state(self) -> TrainingState:
        data, held_out = (torch.Generator().manual_seed(self.seed) for _ in range(2))
        totals = torch.zeros(len(self.data.tasks), dtype=torch.float64)
        return TrainingState(
            model=self.model,
            optimizer=self.optimizer,
            weighting=self.weighting,
            data_generator=data,
            held_out_generator=held_out,
            device=self.runtime.device,
            progress=Progress(totals, torch.zeros_like(totals), order=data.get_state()),
        )

    def _choose_learn(self, tell: Tell) -> Learn:
        """Record a CUDA graph of the passes through the network if they are the same each step."""
        # No method, as the trainer would then hold itself, and memory longer than it is used.
        learn = partial(_learn, self.forward, self.weighting, self.hooks)
        added = (self.hooks.penalty, self.hooks.frame_penalty, self.hooks.before_step)
        plain = all(hook is None for hook in added) and not self.turn_parameters
        if self.runtime.graphs and plain and type(self.weighting) is Weighting:
            return CudaGraphStep(learn, self.trained, tell=tell)
        return learn


def _learn(
    forward: Forward,
    weighting: Weighting,
    hooks: Hooks,
    part: Batch,
    share: float,
    shares: Tensor | None = None,
) -> Tensor:
    """Add the gradients of a part of a batch.

    Args:
        forward: Forward passes.
        weighting: Balances the losses.
        hooks: Their penalties are added to the loss.
        part: The part.
        share: Its share of the batch's frames.
        shares: (T,) its share of each task's labelled frames; None if all frames are labelled.

    Returns:
        (T,) losses without graph.
    """
    image, outputs = forward.predict(part)
    losses = forward.losses(outputs, part, present=weighting.present)
    extra = None if hooks.penalty is None else hooks.penalty(image, outputs)
    if hooks.frame_penalty is not None:
        by_frame = hooks.frame_penalty(forward.frame_losses(outputs, part))
        extra = by_frame if extra is None else extra + by_frame
    del image, outputs  # not held in memory while gradients are computed
    weighting.backward(losses, share=share, shares=shares, penalty=extra)
    return torch.stack(losses).detach()


def _steps_per_epoch(frames: int, batch_size: int, ranks: Ranks) -> int:
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


@contextmanager
def _freeze_others(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Freeze the parameters that are not trained; free all again at the end."""
    chosen = {id(parameter) for parameter in trained}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in chain(others, trained):  # turns have frozen some of the latter
            parameter.requires_grad_(True)


@contextmanager
def _add_location(epoch: int, step: int) -> Iterator[None]:
    """Add epoch and step to the error of a loss or gradient that is not finite."""
    try:
        yield
    except UnbalancedError as error:
        raise TrainingError(
            f"{error} in epoch {epoch}, step {step}; lower training.lr, or look for broken labels "
            "with `gatesearch data check`"
        ) from error
