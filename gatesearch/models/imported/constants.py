"""Tensors that do not depend on the image: parameters, and what is computed from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is computed from parameters and buffers alone.

    Attributes:
        meta: Its shape and dtype, without data.
        compute: Computes it from a state dict of the recorded module.
        names: Entries of the state dict that it is computed from.
    """

    meta: Tensor
    compute: Callable[[State], Tensor]
    names: frozenset[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(self.meta.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Constant":
        """Return the constant that a function makes of it."""
        return Constant(
            function(self.meta), lambda state: function(self.compute(state)), self.names
        )


def entry(name: str, tensor: Tensor) -> Constant:
    """Return the constant that is an entry of the state dict."""
    return Constant(
        torch.empty_like(tensor, device="meta"), lambda state: state[name], frozenset([name])
    )


def fixed(tensor: Tensor) -> Constant:
    """Return the constant that is a tensor in no state dict."""
    held = tensor.detach()
    return Constant(torch.empty_like(held, device="meta"), lambda state: held, frozenset())


def combined(function: Callable[..., Tensor], *constants: Constant) -> Constant:
    """Return the constant that a function computes from several others."""
    return Constant(
        function(*(constant.meta for constant in constants)),
        lambda state: function(*(constant.compute(state) for constant in constants)),
        frozenset().union(*(constant.names for constant in constants)),
    )
