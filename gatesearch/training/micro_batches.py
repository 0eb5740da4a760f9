"""Batches in smaller parts where the device's memory does not hold a step on the whole."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatesearch.training.rng import random_states, restore_random_states
from gatesearch.training.split_data import Batch

_LEAST = 2  # frames that batch norm asks for


class MicroBatches:
    """Learns from each batch in as many parts as memory asks for.

    When a part does not fit, what the attempt changed is put back (gradients, statistics of batch
    norm, random states) and the batch is split into twice as many parts; later ones are too. The
    step stays that of the whole batch but for batch norm, which sees micro-batches; for losses that
    are means over labelled pixels, which are averaged over the parts by their frames; and for what
    the network draws, which it draws for each part.

    Args:
        model: The network.
        optimizer: Whose gradients they are.
        device: The network's.
        parts: To begin with.
        agreed: Whether this or any other process that trains the network ran out of memory.
        tell: Receives what was done about it.
        clear: Forgets what else an attempt has left.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: str,
        parts: int,
        agreed: Callable[[bool], bool],
        tell: Callable[[str], None],
        clear: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts = parts
        self._optimizer = optimizer
        self._device = device
        self._agreed = agreed
        self._tell = tell
        self._clear = clear
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = list(by_dtype.values())
        self._kept = [[torch.empty_like(b) for b in buffers] for buffers in self._buffers]

    def run(self, batch: Batch, learn: Callable[[Batch, float], Tensor]) -> Tensor:
        """The mean of what `learn` returns, weighted by frames; gradients are accumulated.

        Args:
            batch: Of one step.
            learn: (part, share of the batch's frames) -> its losses, (T,), without gradient.

        Returns:
            (T,) float64 on the processor.

        Raises:
            torch.OutOfMemoryError: Two frames are too many.
        """
        frames = len(batch["image"])
        # As a training may go on in more processes, each with fewer frames.
        self.parts = min(self.parts, max(1, frames // _LEAST))
        random = random_states(self._device)
        self._copy(self._kept, self._buffers)
        while (values := self._attempt(batch, learn)) is None:
            self._begin()
            if self._device != "cpu":
                torch.get_device_module(self._device).empty_cache()
            restore_random_states(random, self._device)
            self._copy(self._buffers, self._kept)
            self.parts = self._finer(frames)
            self._tell(
                f"out of memory: batches of {frames} frames are now learned from in {self.parts} "
                f"parts of {micro_batch(frames, self.parts)}, by accumulated gradients"
            )
        return values

    def _attempt(self, batch: Batch, learn: Callable[[Batch, float], Tensor]) -> Tensor | None:
        frames = len(batch["image"])
        self._begin()
        values: list[Tensor] = []
        out = False
        try:
            split = {name: tensor.tensor_split(self.parts) for name, tensor in batch.items()}
            for i, image in enumerate(split["image"]):
                share = len(image) / frames
                losses = learn({n: parts[i] for n, parts in split.items()}, share)
                values.append(share * losses.double().cpu())
        except torch.OutOfMemoryError:
            if self._finer(frames) == self.parts:
                raise
            out = True
        return None if self._agreed(out) else torch.stack(values).sum(0)

    def _begin(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._clear()

    def _finer(self, frames: int) -> int:
        return max(self.parts, min(2 * self.parts, frames // _LEAST))

    def _copy(self, targets: list[list[Tensor]], sources: list[list[Tensor]]) -> None:
        for target, source in zip(targets, sources, strict=True):
            torch._foreach_copy_(target, source)


def micro_batch(frames: int, parts: int) -> int:
    """Frames of the largest of so many parts."""
    return -(-frames // parts)
