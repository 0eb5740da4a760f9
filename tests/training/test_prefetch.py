"""Batches made ahead are those made one after the other, and so is the generator."""

import threading
from collections.abc import Iterator

import pytest
import torch

from gatesearch.training.prefetch import prefetch
from gatesearch.training.split_data import Batch


def batches(count: int = 5) -> Iterator[Batch]:
    return ({"image": torch.full((2,), float(i))} for i in range(count))


def add_noise(batch: Batch, generator: torch.Generator) -> Batch:
    return {"image": batch["image"] + torch.rand(2, generator=generator)}


def test_batches_and_states_are_those_of_making_them_one_by_one() -> None:
    made, alone = (torch.Generator().manual_seed(3) for _ in range(2))
    count = 0
    for ahead, batch in zip(prefetch(batches(), add_noise, made), batches(), strict=True):
        assert torch.equal(ahead["image"], add_noise(batch, alone)["image"])
        assert torch.equal(made.get_state(), alone.get_state())
        count += 1
    assert count == 5


def test_the_next_batch_is_made_while_one_is_in_use() -> None:
    second = threading.Event()

    def note(batch: Batch, generator: torch.Generator) -> Batch:
        if batch["image"][0] == 1:
            second.set()
        return batch

    ahead = prefetch(batches(), note, torch.Generator())
    assert next(ahead)["image"][0] == 0
    assert second.wait(timeout=30)


def test_an_epoch_that_is_left_early_ends_its_thread() -> None:
    before = threading.active_count()
    ahead = prefetch(batches(), add_noise, torch.Generator())
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def test_an_error_comes_with_the_batch_it_belongs_to() -> None:
    def fail(batch: Batch, generator: torch.Generator) -> Batch:
        if batch["image"][0] == 2:
            raise OSError("the file is gone")
        return batch

    ahead = prefetch(batches(), fail, torch.Generator())
    assert [next(ahead)["image"][0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(ahead)
