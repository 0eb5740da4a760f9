"""Frames of one part of a data set as batches of tensors at the study's size."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatesearch.datasets import Pack
from gatesearch.datasets.frame_size import resize_image
from gatesearch.datasets.pack_reader import IMAGE, SplitName
from gatesearch.errors import DataError
from gatesearch.tasks import Task
from gatesearch.tasks.labels import to_tensor

# Statistics of ImageNet, which pretrained encoders expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IN_MEMORY_BYTES = 4 * 2**30

Batch = dict[str, Tensor]


class Frames:
    """Frames of a pack at one size, held in memory where they fit, else read by memory map.

    Args:
        pack: The pack.
        split: `train` or `test`.
        indices: Which of its frames, in this order.
        tasks: Task name (= field of the pack) -> task, which knows how its labels resize.
        size: Height and width of the batches.
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
        names: list[Any] = ["image", *tasks]
        self._arrays = {name: pack.array(split, name) for name in names}
        a_frame = sum(array[:1].nbytes for array in self._arrays.values())
        self._memory: Batch | None = None
        if a_frame * len(self._indices) <= IN_MEMORY_BYTES:
            steps = [self._read(part) for part in np.array_split(self._indices, 64) if len(part)]
            self._memory = {name: torch.cat([step[name] for step in steps]) for name in names}

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, positions: Tensor) -> Batch:
        """Frames at these positions: image uint8 (B, 3, H, W), labels in their encodings."""
        if self._memory is not None:
            there = positions.to(self._memory["image"].device)
            return {name: tensor[there] for name, tensor in self._memory.items()}
        return self._read(self._indices[positions.numpy()])

    def keep_on(self, device: str) -> None:
        """Move what is held in memory to a CUDA device that has ten times its size free."""
        if self._memory is None or device != "cuda":
            return
        size = sum(tensor.nbytes for tensor in self._memory.values())
        if 10 * size <= torch.cuda.mem_get_info()[0]:
            self._memory = {name: tensor.to(device) for name, tensor in self._memory.items()}

    def in_order(self, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        """All frames, or the first so many, once, in order."""
        count = len(self) if most is None else min(most, len(self))
        for positions in torch.arange(count).split(batch_size):
            yield self.batch(positions)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[Batch]:
        """All frames once in random order, without a last batch that is not full.

        Frames that are not in memory are read one batch ahead by a thread of their own.

        Args:
            batch_size: Frames at once.
            generator: Draws the order, at once.
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

    def _read(self, rows: Any) -> Batch:
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


def normalised(image: Tensor) -> Tensor:
    """Image uint8 or float in 0..255 (B, 3, H, W) -> what networks read, float32."""
    mean, std = statistics(image.device)
    return (image.float() - mean) / std


@functools.cache
def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a channel, (3, 1, 1), copied to a device once."""
    mean, std = (torch.tensor(values, device=device) * 255.0 for values in (MEAN, STD))
    return mean[:, None, None], std[:, None, None]


def split_validation(frames: int, *, validation: int, seed: int) -> tuple[list[int], list[int]]:
    """Split the official training part: (training, validation) indices, each ascending.

    The validation part is drawn by `seed` alone, so that every method and trial sees the same.

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


def spread(frames: int, wanted: int) -> list[int]:
    """`wanted` indices spread evenly over `frames`; all of them for 0."""
    count = frames if wanted == 0 else min(wanted, frames)
    return [i * frames // count for i in range(count)]
