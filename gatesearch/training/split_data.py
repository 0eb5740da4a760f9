"""Frames of one split of a data set as batches of tensors at the study's size."""

import copy
import functools
import os
from abc import ABC, abstractmethod
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
from gatesearch.datasets.pack_manifest import IMAGE, SplitName
from gatesearch.tasks import Task
from gatesearch.tasks.labels import channels_first, contiguous, tensor_type
from gatesearch.training.block_shuffle import Window, draw_windows, window_sizes
from gatesearch.training.row_reader import RowReader

# Mean and standard deviation of ImageNet's channels, which pretrained encoders expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IN_MEMORY_BYTES = 4 * 2**30

Batch = dict[str, Tensor]
# Key of a batch: which frames have labels of each task, (B, T) bool, in the order of the tasks. It
# is there only where some frame of the data lacks labels of a task. No task can have this name.
LABELLED = ".labelled"


class FrameData(ABC):
    """Frames that batches are made of; a network is trained and measured on them.

    Attributes:
        tasks: Task name -> task.
        size: Height and width of the batches.
    """

    tasks: dict[str, Task]
    size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames."""

    @property
    @abstractmethod
    def labelled(self) -> dict[str, int]:
        """Task -> number of frames that have labels of it."""

    @abstractmethod
    def part(self, index: int, of: int) -> "FrameData":
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

    @abstractmethod
    def batch(self, positions: Tensor) -> Batch:
        """Return the frames at some positions.

        Returns:
            `image` uint8 (B, 3, H, W), labels in their encodings, and `LABELLED` if some frame of
            the data lacks labels of a task.
        """

    @abstractmethod
    def labels(self, position: int, task: str) -> Tensor:
        """Return the labels of one frame of a task, without reading its image."""

    @abstractmethod
    def keep_on(self, device: str) -> None:
        """Move what is held in memory to a CUDA device that has ten times its size free."""

    @abstractmethod
    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[Batch]:
        """Return batches of all frames in random order, without a last one that is not full.

        Args:
            batch_size: Frames per batch.
            generator: Draws the order, when this is called.
            skip: Batches to leave out at the beginning.
        """

    def in_order(self, batch_size: int, max_frames: int | None = None) -> Iterator[Batch]:
        """Yield all frames once in their order, or only the first `max_frames`."""
        count = len(self) if max_frames is None else min(max_frames, len(self))
        for positions in torch.arange(count).split(batch_size):
            yield self.batch(positions)

    def _positions_of_part(self, index: int, of: int) -> Tensor:
        """Positions of the frames of a share; see `part`."""
        if not 0 <= index < of:
            raise ValueError(f"a share of {of} has an index from 0 to {of - 1}, found {index}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return order[index::of].sort().values


class SplitData(FrameData):
    """Frames of a pack at one size, held in memory where they fit, else read from the disk.

    What is not held in memory is read in random blocks (`block_shuffle`); at most two windows of
    them are in memory, whatever the number of frames.

    Args:
        pack: The pack.
        split: `train` or `test`.
        indices: Which frames of the split, in this order.
        tasks: Task name -> task, which knows how its labels are resized.
        size: Height and width of the batches.
        fields: Task name -> field of the pack that has its labels; that of its name by default.
    """

    def __init__(
        self,
        pack: Pack,
        split: SplitName,
        *,
        indices: Sequence[int],
        tasks: Mapping[str, Task],
        size: tuple[int, int],
        fields: Mapping[str, str] | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        self.size = size
        self._indices = np.asarray(indices, dtype=np.int64)
        # Position of each frame in `_memory`; a part of a split shares the memory of the whole.
        self._rows = torch.arange(len(self._indices))
        fields = {IMAGE: IMAGE, **{name: (fields or {}).get(name, name) for name in tasks}}
        arrays = {name: pack.array(split, field) for name, field in fields.items()}
        labelled = labelled_fields(pack, split, [fields[name] for name in tasks], self._indices)
        self._labelled = None if labelled is None else torch.from_numpy(labelled)
        stored_bytes = sum(array[:1].nbytes for array in arrays.values()) * len(self._indices)
        self._readers = {
            name: RowReader(
                pack.path(split, fields[name]), array, keeps_cache=_fits_in_cache(stored_bytes)
            )
            for name, array in arrays.items()
        }
        self._memory: Batch | None = None
        if stored_bytes <= IN_MEMORY_BYTES:
            chunks = [self._read(part) for part in np.array_split(self._indices, 64) if len(part)]
            self._memory = {name: torch.cat([chunk[name] for chunk in chunks]) for name in fields}

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labelled(self) -> dict[str, int]:
        """Task -> number of frames that have labels of it in the pack."""
        if self._labelled is None:
            return dict.fromkeys(self.tasks, len(self))
        counts = self._labelled[self._rows].sum(0).tolist()
        return dict(zip(self.tasks, counts, strict=True))

    def present(self, positions: Tensor) -> Tensor:
        """Which of the frames at some positions have labels of each task, (B, T) bool."""
        if self._labelled is None:
            return torch.ones(len(positions), len(self.tasks), dtype=torch.bool)
        return self._labelled[self._rows[positions]]

    def part(self, index: int, of: int) -> "SplitData":
        """Take one of several disjoint shares of the frames; see `FrameData.part`."""
        positions = self._positions_of_part(index, of)
        share = copy.copy(self)
        share._indices = self._indices[positions.numpy()]
        share._rows = self._rows[positions]
        return share

    def batch(self, positions: Tensor) -> Batch:
        """Return the frames at some positions; see `FrameData.batch`."""
        if self._memory is not None:
            rows = self._rows[positions].to(self._memory["image"].device)
            batch = {name: tensor.index_select(0, rows) for name, tensor in self._memory.items()}
        else:
            batch = self._read(self._indices[positions.numpy()])
        if self._labelled is not None:
            batch[LABELLED] = self._labelled[self._rows[positions]].to(batch[IMAGE].device)
        return batch

    def labels(self, position: int, task: str) -> Tensor:
        """Return the labels of one frame of a task, without reading its image."""
        if self._memory is not None:
            return self._memory[task][self._rows[position]]
        rows = self._indices[position : position + 1]
        labels = channels_first(self._readers[task].read(rows))
        return contiguous(self._resized(task, labels))[0]

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
        """See `FrameData.in_order`; frames that are not in memory are read one batch ahead."""
        count = len(self) if max_frames is None else min(max_frames, len(self))
        yield from self._batches(torch.arange(count).split(batch_size) if count else ())

    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[Batch]:
        """Return batches of all frames in random order, without a last one that is not full.

        Frames that are not in memory, and too many for a window, come in the order of
        `block_shuffle`; a thread reads one window ahead. All others are shuffled as a whole.

        Args:
            batch_size: Frames per batch.
            generator: Draws the order, when this is called.
            skip: Batches to leave out at the beginning.
        """
        if self._memory is None and len(self):
            block, window = window_sizes(self._frame_bytes())
            if len(self) > block * window:
                windows = draw_windows(len(self), block=block, window=window, generator=generator)
                return self._stream(windows, batch_size, skip)
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

    def _stream(self, windows: Sequence[Window], batch_size: int, skip: int) -> Iterator[Batch]:
        """Yield the batches of windows one after the other; a batch may have frames of two."""
        total = sum(map(len, windows))
        skipped = skip * batch_size
        left = total - total % batch_size - skipped
        while windows and skipped >= len(windows[0]):
            skipped -= len(windows[0])
            windows = windows[1:]
        pieces: list[Batch] = []
        missing = batch_size
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = [reader.submit(self._read_window, window) for window in windows[:1]]
            for number, window in enumerate(windows):
                if left <= 0:
                    break
                frames = ahead.pop().result()
                ahead += [
                    reader.submit(self._read_window, following)
                    for following in windows[number + 1 : number + 2]
                ]
                order = window.order[skipped:][:left]
                skipped, left = 0, left - len(order)
                while len(order):
                    taken, order = order[:missing], order[missing:]
                    pieces.append(
                        {name: tensor.index_select(0, taken) for name, tensor in frames.items()}
                    )
                    missing -= len(taken)
                    if missing == 0:
                        yield _joined(pieces)
                        pieces, missing = [], batch_size
                del frames

    def _read_window(self, window: Window) -> Batch:
        """Read the frames of a window, block by block, into tensors of their whole size."""
        frames: Batch = {}
        start = 0
        for positions in window.blocks:
            end = start + len(positions)
            block = dict(self._fields(self._indices[positions.numpy()]))
            if self._labelled is not None:
                block[LABELLED] = self._labelled[self._rows[positions]]
            for name, tensor in block.items():
                if name not in frames:
                    shape = (len(window), *tensor.shape[1:])
                    frames[name] = torch.empty(shape, dtype=tensor_type(tensor))
                frames[name][start:end] = tensor
            start = end
        return frames

    def _frame_bytes(self) -> int:
        """Bytes of a frame in memory, as it is stored or as it is given out."""
        given = sum(tensor.nbytes for tensor in self._read(self._indices[:1]).values())
        return max(given, sum(reader.row_bytes for reader in self._readers.values()))

    def _read(self, rows: NDArray[Any]) -> Batch:
        # Sorted rows are read forwards.
        order = np.argsort(rows, kind="stable")
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        is_sorted = bool((order[1:] > order[:-1]).all())
        return {
            name: contiguous(field if is_sorted else field.index_select(0, back))
            for name, field in self._fields(rows[order])
        }

    def _fields(self, rows: NDArray[Any]) -> Iterator[tuple[str, Tensor]]:
        """Read ascending rows: each field at the study's size, if need be as it lies in memory."""
        for name, reader in self._readers.items():
            yield name, self._resized(name, channels_first(reader.read(rows)))

    def _resized(self, name: str, stored: Tensor) -> Tensor:
        """Resize images or dense labels (B, ...), named as in a batch, to the study's size."""
        if name != IMAGE and not self.tasks[name].storage.dense:
            return stored
        if tuple(stored.shape[-2:]) == tuple(self.size):
            return stored
        resize = resize_image if name == IMAGE else self.tasks[name].resize_labels
        return resize(contiguous(stored), self.size)


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _fits_in_cache(size: int) -> bool:
    """Tell whether files of that many bytes can stay in half of this machine's memory."""
    return 2 * size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def labelled_fields(
    pack: Pack, split: SplitName, fields: Sequence[str], indices: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.bool_] | None:
    """Tell which frames of a split have labels of which field.

    Args:
        pack: The pack.
        split: The split.
        fields: Fields of labels.
        indices: The N frames, by their places in the split.

    Returns:
        (N, fields); None if all frames have labels of all fields.
    """
    columns = [pack.labelled(split, field) for field in fields]
    known = [column[np.asarray(indices)] for column in columns if column is not None]
    if len(known) < len(columns) or all(column.all() for column in known):
        return None  # a pack knows it of all fields or of none
    return np.stack(known, 1)


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from.

    Attributes:
        train: Frames to learn from.
        held_out: Frames of the validation part, for weightings that look at them.
        tasks: Task name -> task.
    """

    train: FrameData
    held_out: FrameData | None
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
