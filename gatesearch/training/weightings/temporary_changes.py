"""Changes to a network that are undone: buffers, random states and parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


def materialize(gradient: Tensor) -> Tensor:
    """Copy a gradient whose entries share memory, as autograd's expanded tensors do."""
    return gradient.clone() if 0 in gradient.stride() else gradient
