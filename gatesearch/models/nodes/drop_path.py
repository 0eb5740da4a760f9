"""Stochastic depth: residual branches that are left out of some images in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Never, cast

from torch import Tensor, nn

from gatesearch.models.channel_ops import at_positions
from gatesearch.models.channel_source import ChannelSource
from gatesearch.models.nodes.elementwise import OfOne, Weightless


@dataclass(frozen=True)
class DropPath(Weightless, OfOne):
    """Stochastic depth (Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382).

    In training all values of an image are 0 with `probability` p, and else divided by 1 - p; in
    evaluation nothing happens. Each image and node has a draw of its own. All streams of a supernet
    share it: a mix of their channels is then dropped or kept as a whole, and whether gates lie
    before or behind makes no difference. A compact network has no step for it.

    Attributes:
        probability: p, in [0, 1].
    """

    probability: float
    drops_images: ClassVar[bool] = True

    @cached_property
    def routes(self) -> tuple[tuple[int, int], ...]:  # type: ignore[override]
        """Every channel is that of the source, in evaluation."""
        return tuple((0, channel) for channel in range(self.outputs))

    def build(self) -> "DropPathLayer":  # type: ignore[override]
        """Build the module, which holds no weights but knows whether it is in training."""
        return DropPathLayer(self.probability)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Run its module."""
        return cast(Tensor, cast(nn.Module, layer)(inputs[0]))

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> Never:
        """Refuse: readers read the source itself."""
        raise NotImplementedError("stochastic depth has no step: its readers read its source")


class DropPathLayer(nn.Module):
    """Drops (B, C, *positions) image by image in training.

    Draws are from torch's own generator, whose state checkpoints keep.

    Attributes:
        probability: Of an image to be dropped.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop images, in training."""
        return x * self.factors(x) if self.training else x

    def factors(self, x: Tensor) -> Tensor:
        """Draw 0 or 1 / (1 - p) for each image of x, (B, 1, ...)."""
        kept = x.new_empty(x.shape[0], 1).bernoulli_(1 - self.probability)
        if self.probability < 1:
            kept = kept.div_(1 - self.probability)
        return at_positions(kept, x)


def dropped_alike(layer: DropPathLayer, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Drop the same images in all streams that are computed, in training.

    Args:
        layer: That of any stream.
        streams: (B, C, *positions) each, or None.
    """
    if not layer.training:
        return list(streams)
    factors = layer.factors(next(x for x in streams if x is not None))
    return [None if x is None else x * factors for x in streams]
