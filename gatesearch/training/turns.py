"""Turns: within every epoch of a phase, some parameters learn from some frames, then others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from gatesearch.training.optimizer import ParameterGroup
from gatesearch.training.split_data import Batch, FrameData


@dataclass(frozen=True)
class Turn:
    """A part of every epoch of a phase.

    Attributes:
        groups: Parameters that learn in it, and in no other turn. In the others they are frozen,
            and their optimizer keeps its moments.
        data_part: (index, n): it is one pass over part `index` of n disjoint parts of the frames.
    """

    groups: tuple[ParameterGroup, ...]
    data_part: tuple[int, int] = (0, 1)

    def frames(self, train: FrameData) -> FrameData:
        """Return the frames of its part."""
        index, parts = self.data_part
        return train if parts == 1 else train.part(index, parts)


def shuffled_in_turn(
    parts: Sequence[FrameData],
    steps: Sequence[int],
    batch_size: int,
    generator: torch.Generator,
    *,
    skip: int = 0,
) -> Iterator[Batch]:
    """Return the batches of an epoch: those of each part in random order, one after the other.

    Args:
        parts: Frames of each turn; of the whole epoch where there is but one.
        steps: Batches of each.
        batch_size: Frames per batch.
        generator: Draws the orders of all parts, when this is called.
        skip: Batches to leave out at the beginning of the epoch.
    """
    batches = []
    for frames, count in zip(parts, steps, strict=True):
        batches.append(frames.shuffled(batch_size, generator, skip=min(skip, count)))
        skip = max(0, skip - count)
    return chain.from_iterable(batches)
