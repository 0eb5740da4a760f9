"""A module kept whole: a part of an imported network that no other kind of node computes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatesearch.errors import UsageError
from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import Channels, ChannelSource
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.layered import Layered
from gatesearch.models.nodes.node import Size
from gatesearch.models.nodes.step import Ids, Step, StepName, StepWeights

MODULES: dict[str, nn.Module] = {}
"""`BACKBONE/PATH` -> the module, of every backbone that this process has imported."""

# Plain arguments that a module takes beside the features.
Argument = int | tuple[int, ...]


@dataclass(frozen=True)
class Opaque(Layered):
    """A module of one value: every output reads all inputs, and all or none are computed.

    Attributes:
        module: Its name in `MODULES`.
        channels_last: Whether the module takes and returns (B, *positions, C).
        arguments: What else it is called with.
    """

    name: str
    source: str
    inputs: int
    outputs: int
    module: str
    channels_last: bool = False
    arguments: tuple[Argument, ...] = ()
    stage: int = 0
    ends_block: bool = False
    stride: ClassVar[int] = 1
    groups: ClassVar[int] = 1
    coupling: ClassVar[Literal["fixed"]] = "fixed"
    whole_groups: ClassVar[bool] = True

    @property
    def params_per_channel(self) -> Fraction:
        """The module's parameters, divided by its outputs."""
        count = sum(p.numel() for p in MODULES[self.module].parameters())
        return Fraction(count, self.outputs)

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """The module's multiply-adds, divided by its outputs: a fraction where need be."""
        macs = _measured(self, sizes[self.source])[1]
        # Costs are sums over all outputs of the module or none, where fractions are exact too.
        return cast(int, Fraction(macs, self.outputs))

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """Positions of what the module returns."""
        return _measured(self, sizes[self.source])[0]

    def build(self) -> "OpaqueLayer":
        """Copy the module, with fresh weights where its parts can draw them."""
        return OpaqueLayer(self.module, self.channels_last, self.arguments)

    def scaled(self, width: float) -> Self:
        """Refuse: a module has its own width.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"a network with a module kept whole must have its own width, found model.width = "
            f"{width} at {self.name}; leave it at 1"
        )

    def narrowed(self, outputs: int) -> Self:
        """Return it as it is: it is computed whole."""
        return self

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "OpaqueStep":
        """Return the whole module."""
        return OpaqueStep(
            name=name,
            source=sources[0],
            outputs=outputs,
            module=self.module,
            channels_last=self.channels_last,
            arguments=self.arguments,
        )


class OpaqueStep(Step):
    """A module kept whole, in a compact network; reading it needs its backbone to be imported."""

    op: Literal["opaque"] = "opaque"
    whole_groups: ClassVar[bool] = True
    name: StepName
    source: ChannelSource
    outputs: Channels
    module: str = Field(min_length=1, max_length=1000)
    channels_last: bool
    arguments: tuple[Argument, ...] = Field(default=(), max_length=8)

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels read."""
        return (self.source,)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.outputs

    @property
    def channel_groups(self) -> int:
        """One: every output reads all channels."""
        return 1

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the whole module, of channels that are elsewhere."""
        return self.model_copy(update={"source": sources[0]})

    def check(self, widths: Sequence[int]) -> None:
        """Refuse modules of backbones that are not imported also; see `Step.check`."""
        super().check(widths)
        if self.module not in MODULES:
            backbone, _, path = self.module.rpartition("/")
            raise ValueError(
                f"holds the module {path[:100]} of {backbone[:100]} whole; import this backbone "
                "first, as by gs.encoder"
            )

    def add_weights(self, weights: StepWeights) -> None:
        """Add a copy of the module."""
        weights.layers[self.name] = OpaqueLayer(self.module, self.channels_last, self.arguments)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Run the module on the channels read."""
        return cast(Tensor, weights.layers[self.name](readers[0](tensors)))


class OpaqueLayer(nn.Module):
    """A copy of a module, for values (B, C, *positions)."""

    def __init__(self, name: str, channels_last: bool, arguments: Sequence[Argument]) -> None:
        super().__init__()
        self.module = copy.deepcopy(MODULES[name])
        for part in self.module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        self.channels_last, self.arguments = channels_last, tuple(arguments)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *positions) -> (B, outputs, *positions)."""
        x = x.movedim(1, -1) if self.channels_last else x
        y = cast(Tensor, self.module(x, *self.arguments))
        return y.movedim(-1, 1) if self.channels_last else y

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over the module of a layer, which is kept whole."""
        (part,) = slices
        self.load_state_dict(cast(OpaqueLayer, part.layer).state_dict())


@lru_cache(maxsize=256)
def _measured(node: Opaque, size: Size) -> tuple[Size, int]:
    """Return the positions of a module's output, and its multiply-adds for one image."""
    layer = node.build().to("meta").eval()
    image = torch.empty(1, node.inputs, *size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = layer(image)
    return tuple(y.shape[2:]), counter.get_total_flops() // 2
