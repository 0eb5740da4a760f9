"""Batches in smaller parts where the device's memory does not hold a step on the whole."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from gatesearch.training.label_counts import LabelCounts
from gatesearch.training.optimizer import Optimizer
from gatesearch.training.rng import random_states, restore_random_states
from gatesearch.training.split_data import Batch

_MIN_FRAMES = 2  # that batch norm needs


class Learn(Protocol):
    """Adds the gradients of a part of a batch to those of parameters."""

    def __call__(self, part: Batch, share: float, shares: Tensor | None = None, /) -> Tensor:
        """Learn from a part.

        Args:
            part: The part.
            share: Its share of the batch's frames.
            shares: (T,) its share of each task's labelled frames, which then weigh the tasks'
                losses; None if all frames are labelled.

        Returns:
            (T,) losses on the device, without a graph.
        """


class MicroBatches:
    """Learns from each batch in as many parts as memory asks for.

    When a part does not fit, what the attempt changed is put back (gradients, statistics of batch
    norm, random states), and the batch is split into twice as many parts. The step stays that of
    the whole batch with three exceptions: batch norm sees micro-batches; losses, which are means
    over labelled pixels, are averaged over the parts by their labelled frames; and whatever the
    network draws at random is drawn for each part.

    Args:
        model: The network.
        optimizer: Its gradients are removed before an attempt.
        device: Device of the network.
        any_rank: Whether a flag is up in any process that trains the network. If one of them ran
            out of memory, all split their batches.
        tell: Receives a message when batches are split.
        clear: Removes what else an attempt has left.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        device: str,
        any_rank: Callable[[bool], bool],
        tell: Callable[[str], None],
        clear: Callable[[], None] = lambda: None,
    ) -> None:
        self._optimizer = optimizer
        self._device = device
        self._any_rank = any_rank
        self._tell = tell
        self._clear = clear
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = list(by_dtype.values())
        self._kept = [[torch.empty_like(b) for b in buffers] for buffers in self._buffers]

    def run(
        self, batch: Batch, learn: Learn, *, parts: int, counts: LabelCounts | None = None
    ) -> tuple[Tensor, int]:
        """Learn from a batch; gradients of its parts are accumulated.

        Args:
            batch: Batch of one step.
            learn: Learns from a part.
            parts: Into how many parts to split the batch at first.
            counts: Labelled frames of the batch, of all processes; None if all are labelled.

        Returns:
            The mean of the parts' losses, weighted by their labelled frames, (T,) float64 on the
            processor; and into how many parts the batch was split.

        Raises:
            torch.OutOfMemoryError: Two frames are too many.
        """
        frames = len(batch["image"])
        # A training may go on in more processes than before, each with fewer frames.
        parts = min(parts, max(1, frames // _MIN_FRAMES))
        random = random_states(self._device)
        self._copy(self._kept, self._buffers)
        while (losses := self._attempt(batch, learn, parts, counts)) is None:
            self._remove_gradients()
            if self._device != "cpu":
                torch.get_device_module(self._device).empty_cache()
            restore_random_states(random, self._device)
            self._copy(self._buffers, self._kept)
            parts = _more_parts(parts, frames)
            self._tell(
                f"out of memory: batches of {frames} frames are now learned from in {parts} "
                f"parts of {micro_batch_size(frames, parts)}, by accumulated gradients"
            )
        return losses, parts

    def _attempt(
        self, batch: Batch, learn: Learn, parts: int, counts: LabelCounts | None
    ) -> Tensor | None:
        """Learn from a batch in so many parts; None if memory did not suffice."""
        frames = len(batch["image"])
        self._remove_gradients()
        weighted: list[Tensor] = []
        out_of_memory = False
        try:
            split = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
            for i, image in enumerate(split["image"]):
                share = len(image) / frames
                part = {name: tensors[i] for name, tensors in split.items()}
                if counts is None:
                    weighted.append(share * learn(part, share).double().cpu())
                else:
                    shares = counts.shares(part)
                    weighted.append(shares * learn(part, share, shares).double().cpu())
        except torch.OutOfMemoryError:
            if _more_parts(parts, frames) == parts:
                raise
            out_of_memory = True
        return None if self._any_rank(out_of_memory) else torch.stack(weighted).sum(0)

    def _remove_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._clear()

    def _copy(self, targets: list[list[Tensor]], sources: list[list[Tensor]]) -> None:
        for target, source in zip(targets, sources, strict=True):
            torch._foreach_copy_(target, source)


def _more_parts(parts: int, frames: int) -> int:
    """Twice as many parts, if each still has the frames that batch norm needs."""
    return max(parts, min(2 * parts, frames // _MIN_FRAMES))


def micro_batch_size(frames: int, parts: int) -> int:
    """Frames of the largest of so many parts."""
    return -(-frames // parts)
