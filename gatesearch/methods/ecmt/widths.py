"""The grid of widths, the cost of a slice, and the way from (budget, preference) to widths."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product

from gatesearch.cost import Budget, Cost
from gatesearch.cost.sizes import node_sizes
from gatesearch.methods.ecmt.heads import SLIMMABLE_HEADS
from gatesearch.methods.ecmt.slimmable import Widths, narrowed_head
from gatesearch.models import Parts
from gatesearch.models.nodes.node import scaled_channels


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
    """Exact cost of slices, computed from their numbers of channels.

    Attributes:
        parts: Encoder and heads of the whole network.
        size: (H, W) of an image.
    """

    parts: Parts
    size: tuple[int, int]
    _encoders: dict[float, tuple[int, int]] = field(default_factory=dict, repr=False)

    def of(self, widths: Widths) -> Cost:
        """Compute the cost of a slice, as `count_macs` counts it."""
        backbone, params = self._encoder(widths.encoder)
        heads = [
            self._head(task, widths.encoder, width)
            for task, width in zip(self.parts.tasks, widths.heads, strict=True)
        ]
        macs = backbone + sum(macs for macs, _ in heads)
        return Cost(macs=macs, backbone_macs=backbone, params=params + sum(n for _, n in heads))

    def mean_macs(self, grid: Grid) -> float:
        """Compute the mean multiply-adds where each width is drawn evenly from a grid."""
        widths = [grid.width(level) for level in range(grid.levels)]
        encoders = sum(map(self.encoder_macs, widths))
        heads = sum(
            self._head(task, *pair)[0]
            for task in self.parts.tasks
            for pair in product(widths, widths)
        )
        return encoders / grid.levels + heads / grid.levels**2

    def encoder_macs(self, width: float) -> int:
        """Compute the multiply-adds of the encoder alone."""
        return self._encoder(width)[0]

    def _encoder(self, width: float) -> tuple[int, int]:
        """Return (multiply-adds, parameters) of the encoder."""
        if width not in self._encoders:
            graph = self.parts.graph.scaled(width)
            sizes = node_sizes(graph, self.size)
            self._encoders[width] = (
                sum(node.macs_per_channel(sizes) * node.outputs for node in graph),
                sum(node.params for node in graph),
            )
        return self._encoders[width]

    def _head(self, task: str, encoder: float, width: float) -> tuple[int, int]:
        """Return (multiply-adds, parameters) of a head."""
        inputs = scaled_channels(self.parts.graph.outputs, encoder)
        head = narrowed_head(self.parts, task, inputs=inputs, width=width)
        kind = SLIMMABLE_HEADS[head.kind]
        return kind.macs(head, self._pixels), kind.params(head)

    @cached_property
    def _pixels(self) -> int:
        """Pixels of the features."""
        graph = self.parts.graph
        return math.prod(node_sizes(graph, self.size)[graph.nodes[-1].name])


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
    narrowed level by level; and what a full encoder leaves widens heads, those of the most
    preferred tasks first, without any overtaking one of a more preferred task. So the encoder
    cannot be a level wider, and beside a full encoder no head can, without exceeding a budget or
    changing the order of the heads.

    Args:
        prefer: Preference of each task in [0, 1], from the smallest width of its head to the full.
        encoder: The encoder's width, in the same way.
        grid: The widths that there are.
        cost: Cost of slices.
        budgets: Upper bounds, all of which hold.

    Returns:
        The widths; all smallest, which then exceed a budget, where no slice keeps to the budgets.
    """
    wanted, highest = [grid.level(value) for value in prefer], grid.levels - 1

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
                if encoder_level == highest:
                    within = partial(fits, encoder_level=highest)
                    levels = _widened(levels, prefer, highest=highest, fits=within)
                return made(levels, encoder_level)
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
