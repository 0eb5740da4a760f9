"""Steps of small networks as one launch: CUDA graphs of a forward and backward pass."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gatesearch.errors import first_line
from gatesearch.training.micro_batches import Learn
from gatesearch.training.split_data import LABELLED, Batch

_WATCHED_STEP = 3  # by which torch has chosen kernels and allocated memory


class CudaGraphStep:
    """Learns from whole batches by replaying what it recorded while it learned from one.

    The kernels of a small network take a GPU less time than the processor takes to launch them one
    by one (docs/reference/benchmarks.md). A recording is replayed exactly as it is, so nothing
    that changes from step to step may be decided in Python; values in tensors may change. From the
    first batch that says which frames have labels, nothing is recorded any more: which tasks take
    part changes from step to step.

    Args:
        learn: Learns from a batch; parameters have no gradients before.
        parameters: Which of them `learn` may give gradients.
        tell: Receives why steps cannot be recorded; they are then launched kernel by kernel.
    """

    def __init__(
        self, learn: Learn, parameters: Iterable[nn.Parameter], *, tell: Callable[[str], None]
    ) -> None:
        self._learn = learn
        self._parameters = list(parameters)
        self._tell = tell
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0
        self._possible = True

    def __call__(self, part: Batch, share: float, shares: Tensor | None = None, /) -> Tensor:
        """Learn from a part of a batch: what `learn` does and returns."""
        # Memory does not hold the whole batch, or some of its frames may have no labels.
        if share < 1 or LABELLED in part:
            self._possible, self._graph = False, None
        elif self._possible and self._graph is None:
            self._steps += 1
            if self._steps == _WATCHED_STEP:
                return self._watch(part)
            if self._steps > _WATCHED_STEP:
                self._record(part)
        if self._graph is None:
            return self._learn(part, share) if shares is None else self._learn(part, share, shares)
        for name, tensor in self._part.items():
            tensor.copy_(part[name])
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._losses.clone()

    def _watch(self, part: Batch) -> Tensor:
        """Take a step without recording it; find out whether the processor waits for the device.

        If it does, recording would fail and leave torch's random generator unusable (2.11).
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self._learn(part, 1.0)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if any("synchronizing CUDA operation" in str(warning.message) for warning in caught):
            self._give_up("the processor waits for the device in them")
        return losses

    def _give_up(self, reason: str) -> None:
        self._possible = False
        self._tell(
            "steps are launched kernel by kernel, as they cannot be recorded as a CUDA graph: "
            f"{reason}"
        )

    def _record(self, part: Batch) -> None:
        self._part = {name: tensor.clone() for name, tensor in part.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._losses = self._learn(self._part, 1.0)
        except RuntimeError as error:  # of which lack of memory is one
            self._give_up(first_line(error))
            for parameter in self._parameters:
                parameter.grad = None
            return
        self._graph = graph
        self._gradients = [(p, p.grad) for p in self._parameters if p.grad is not None]
