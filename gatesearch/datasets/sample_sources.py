"""Data sets of a user's samples, map-style or iterable, as frames that are read by their number.

An iterable is read once, and its frames are kept in a folder until the pack is written.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from gatesearch.datasets.frame_faults import MOST_FAULTS, FaultyFramesError, FrameFault
from gatesearch.datasets.frame_size import resize_frame
from gatesearch.datasets.pack_manifest import IMAGE, IMAGE_STORAGE, SplitName
from gatesearch.datasets.samples import to_frame
from gatesearch.datasets.scratch import scratch_folder
from gatesearch.errors import DataError, GatesearchError, UsageError, one_line
from gatesearch.tasks import Task

# What names samples in WebDataset.
_SAMPLE_KEY = "__key__"
_LONGEST_KEY = 200
Frame = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SampleReader:
    """Converts samples to frames.

    Attributes:
        image_key: Key of the samples with the image.
        label_keys: Task -> key with its label.
        tasks: Task name -> task.
        size: Height and width of the frames; None while no sample was read.
        resizes: Whether samples of other sizes are resized, or refused.
    """

    image_key: str
    label_keys: Mapping[str, str]
    tasks: Mapping[str, Task]
    size: tuple[int, int] | None
    resizes: bool

    def frame(self, read: Callable[[], object], id_: str) -> Frame:
        """Read a sample and convert it.

        Raises:
            DataError: It cannot be read, whatever the data set raised, or is not as it must be.
        """
        try:
            sample = read()
        except Exception as error:  # of the user's code, an open set
            raise DataError(f"sample {id_} cannot be read ({_shown(error)})") from error
        try:
            frame = to_frame(
                sample, image_key=self.image_key, label_keys=self.label_keys, tasks=self.tasks
            )
        except DataError as error:
            raise DataError(f"sample {id_}: {error}") from error
        size = frame[IMAGE].shape[:2]
        if self.size is None or size == self.size:
            return frame
        if not self.resizes:
            raise DataError(
                f"sample {id_} is {size[0]} x {size[1]}, the first one {self.size[0]} x "
                f"{self.size[1]}; give the size to which all are resized, as size=(96, 128)"
            )
        return dict(resize_frame(frame, self.size, self.tasks))

    def sized_by(self, frame: Frame) -> "SampleReader":
        """Return the reader with the size of a first frame, unless it has one."""
        if self.size is not None:
            return self
        height, width = frame[IMAGE].shape[:2]
        return replace(self, size=(height, width))


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


@dataclass(frozen=True)
class _Samples:
    """Frames of a map-style data set.

    Attributes:
        dataset: The data set.
        reader: Converts its samples.
        ids: One id per sample.
    """

    dataset: Any
    reader: SampleReader
    ids: Sequence[str]

    def __call__(self, index: int) -> Frame:
        return self.reader.frame(lambda: self.dataset[index], self.ids[index])


@dataclass(frozen=True)
class _Spool:
    """Frames of an iterable, which were written one after the other to a file per field.

    Attributes:
        folder: Folder of the files.
        shapes: Field -> element type and shape of a frame's values.
        ids: One id per frame.
    """

    folder: Path
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    ids: Sequence[str]

    def __call__(self, index: int) -> Frame:
        frame = {}
        for number, (field, (dtype, shape)) in enumerate(self.shapes.items()):
            count = math.prod(shape)
            start = index * count * np.dtype(dtype).itemsize
            values = np.fromfile(self.folder / str(number), dtype, count, offset=start)
            frame[field] = values.reshape(shape)
        return frame


Source = _Samples | _Spool


def open_sources(
    parts: Mapping[SplitName, object], reader: SampleReader, folder: Path, stack: ExitStack
) -> tuple[dict[SplitName, Source], SampleReader]:
    """Open the data sets of the parts; iterables are read to their end.

    Args:
        parts: Part -> data set.
        reader: Converts samples.
        folder: The pack's folder, beside which the frames of iterables are kept.
        stack: Removes these when it is closed.

    Returns:
        The sources, and the reader with the size of the frames.

    Raises:
        UsageError: One is no data set.
        DataError: One is empty, or has faulty samples.
    """
    sources: dict[SplitName, Source] = {}
    place = Path(os.path.realpath(folder))
    for name, dataset in parts.items():
        prefix = f"{name}-" if len(parts) > 1 else ""
        if _is_map_style(name, dataset):
            ids = [f"{prefix}{index}" for index in range(len(cast(Any, dataset)))]
            samples = _Samples(dataset, reader, ids)
            if reader.size is None and ids:
                reader = reader.sized_by(_first_frame(samples))
                samples = replace(samples, reader=reader)
            sources[name] = samples
        else:
            try:
                spool = stack.enter_context(scratch_folder(place))
                sources[name], reader = _read_to_end(
                    iter(cast(Iterable[object], dataset)), reader, spool, prefix
                )
            except OSError as error:
                raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
        if not sources[name].ids:
            raise DataError(f"the {name} part has no samples; give another data set")
    return sources, reader


def _is_map_style(name: str, dataset: object) -> bool:
    """Tell whether a data set has numbered samples, or is an iterable.

    Raises:
        UsageError: It is neither.
    """
    is_path_or_sample = isinstance(dataset, str | bytes | Path | Mapping)
    is_numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if is_numbered and not is_path_or_sample and not isinstance(dataset, IterableDataset):
        return True
    if is_path_or_sample or not hasattr(dataset, "__iter__"):
        raise UsageError(
            f"{name} must be a data set with __getitem__ and __len__, or an iterable, whose "
            f"samples are dicts; found {type(dataset).__qualname__}"
        )
    return False


def _first_frame(samples: _Samples) -> Frame:
    """Return the first frame that can be made.

    Raises:
        FaultyFramesError: None can.
    """
    found = []
    for number, id_ in enumerate(samples.ids):
        try:
            return samples(number)
        except GatesearchError as error:
            found.append(FrameFault(number, id_, str(error)))
            if len(found) == MOST_FAULTS:
                break
    raise FaultyFramesError(found, len(samples.ids))


def _read_to_end(
    samples: Iterator[object], reader: SampleReader, folder: Path, prefix: str
) -> tuple[_Spool, SampleReader]:
    """Read all samples of an iterable, and keep their frames in a folder.

    Raises:
        FaultyFramesError: Some are faulty; no more are read after `MOST_FAULTS` of them.
        OSError: The frames cannot be written.
    """
    found: list[FrameFault] = []
    ids: list[str] = []
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    with ExitStack() as files:
        opened: list[IO[bytes]] = []
        while len(found) < MOST_FAULTS:
            number = len(ids)
            id_ = f"{prefix}{number}"
            try:
                sample = next(samples)
            except StopIteration:
                break
            except Exception as error:  # of the user's code, an open set
                found.append(FrameFault(number, id_, f"sample {id_} cannot be read "
                                        f"({_shown(error)}), nor any after it"))  # fmt: skip
                break
            ids.append(id_ := _id_of(sample, id_))
            try:
                frame = reader.frame(lambda: sample, id_)  # noqa: B023
            except GatesearchError as error:
                found.append(FrameFault(number, id_, str(error)))
                continue
            if not opened:
                reader = reader.sized_by(frame)
                shapes = _shapes(frame, reader)
                paths = [folder / str(n) for n in range(len(shapes))]
                opened = [files.enter_context(path.open("xb")) for path in paths]
            for file, (field, (dtype, _)) in zip(opened, shapes.items(), strict=True):
                file.write(np.ascontiguousarray(frame[field], dtype).tobytes())
    if found:
        raise FaultyFramesError(found, len(ids))
    return _Spool(folder, shapes, ids), reader


def _id_of(sample: object, default: str) -> str:
    key = sample.get(_SAMPLE_KEY) if isinstance(sample, Mapping) else None
    return key if isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY else default


def _shapes(frame: Frame, reader: SampleReader) -> dict[str, tuple[str, tuple[int, ...]]]:
    storage = {IMAGE: IMAGE_STORAGE} | {name: t.storage for name, t in reader.tasks.items()}
    return {field: (storage[field].dtype, array.shape) for field, array in frame.items()}
