"""Element-wise functions of one value, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors, in_inference
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.elementwise import OfOne, OfOneStep, Weightless
from gatesearch.models.nodes.step import StepWeights

# Name -> function of a tensor and of numbers. Files name functions; they hold no code.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "add": torch.add,
    "celu": F.celu,
    "clamp": torch.clamp,
    "divide": torch.div,
    "elu": F.elu,
    "exp": torch.exp,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "log": torch.log,
    "mish": F.mish,
    "multiply": torch.mul,
    "power": torch.pow,
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}

# The same, written over the tensor. Fresh memory costs a processor more than the function.
OVERWRITING: Mapping[str, Callable[..., Tensor]] = {
    "gelu": torch.ops.aten.gelu_.default,
    "gelu_tanh": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "hardsigmoid": partial(F.hardsigmoid, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True),
    "mish": partial(F.mish, inplace=True),
    "relu": partial(F.relu, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
    "sigmoid": torch.sigmoid_,
    "silu": partial(F.silu, inplace=True),
    "tanh": torch.tanh_,
}


@dataclass(frozen=True)
class Activation(Weightless, OfOne):
    """An element-wise function.

    Attributes:
        function: A name in `FUNCTIONS`.
        arguments: Numbers that the function takes beside the value, in its order.
    """

    function: str
    arguments: tuple[float, ...] = ()

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None = None) -> Tensor:
        """Apply the function."""
        return FUNCTIONS[self.function](inputs[0], *self.arguments)

    def step(
        self, *, name: str, sources: Sequence[ChannelSource], outputs: int
    ) -> "ActivationStep":
        """Return the same function of some channels."""
        (source,) = sources
        return ActivationStep(source=source, function=self.function, arguments=self.arguments)


class ActivationStep(OfOneStep):
    """An element-wise function, in a compact network."""

    op: Literal["activation"] = "activation"
    function: str = Field(max_length=100)
    arguments: tuple[float, ...] = Field(default=(), max_length=2)

    def check(self, widths: Sequence[int]) -> None:
        """Refuse unknown functions also; see `Step.check`."""
        super().check(widths)
        if self.function not in FUNCTIONS:
            raise ValueError(f"must be one of {', '.join(FUNCTIONS)}, found {self.function}")

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Apply the function to the channels read, over their copy if they were copied."""
        x = readers[0](tensors)
        overwrites = self.function in OVERWRITING and in_inference(x) and not readers[0].in_place
        return (OVERWRITING if overwrites else FUNCTIONS)[self.function](x, *self.arguments)
