"""Frames of several data sets as one, where each has labels of some of the tasks."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gatesearch.datasets.pack_manifest import IMAGE
from gatesearch.tasks import Task
from gatesearch.tasks.labels import to_tensor, unknown_labels
from gatesearch.training.split_data import LABELLED, Batch, FrameData, SplitData

Mixing = Literal["frames", "share", "task"]


class MixedData(FrameData):
    """Frames of several sources, one after the other; a batch may hold frames of all of them.

    Labels that a source does not have are unknown, and its frames have none of that task in
    `LABELLED`.

    Args:
        sources: The frames of each source, with its tasks alone.
        tasks: Task name -> task, of all sources.
        mixing: How batches in random order are made: of all frames alike (`frames`), of every
            source in a fixed share (`share`), or of one source each, which is drawn by the shares
            (`task`).
        shares: Share of the frames of an epoch that each source gives; None for the source's share
            of all frames.
    """

    def __init__(
        self,
        sources: Sequence[SplitData],
        *,
        tasks: Mapping[str, Task],
        mixing: Mixing = "frames",
        shares: Sequence[float] | None = None,
    ) -> None:
        self.sources = list(sources)
        self.tasks = dict(tasks)
        self.size = sources[0].size
        self._mixing = mixing
        counts = [len(source) for source in sources]
        self._shares = torch.tensor([float(s) for s in shares or counts], dtype=torch.float64)
        self._shares /= self._shares.sum()
        # Of each frame: its source, and its position there.
        self._source = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        self._row = torch.cat([torch.arange(count) for count in counts])

    def __len__(self) -> int:
        return len(self._row)

    @property
    def labelled(self) -> dict[str, int]:
        """Task -> number of frames that have labels of it."""
        found = torch.cat(
            [self._presence(positions) for positions in torch.arange(len(self)).split(2**16)]
        )
        return dict(zip(self.tasks, found.sum(0).tolist(), strict=True))

    def part(self, index: int, of: int) -> "MixedData":
        """Take one of several disjoint shares of the frames; see `SplitData.part`."""
        positions = self._positions_of_part(index, of)
        share = copy.copy(self)
        share._source, share._row = self._source[positions], self._row[positions]
        return share

    def batch(self, positions: Tensor) -> Batch:
        """Return the frames at some positions; see `SplitData.batch`."""
        sources = self._source[positions]
        order, parts = [], []
        for number in sources.unique().tolist():
            where = (sources == number).nonzero()[:, 0]
            order.append(where)
            parts.append(self._whole(self.sources[number], self._row[positions[where]]))
        names = [IMAGE, *self.tasks, LABELLED]
        # Some sources may be kept on the device of training while others have no room there.
        device = next((p[IMAGE].device for p in parts if p[IMAGE].device.type != "cpu"), "cpu")
        back = torch.cat(order).argsort().to(device)
        return {
            name: torch.cat([part[name].to(device) for part in parts]).index_select(0, back)
            for name in names
        }

    def labels(self, position: int, task: str) -> Tensor:
        """Return the labels of one frame of a task, without reading its image."""
        source = self.sources[int(self._source[position])]
        if task in source.tasks:
            return source.labels(int(self._row[position]), task)
        return self._unknown(task, 1)[0]

    def keep_on(self, device: str) -> None:
        """Move what is held in memory to a CUDA device that has room."""
        for source in self.sources:
            source.keep_on(device)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[Batch]:
        """Return full batches in random order; see `SplitData.shuffled`.

        An epoch has as many batches as all frames fill. With shares, frames of a source come again
        within an epoch where its share is larger than its number of frames, in an order drawn anew.
        """
        steps = len(self) // batch_size
        if self._mixing == "frames":
            order = torch.randperm(len(self), generator=generator)
            parts = list(order[: steps * batch_size].split(batch_size))
        else:
            parts = self._drawn(steps, batch_size, generator)
        return (self.batch(part) for part in parts[skip:])

    def _drawn(self, steps: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Positions of each batch of an epoch, by shares."""
        present = self._source.unique().tolist()
        shares = self._shares[present] / self._shares[present].sum()
        if self._mixing == "share":
            counts = _apportioned(shares, steps, batch_size)
        else:
            drawn = torch.multinomial(shares, steps, replacement=True, generator=generator)
            counts = torch.nn.functional.one_hot(drawn, len(present)) * batch_size
        streams = []
        for column, number in enumerate(present):
            positions = (self._source == number).nonzero()[:, 0]
            wanted = int(counts[:, column].sum())
            passes = -(-wanted // len(positions))
            orders = [
                positions[torch.randperm(len(positions), generator=generator)]
                for _ in range(passes)
            ]
            stream = torch.cat(orders)[:wanted] if orders else positions[:0]
            streams.append(stream.split(counts[:, column].tolist()))
        return [torch.cat([stream[step] for stream in streams]) for step in range(steps)]

    def _whole(self, source: SplitData, rows: Tensor) -> Batch:
        """Frames of a source with unknown labels of the tasks that it lacks."""
        batch = source.batch(rows)
        device = batch[IMAGE].device
        for name in self.tasks:
            if name not in source.tasks:
                batch[name] = self._unknown(name, len(rows)).to(device)
        present = source.present(rows)
        columns = {name: present[:, i] for i, name in enumerate(source.tasks)}
        absent = torch.zeros(len(rows), dtype=torch.bool)
        batch[LABELLED] = torch.stack([columns.get(name, absent) for name in self.tasks], 1).to(
            device
        )
        return batch

    def _presence(self, positions: Tensor) -> Tensor:
        """Which frames have labels of each task, (B, T) bool."""
        found = torch.zeros(len(positions), len(self.tasks), dtype=torch.bool)
        for number, source in enumerate(self.sources):
            where = self._source[positions] == number
            if where.any():
                columns = [list(self.tasks).index(name) for name in source.tasks]
                rows = where.nonzero()[:, 0]
                found[rows[:, None], torch.tensor(columns)] = source.present(
                    self._row[positions[rows]]
                )
        return found

    def _unknown(self, task: str, count: int) -> Tensor:
        return to_tensor(unknown_labels(self.tasks[task], count, self.size))


def _apportioned(shares: Tensor, steps: int, batch_size: int) -> Tensor:
    """Frames of each source in each batch, (steps, sources).

    Every batch is full, and the frames of a source are spread evenly over the epoch: 0.3 of batches
    of 4 are 1 or 2 frames.
    """
    total = steps * batch_size
    places, owners = [], []
    for number, share in enumerate(shares.tolist()):
        count = math.ceil(total * share) + 1
        places.append((torch.arange(count, dtype=torch.float64) + 0.5) / max(share, 1e-12))
        owners.append(torch.full((count,), number))
    order = torch.cat(places).argsort(stable=True)[:total]
    by_step = torch.cat(owners)[order].reshape(steps, batch_size)
    return torch.nn.functional.one_hot(by_step, len(shares)).sum(1)
