"""Batches that are augmented in a thread while the network learns from the one before."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gatesearch.training.split_data import Batch


def prefetch(
    batches: Iterator[Batch],
    augment: Callable[[Batch, torch.Generator], Batch],
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Yield augmented batches, each made while the one before it is in use.

    Whenever a batch is yielded the generator is in the state that it would have if that batch had
    only just been augmented. So a checkpoint need not know of the batch that is made ahead.

    Args:
        batches: The batches; they are read by the thread.
        augment: Augments a batch with draws from the generator that it is given.
        generator: Source of the draws.
    """
    ahead = torch.Generator()
    ahead.set_state(generator.get_state())

    def make() -> tuple[Batch, Tensor] | None:
        for batch in batches:
            return augment(batch, ahead), ahead.get_state()
        return None

    with ThreadPoolExecutor(max_workers=1) as maker:
        following = maker.submit(make)
        while (made := following.result()) is not None:
            following = maker.submit(make)
            batch, state = made
            generator.set_state(state)
            yield batch
