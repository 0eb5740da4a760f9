"""Changes that are undone: buffers, random states, parameters, and entries of parameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor, nn

from gatesearch.training.optimizer import Optimizer


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put back buffers and random states afterwards, as if no forward pass had been made."""
    buffers = list(model.buffers())
    kept = [buffer.clone() for buffer in buffers]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


@contextmanager
def replace_values(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Give parameters other values for a while; afterwards they hold theirs again, to the bit."""
    kept = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data = value


def keep_entries(
    parameter: nn.Parameter, chosen: Tensor, *, moments: Callable[[], Iterable[Tensor]]
) -> Callable[[], None]:
    """Keep entries of a parameter while an optimizer makes a step.

    A gradient of 0 does not leave an entry where it is, as its moments move it on.

    Args:
        parameter: (T,).
        chosen: (T,) bool, which entries to keep.
        moments: Returns what the optimizer remembers of the parameter at the time of the call;
            tensors (T,) among it are moments, which are 0 before the first step.

    Returns:
        A function that puts the entries and their moments back.
    """
    chosen = chosen.to(parameter.device)

    def entries() -> list[Tensor]:
        return [parameter.data, *(m for m in moments() if m.shape == parameter.shape)]

    kept = [tensor.clone() for tensor in entries()]

    def put_back() -> None:
        for tensor, value in zip_longest(entries(), kept):
            before = torch.zeros_like(tensor) if value is None else value
            tensor.copy_(torch.where(chosen, before, tensor))

    return put_back


def tensors_of(optimizer: Optimizer, parameter: nn.Parameter) -> Iterable[Tensor]:
    """Return the tensors that an optimizer remembers of a parameter."""
    remembered = optimizer.state.get(parameter, {})
    return [value for value in remembered.values() if isinstance(value, Tensor)]


def materialize(gradient: Tensor) -> Tensor:
    """Copy a gradient whose entries share memory, as autograd's expanded tensors do."""
    return gradient.clone() if 0 in gradient.stride() else gradient
