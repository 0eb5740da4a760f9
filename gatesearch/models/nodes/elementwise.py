"""The answers that all nodes without weights share."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from gatesearch.models.nodes.node import Size


class Elementwise(ABC):
    """A node that computes each channel from the same channel of its sources, without weights."""

    outputs: int
    has_weights: ClassVar[bool] = False
    ends_in_norm: ClassVar[bool] = False
    channelwise: ClassVar[bool] = True
    params_per_channel: ClassVar[int] = 0

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes read."""

    @property
    def input_channels(self) -> tuple[int, ...]:
        """As many in every source as there are outputs."""
        return (self.outputs,) * len(self.sources)

    def macs_per_channel(self, size: Size) -> int:
        """None by the convention of published FLOPs."""
        return 0

    def needed_inputs(self, needed: Tensor) -> tuple[Tensor, ...]:
        """A channel needs the same channel of every source."""
        return (needed,) * len(self.sources)

    def build(self) -> None:  # noqa: B027
        """There is nothing to build."""
