"""`gatesearch.pack`: makes a pack of any data set whose samples are dicts."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import IterableDataset

from gatesearch.datasets.frame_faults import MOST_FAULTS, FaultyFramesError, FrameFault
from gatesearch.datasets.frame_size import resize_frame
from gatesearch.datasets.pack_manifest import IMAGE, IMAGE_STORAGE, SPLITS, SplitName
from gatesearch.datasets.pack_reader import Pack, open_pack
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.samples import to_frame
from gatesearch.datasets.scratch import scratch_folder
from gatesearch.errors import DataError, GatesearchError, UsageError, one_line, unknown
from gatesearch.events import Emit, Event
from gatesearch.strict import Strict
from gatesearch.study import TaskSpec
from gatesearch.study.definition import TaskName
from gatesearch.study.validation import validated
from gatesearch.tasks import Task, build_tasks

# What names samples in WebDataset.
_SAMPLE_KEY = "__key__"
_LONGEST_KEY = 200
Frame = dict[str, NDArray[Any]]


def pack(
    dataset: object,
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    to: str | Path,
    size: tuple[int, int] | None = None,
    validation: object = None,
    test: object = None,
    image: str = IMAGE,
    seed: int = 0,
    source: str = "",
    processes: int = 1,
    emit: Emit | None = None,
) -> Pack:
    """Make a pack of a data set, which a study then names by `data.dataset = "pack"`.

    A data set is one of: a map-style `torch.utils.data.Dataset` or a sequence; a Hugging Face
    `Dataset`; or an iterable, such as a WebDataset or a generator, which is read once. Samples are
    dicts with an image, and with labels by name; a label that is absent or None is not known. See
    `gatesearch.datasets.samples` for the types that images and labels may have.

    Args:
        dataset: The training part; or a mapping, such as a `DatasetDict`, with the keys `train`,
            `test` and perhaps `validation`.
        tasks: Task -> table, as in a study's `[tasks.NAME]`: `kind`, `classes` and options of the
            kind. `label` is the key of the samples with the labels, by default the task's name; the
            field of the pack has the task's name.
        to: Folder of the pack. An old pack there stays until the new one is whole.
        size: Height and width to which frames are resized; None if all samples have one size.
        validation: Data set of the validation part; or the fraction of the training part that
            becomes it. None for none: a study then takes frames of the training part.
        test: The same for the test part; every pack needs one.
        image: Key of the samples with the image.
        seed: Seed by which samples are drawn for fractions.
        source: Says in the pack where the samples come from.
        processes: Number of processes that read samples of map-style data sets. More than 1 need a
            picklable data set and, in a script, `if __name__ == "__main__":`.
        emit: Receives `Progress` events.

    Returns:
        The opened pack.

    Raises:
        UsageError: Data sets, tasks or fractions that are none.
        DataError: Samples that are not as they must be, all of which are named by their index; or
            the folder cannot be written. Nothing is left behind.

    >>> import tempfile, numpy as np
    >>> grey = [{"image": np.full((4, 6), i, np.uint8), "mask": np.eye(4, 6)} for i in range(5)]
    >>> tasks = {"shape": {"kind": "semseg", "classes": 2, "label": "mask"}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = pack(grey, tasks, to=f"{folder}/grey", test=0.2)
    ...     (made.frames("train"), made.frames("test"), made.size, made.label_fields)
    (4, 1, (4, 6), ['shape'])
    """
    specs = validated(_Tasks, {"tasks": tasks}, where="pack").tasks
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UsageError(f"size must be height and width of at least 1 pixel, found {size}")
    parts, fractions = _parts(dataset, validation=validation, test=test)
    fields = build_tasks(specs)
    keys = {name: spec.label or name for name, spec in specs.items()}
    reader = _Reader(image, keys, fields, size, resizes=size is not None)
    folder, say = Path(to), emit or _ignore
    with ExitStack() as stack:
        sources, reader = _open_sources(parts, reader, folder, stack)
        assert reader.size is not None
        write_pack(
            folder,
            dataset="pack",
            size=reader.size,
            fields=fields,
            splits=_splits(sources, fractions, seed),
            source=source or f"gatesearch.pack of {type(dataset).__qualname__}",
            processes=processes,
            emit=say,
        )
    return open_pack(folder)


class _Tasks(Strict):
    tasks: dict[TaskName, TaskSpec] = Field(min_length=1)


def _ignore(event: Event) -> None:
    pass


def _parts(
    dataset: object, *, validation: object, test: object
) -> tuple[dict[SplitName, object], dict[SplitName, float]]:
    """Sort what was given into data sets of parts, and fractions of the training part.

    Raises:
        UsageError: Parts that are no data sets, unknown, given twice, or missing.
    """
    parts: dict[SplitName, object] = {"train": dataset}
    if isinstance(dataset, Mapping):
        for name in dataset:
            if name not in SPLITS:
                raise UsageError(
                    f"{unknown('part', str(name), SPLITS)}; name parts yourself, as in "
                    "pack(data['train'], tasks, validation=data['dev'], test=data['eval'])"
                )
        parts = {name: dataset[name] for name in SPLITS if name in dataset}
        if "train" not in parts:
            raise UsageError("a mapping of data sets needs the key 'train', found none")
    fractions: dict[SplitName, float] = {}
    given: dict[SplitName, object] = {"validation": validation, "test": test}
    for name, value in given.items():
        if value is None:
            continue
        if name in parts:
            raise UsageError(f"{name} is given by the mapping and by {name}=; leave one out")
        if isinstance(value, int | float):
            if isinstance(value, bool) or not 0 < value < 1:
                raise UsageError(
                    f"{name} must be a data set, or a fraction between 0 and 1 of the training "
                    f"part, found {value}"
                )
            fractions[name] = float(value)
        else:
            parts[name] = value
    if "test" not in parts and "test" not in fractions:
        raise UsageError(
            "a pack needs a test part, on which networks are measured in the end; give test= a "
            "data set, or a fraction of the training part, as test=0.2"
        )
    return parts, fractions


@dataclass(frozen=True)
class _Reader:
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

    def sized_by(self, frame: Frame) -> "_Reader":
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
    reader: _Reader
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


_Source = _Samples | _Spool


def _open_sources(
    parts: Mapping[SplitName, object], reader: _Reader, folder: Path, stack: ExitStack
) -> tuple[dict[SplitName, _Source], _Reader]:
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
    sources: dict[SplitName, _Source] = {}
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
    samples: Iterator[object], reader: _Reader, folder: Path, prefix: str
) -> tuple[_Spool, _Reader]:
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


def _shapes(frame: Frame, reader: _Reader) -> dict[str, tuple[str, tuple[int, ...]]]:
    storage = {IMAGE: IMAGE_STORAGE} | {name: t.storage for name, t in reader.tasks.items()}
    return {field: (storage[field].dtype, array.shape) for field, array in frame.items()}


def _splits(
    sources: Mapping[SplitName, _Source], fractions: Mapping[SplitName, float], seed: int
) -> dict[SplitName, SplitFrames]:
    """Draw the parts that are fractions of the training part; the others are whole.

    Raises:
        UsageError: Nothing is left to train on.
    """
    splits = {
        name: SplitFrames(source.ids, source)
        for name, source in sources.items()
        if name != "train" or not fractions
    }
    if fractions:
        train = sources["train"]
        count = len(train.ids)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        taken = 0
        shares: dict[SplitName, list[int]] = {}
        for name, fraction in fractions.items():
            wanted = max(1, round(fraction * count))
            shares[name] = order[taken : taken + wanted]
            taken += wanted
        if taken >= count:
            raise UsageError(
                f"fractions must leave samples to train on: {taken} of {count} are taken; lower "
                f"{' and '.join(fractions)}, or give more samples"
            )
        shares["train"] = order[taken:]
        splits |= {name: _share(train, sorted(share)) for name, share in shares.items()}
    return splits


def _share(source: _Source, indices: Sequence[int]) -> SplitFrames:
    return SplitFrames([source.ids[i] for i in indices], _Share(source, indices))


@dataclass(frozen=True)
class _Share:
    """Some frames of a source, in the order of `indices`."""

    source: _Source
    indices: Sequence[int]

    def __call__(self, index: int) -> Frame:
        return self.source(self.indices[index])
