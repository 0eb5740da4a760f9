"""The grid of widths, the cost of a slice, and the way from (budget, preference) to widths."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget, Cost
from gatesearch.methods.ecmt.slimmable import Widths, narrowed_head
from gatesearch.models import Parts
from gatesearch.models.encoder import Encoder
from gatesearch.models.heads import takes_size


@dataclass(frozen=True)
class Grid:
    """The widths that are trained, evenly from the smallest to 1.

    Attributes:
        smallest: Smallest width.
        levels: Number of widths.
    """

    smallest: float
    levels: int

    def width(self, level: int) -> float:
        """Return the width of a level, from 0 (the smallest) to `levels` - 1.

        >>> [Grid(0.25, 4).width(level) for level in range(4)]
        [0.25, 0.5, 0.75, 1.0]
        """
        last = self.levels - 1
        return 1.0 if level == last else self.smallest + (1 - self.smallest) * level / last

    def level(self, position: float) -> int:
        """Return the level nearest to a position between 0 (the smallest width) and 1 (full)."""
        return math.floor(position * (self.levels - 1) + 0.5)


@dataclass(frozen=True)
class SliceCost:
    """Exact cost of slices, counted on their shapes and remembered part by part.

    Attributes:
        parts: Encoder and heads of the whole network.
        shape: (1, 3, H, W) of an image.
    """

    parts: Parts
    shape: tuple[int, int, int, int]
    _encoders: dict[float, tuple[int, int, Tensor]] = field(default_factory=dict, repr=False)
    _heads: dict[tuple[str, float, float], tuple[int, int]] = field(
        default_factory=dict, repr=False
    )

    def of(self, widths: Widths) -> Cost:
        """Count the cost of a slice, as `count_macs` does."""
        backbone, params, _ = self._encoder(widths.encoder)
        macs = backbone
        for task, width in zip(self.parts.tasks, widths.heads, strict=True):
            head_macs, head_params = self._head(task, widths.encoder, width)
            macs, params = macs + head_macs, params + head_params
        return Cost(macs=macs, backbone_macs=backbone, params=params)

    def mean_macs(self, grid: Grid) -> float:
        """Compute the mean multiply-adds where each width is drawn evenly from a grid."""
        widths = [grid.width(level) for level in range(grid.levels)]
        encoders = sum(self._encoder(width)[0] for width in widths)
        heads = sum(
            self._head(task, *pair)[0]
            for task in self.parts.tasks
            for pair in product(widths, widths)
        )
        return encoders / grid.levels + heads / grid.levels**2

    def encoder_macs(self, width: float) -> int:
        """Count the multiply-adds of the encoder alone."""
        return self._encoder(width)[0]

    def _encoder(self, width: float) -> tuple[int, int, Tensor]:
        """Return (multiply-adds, parameters, features without data) of the encoder."""
        if width not in self._encoders:
            with torch.device("meta"):
                encoder, image = Encoder(self.parts.graph.scaled(width)), torch.empty(self.shape)
            with _counted(encoder) as counts:
                features = encoder(image)
            self._encoders[width] = (sum(counts), _size(encoder), features)
        return self._encoders[width]

    def _head(self, task: str, encoder: float, width: float) -> tuple[int, int]:
        """Return (multiply-adds, parameters) of a head."""
        key = (task, encoder, width)
        if key not in self._heads:
            features = self._encoder(encoder)[2]
            with torch.device("meta"):
                spec = narrowed_head(
                    self.parts, task, inputs=self.parts.graph.scaled(encoder).outputs, width=width
                )
                head = spec.build()
            with _counted(head) as counts:
                head(*((features, self.shape[-2:]) if takes_size(head) else (features,)))
            self._heads[key] = (sum(counts), _size(head))
        return self._heads[key]


def widths_of(
    prefer: Sequence[float],
    encoder: float,
    *,
    grid: Grid,
    cost: SliceCost,
    budgets: Sequence[Budget],
) -> Widths:
    """Find the widths for preferences and budgets.

    Each head is as wide as its task is preferred. Without a budget, the encoder is as wide as
    `encoder` says. Under budgets it is the widest that they allow, whatever `encoder` says, as in
    the paper; the rest is ours: where even the narrowest encoder is too much, all heads are
    narrowed level by level, and what is left in the end widens heads, those of the most preferred
    tasks first, without any overtaking one of a more preferred task. So no width can be raised by
    a level without exceeding a budget or changing the order of the heads.

    Args:
        prefer: Preference of each task in [0, 1], from the smallest width of its head to the full.
        encoder: The encoder's width, in the same way.
        grid: The widths that there are.
        cost: Cost of slices.
        budgets: Upper bounds, all of which hold.

    Returns:
        The widths; all smallest, which then exceed a budget, where no slice keeps to the budgets.
    """
    wanted = [grid.level(value) for value in prefer]

    def made(levels: Sequence[int], encoder_level: int) -> Widths:
        return Widths(grid.width(encoder_level), tuple(map(grid.width, levels)))

    def fits(levels: Sequence[int], encoder_level: int) -> bool:
        return share_of(cost.of(made(levels, encoder_level)), budgets) <= 1

    if not budgets:
        return made(wanted, grid.level(encoder))
    for cut in range(grid.levels):
        levels = [max(0, level - cut) for level in wanted]
        for encoder_level in reversed(range(grid.levels)):
            if fits(levels, encoder_level):
                within = partial(fits, encoder_level=encoder_level)
                highest = grid.levels - 1
                return made(_widened(levels, prefer, highest=highest, fits=within), encoder_level)
    return made([0] * len(prefer), 0)


def share_of(cost: Cost, budgets: Sequence[Budget]) -> float:
    """Return the largest share of any budget that a cost takes; 0 without budgets."""
    return max((budget.share(cost) for budget in budgets), default=0.0)


def _widened(
    levels: Sequence[int],
    prefer: Sequence[float],
    *,
    highest: int,
    fits: Callable[[Sequence[int]], bool],
) -> list[int]:
    """Widen heads as far as the budgets allow, the most preferred first, keeping their order."""
    widened = list(levels)
    order = sorted(range(len(prefer)), key=lambda i: -prefer[i])
    while True:
        for i in order:
            more_preferred = [widened[j] for j in order if prefer[j] > prefer[i]]
            if widened[i] < min(more_preferred, default=highest):
                raised = [*widened]
                raised[i] += 1
                if fits(raised):
                    widened = raised
                    break
        else:
            return widened


@contextmanager
def _counted(module: nn.Module) -> Iterator[list[int]]:
    """List the multiply-adds of a module's convolutions and linear layers, for one image."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        positions = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        counts.append(weight.numel() * positions)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    module.eval()
    with torch.no_grad():
        yield counts
    for handle in handles:
        handle.remove()


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
