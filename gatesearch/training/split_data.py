"""Frames of one split of a data set as batches of tensors at the study's size."""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.datasets import Pack
from gatesearch.datasets.frame_size import resize_image
from gatesearch.datasets.pack_reader import IMAGE, SplitName
from gatesearch.errors import DataError
from gatesearch.tasks import Task
from gatesearch.tasks.labels import to_tensor

# Mean and standard deviation of ImageNet's channels, which pretrained encoders expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IN_MEMORY_BYTES = 4 * 2**30

Batch = dict[str, Tensor]

# Name in a batch of (B, T) bool: which frames have labels of each task, in the order of the tasks.
# Without it all frames have labels of all tasks.
LABELLED = ".labelled"


class SplitData:
    """Frames of a pack at one size, held in memory where they fit, else read by memory map.

    Args:
        pack: The pack.
        split: `train` or `test`.
        indices: Which frames of the split, in this order.
        tasks: Task name (= field of the pack) -> task, which knows how its labels are resized.
        size: Height and width of the batches.

    Raises:
        DataError: The pack has no labels for a task.
    """

    def __init__(
        self,
        pack: Pack,
        split: SplitName,
        *,
        indices: Sequence[int],
        tasks: Mapping[str, Task],
        size: tuple[int, int],
    ) -> None:
        missing = [name for name in tasks if name not in pack.fields]
        if missing:
            raise DataError(
                f"{pack.name} has no labels for {', '.join(missing)} (its fields: "
                f"{', '.join(pack.fields)}); leave the task out or prepare another source"
            )
        self.tasks = dict(tasks)
        self.size = size
        self._indices = np.asarray(indices, dtype=np.int64)
        # Position of each frame in `_memory`; a part of a split shares the memory of the whole.
        self._rows = torch.arange(len(self._indices))
        names = ["image", *tasks]
        self._arrays = {name: pack.array(split, name) for name in names}
        bytes_per_frame = sum(array[:1].nbytes for array in self._arrays.values())
        self._memory: Batch | None = None
        if bytes_per_frame * len(self._indices) <= IN_MEMORY_BYTES:
            chunks = [self._read(part) for part in np.array_split(self._indices, 64) if len(part)]
            self._memory = {name: torch.cat([chunk[name] for chunk in chunks]) for name in names}

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, index: int, of: int) -> "SplitData":
        """Take one of several disjoint shares of the frames, which together are all of them.

        Which frames are in a share depends on the number of frames, `index` and `of` alone; they
        stay in their order. Shares differ in size by one frame at most. What is held in memory is
        not copied.

        Args:
            index: Which share, from 0.
            of: How many shares there are.

        Raises:
            ValueError: There is no such share.
        """
        if not 0 <= index < of:
            raise ValueError(f"a share of {of} has an index from 0 to {of - 1}, found {index}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        positions = order[index::of].sort().values
        share = copy.copy(self)
        share._indices = self._indices[positions.numpy()]
        share._rows = self._rows[positions]
        return share

    def batch(self, positions: Tensor) -> Batch:
        """Return the frames at some positions.

        Returns:
            `image` uint8 (B, 3, H, W), and labels in their encodings.
        """
        if self._memory is not None:
            rows = self._rows[positions].to(self._memory["image"].device)
            return {name: tensor[rows] for name, tensor in self._memory.items()}
        return self._read(self._indices[positions.numpy()])

    def labels(self, position: int, task: str) -> Tensor:
        """Return the labels of one frame of a task, without reading its image."""
        if self._memory is not None:
            return self._memory[task][self._rows[position]]
        labels = to_tensor(self._arrays[task][[int(self._indices[position])]])
        if tuple(labels.shape[-2:]) != tuple(self.size):
            labels = self.tasks[task].resize_labels(labels, self.size)
        return labels[0]

    def keep_on(self, device: str) -> None:
        """Move what is held in memory to a CUDA device that has ten times its size free."""
        if self._memory is None or device != "cuda":
            return
        size = sum(tensor.nbytes for tensor in self._memory.values())
        if 10 * size <= torch.cuda.mem_get_info()[0]:
            # In place, as parts share it.
            for name, tensor in self._memory.items():
                self._memory[name] = tensor.to(device)

    def in_order(self, batch_size: int, max_frames: int | None = None) -> Iterator[Batch]:
        """Yield all frames once in their order, or only the first `max_frames`."""
        count = len(self) if max_frames is None else min(max_frames, len(self))
        for positions in torch.arange(count).split(batch_size):
            yield self.batch(positions)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[Batch]:
        """Return batches of all frames in random order, without a last one that is not full.

        Frames that are not in memory are read one batch ahead by a thread.

        Args:
            batch_size: Frames per batch.
            generator: Draws the order, when this is called.
            skip: Batches to leave out at the beginning.
        """
        order = torch.randperm(len(self), generator=generator)
        whole = [part for part in order.split(batch_size) if len(part) == batch_size]
        return self._batches(whole[skip:])

    def _batches(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        if self._memory is not None or not parts:
            yield from (self.batch(part) for part in parts)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = [reader.submit(self.batch, part) for part in parts[:1]]
            for following in [*parts[1:], None]:
                ready = ahead.pop().result()
                if following is not None:
                    ahead.append(reader.submit(self.batch, following))
                yield ready

    def _read(self, rows: NDArray[Any]) -> Batch:
        # Sorted rows read a memory map forwards.
        order = np.argsort(rows, kind="stable")
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        batch = {}
        for name, array in self._arrays.items():
            tensor = to_tensor(array[rows[order]])[back]
            if tuple(tensor.shape[-2:]) != tuple(self.size):
                resize = resize_image if name == IMAGE else self.tasks[name].resize_labels
                tensor = resize(tensor, self.size)
            batch[name] = tensor
        return batch


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from.

    Attributes:
        train: Frames to learn from.
        held_out: Frames of the validation part, for weightings that look at them.
        tasks: Task name -> task.
    """

    train: SplitData
    held_out: SplitData | None
    tasks: Mapping[str, Task]


def normalize(image: Tensor) -> Tensor:
    """Turn images in 0..255, uint8 or float (B, 3, H, W), into what networks read, float32."""
    mean, std = channel_statistics(image.device)
    return (image.float() - mean) / std


@functools.cache
def channel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the channels in 0..255, (3, 1, 1), copied to a device once."""
    mean, std = (torch.tensor(values, device=device) * 255.0 for values in (MEAN, STD))
    return mean[:, None, None], std[:, None, None]


def split_validation(frames: int, *, validation: int, seed: int) -> tuple[list[int], list[int]]:
    """Split the official training part: (training, validation) indices, each ascending.

    The validation part is drawn by `seed` alone, so that every method and trial has the same.

    Raises:
        DataError: Fewer than two frames would be left to train on.
    """
    if frames - validation < 2:
        raise DataError(
            f"data.validation must leave frames to train on: {validation} of {frames} are carved "
            "off; lower data.validation or raise data.train_frames"
        )
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[validation:]), sorted(order[:validation])


def spread_evenly(frames: int, wanted: int) -> list[int]:
    """Return `wanted` indices at even distances in `frames`; all of them for 0."""
    count = frames if wanted == 0 else min(wanted, frames)
    return [i * frames // count for i in range(count)]
