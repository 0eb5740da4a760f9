"""Passes of a network that leave no trace in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back buffers and random states: batch norm has seen nothing, dropout drawn nothing."""
    buffers = list(model.buffers())
    kept = [buffer.clone() for buffer in buffers]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


def owned(gradient: Tensor) -> Tensor:
    """A gradient whose entries have a place in memory each: autograd gives expanded ones too."""
    return gradient.clone() if 0 in gradient.stride() else gradient


@contextmanager
def moved(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Have parameters hold other values for a while; theirs come back to the bit."""
    kept = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data = value
