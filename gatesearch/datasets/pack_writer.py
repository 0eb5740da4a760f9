"""Writes packs into a scratch folder that is moved into place when whole.

Frames come from an iterator, one after the other, or from functions that several processes call in
any order; a preparation that was killed goes on with the frames that it lacks.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from gatesearch.checksums import checksum
from gatesearch.datasets.frame_faults import MOST_FAULTS, FaultyFramesError, FrameFault
from gatesearch.datasets.frame_files import FrameFiles, write_array
from gatesearch.datasets.frame_journal import Facts, Journal, WrittenFrame, read_journal
from gatesearch.datasets.frame_pool import call_for_each
from gatesearch.datasets.free_space import need_space
from gatesearch.datasets.pack_manifest import (
    IMAGE,
    IMAGE_STORAGE,
    MANIFEST,
    PRESENCE,
    SPLITS,
    FieldEntry,
    Frame,
    Manifest,
    SplitEntry,
    SplitName,
)
from gatesearch.datasets.pack_reader import Pack, open_pack
from gatesearch.datasets.scratch import put_in_place, scratch_folder, unfinished_folder
from gatesearch.errors import DataError, GatesearchError
from gatesearch.events import Emit, Progress
from gatesearch.files import sync_folder
from gatesearch.tasks import TASKS, Task
from gatesearch.tasks.labels import labelled_frames
from gatesearch.version import __version__

_JOURNAL = "journal.jsonl"


def add_notes(folder: Path, notes: Sequence[str]) -> Pack:
    """Add notes for readers of figures that are made on a pack; its frames stay as they are.

    Raises:
        DataError: No pack there, or a folder that cannot be written.
    """
    pack = open_pack(folder)
    manifest = pack.manifest.model_copy(update={"notes": (*pack.manifest.notes, *notes)})
    place = Path(os.path.realpath(folder))
    try:
        with scratch_folder(place) as fresh:
            _write_manifest(manifest, fresh)
            os.replace(fresh / MANIFEST, place / MANIFEST)
        sync_folder(place)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    return open_pack(folder)


@dataclass(frozen=True)
class NotedFrame:
    """A frame, and what is known of it beyond what the pack stores.

    Attributes:
        frame: Field -> array.
        facts: Name -> value; `SplitFrames.summarise` gets those of all frames.
    """

    frame: Frame
    facts: Facts


FrameFunction = Callable[[int], Frame | NotedFrame]


@dataclass(frozen=True)
class SplitFrames:
    """A split to be written into a pack: ids, and as many frames in the same order.

    Attributes:
        ids: One id per frame.
        frames: Dicts field -> array of the shape that the field's storage says, consumed once; or a
            function that makes the frame of a place in `ids`. Such a function may be called in any
            order, and if it is picklable by several processes. Where it cannot make a frame it
            raises GatesearchError, and all frames are tried to find the others that are faulty.
        summarise: Makes notes of the facts of all frames, in the order of the ids.
    """

    ids: Sequence[str]
    frames: Iterator[Frame] | FrameFunction
    summarise: Callable[[Sequence[Facts]], Sequence[str]] | None = None


def write_pack(
    folder: Path,
    *,
    dataset: str,
    size: tuple[int, int],
    fields: Mapping[str, Task],
    splits: Mapping[SplitName, SplitFrames],
    source: str,
    origin: str = "",
    notes: Sequence[str] = (),
    identity: str = "",
    processes: int | None = None,
    emit: Emit,
) -> Path:
    """Write a pack; an old pack stays until the new one is whole.

    The same frames give the same bytes, whatever the number of processes and interruptions.

    Args:
        folder: The pack's folder; its name is the pack's name.
        dataset: Name of the data set.
        size: Height and width in pixels.
        fields: Field of labels -> task whose labels it holds; every frame has them and an image.
        splits: The training and the test part, and perhaps a validation part.
        source: Where the frames come from.
        origin: Digest of the files that they come from; empty for none.
        notes: Read after the last frame, so that the iterator of frames may still add to it.
        identity: Says all that frames made by functions depend on, beside ids, fields and size,
            such as names, sizes and times of files. A call that was killed is then gone on with by
            the next of the same identity. Empty to begin anew each time.
        processes: Number of processes that call functions of frames; see `call_for_each`.
        emit: Receives `Progress` events in frames.

    Raises:
        FaultyFramesError: Frames that cannot be made; nothing is left behind.
        DataError: The folder cannot be written, the disk is full, or the folder holds something
            that is not a pack; nothing is left behind.
    """
    if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder} is to hold a pack but holds something else ({MANIFEST} is missing); "
            "move it away, or name another folder with --data"
        )
    # A pack may lie elsewhere, behind a link in its place, and stays there.
    place = Path(os.path.realpath(folder))
    key = _key(identity, folder.name, dataset, size, fields, splits) if identity else ""
    try:
        with scratch_folder(place) as partial:
            with unfinished_folder(place, key) if key else nullcontext() as unfinished:
                writer = _Writer(unfinished or partial, size=size, fields=fields, splits=splits)
                writer.write(dataset, resume=unfinished is not None, processes=processes, emit=emit)
                entries, further = writer.entries(), writer.notes()
                if unfinished is not None:
                    for name in splits:
                        os.rename(unfinished / name, partial / name)
            manifest = Manifest(
                dataset=dataset,
                pack=folder.name,
                size=size,
                fields=_describe(fields),
                splits=entries,
                source=source,
                origin=origin,
                notes=(*notes, *further),
            )
            _write_manifest(manifest, partial)
            put_in_place(partial, place)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; "
            "free space there, or name another folder with --data"
        ) from error
    return folder


def _key(
    identity: str,
    pack: str,
    dataset: str,
    size: tuple[int, int],
    fields: Mapping[str, Task],
    splits: Mapping[SplitName, SplitFrames],
) -> str:
    """Digest all that the frames of a pack depend on."""
    parts = [
        __version__, identity, pack, dataset, size,
        {field: [type(task).__name__, str(task)] for field, task in fields.items()},
        {name: list(split.ids) for name, split in splits.items()},
    ]  # fmt: skip
    return checksum(parts)[:32]


class _Writer:
    """Writes the frames of all splits below a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        size: tuple[int, int],
        fields: Mapping[str, Task],
        splits: Mapping[SplitName, SplitFrames],
    ) -> None:
        self._folder = folder
        self._splits = {name: splits[name] for name in SPLITS if name in splits}
        storage = {IMAGE: IMAGE_STORAGE} | {field: task.storage for field, task in fields.items()}
        self._files = {
            name: FrameFiles(folder / name, len(split.ids), size, storage)
            for name, split in self._splits.items()
        }
        self._unknown = {field: task.unknown_value for field, task in fields.items()}
        self._written: dict[tuple[SplitName, int], WrittenFrame] = {}

    def write(self, dataset: str, *, resume: bool, processes: int | None, emit: Emit) -> None:
        """Write all frames that an earlier process has not written here."""
        journal = Journal(self._folder / _JOURNAL) if resume else None
        try:
            self._open(resume)
            total = sum(len(split.ids) for split in self._splits.values())
            for frame in self._frames(processes, total):
                self._written[frame.split, frame.index] = frame
                if journal is not None:
                    journal.add(frame)
                done = len(self._written)
                message = f"{dataset}: {done} of {total} frames"
                emit(Progress(f"data {dataset}", done, total, "frames", message))
        finally:
            if journal is not None:
                journal.close()

    def _open(self, resume: bool) -> None:
        """Make the files, or find those that an earlier process has left."""
        whole = {name for name, files in self._files.items() if resume and files.are_whole()}
        missing = [files for name, files in self._files.items() if name not in whole]
        need_space(self._folder, sum(files.nbytes for files in missing))
        for files in missing:
            shutil.rmtree(files.folder, ignore_errors=True)
            files.create()
        for frame in read_journal(self._folder / _JOURNAL) if whole else ():
            if (
                frame.split in whole
                and 0 <= frame.index < self._files[frame.split].frames
                and len(frame.labelled) == len(self._unknown)
                and self._files[frame.split].checksum(frame.index) == frame.checksum
            ):
                self._written[frame.split, frame.index] = frame

    def _frames(self, processes: int | None, total: int) -> Iterator[WrittenFrame]:
        """Make the frames that are left and write them.

        Raises:
            FaultyFramesError: Some cannot be made.
        """
        places = []
        for name, split in self._splits.items():
            if callable(split.frames):
                left = (i for i in range(len(split.ids)) if (name, i) not in self._written)
                places += [(name, i) for i in left]
            else:
                yield from self._from_iterator(name, split.ids, split.frames)
        functions = {n: s.frames for n, s in self._splits.items() if callable(s.frames)}
        ids = {name: self._splits[name].ids for name in functions}
        make = _MakeFrame(places, functions, ids, self._files, self._unknown)
        faults = []
        for result in call_for_each(make, range(len(places)), processes=processes):
            if isinstance(result, WrittenFrame):
                yield result
            else:
                faults.append(result)
                if len(faults) == MOST_FAULTS:
                    break
        if faults:
            raise FaultyFramesError(faults, total)

    def _from_iterator(
        self, name: SplitName, ids: Sequence[str], frames: Iterator[Frame]
    ) -> Iterator[WrittenFrame]:
        count = 0
        for frame in frames:
            if count < len(ids):
                yield _write_frame(self._files[name], name, count, frame, {}, self._unknown)
            count += 1
        if count != len(ids):
            raise ValueError(f"{name}: {len(ids)} ids, {count} frames")

    def entries(self) -> dict[SplitName, SplitEntry]:
        """Describe the splits, once all frames are written."""
        entries: dict[SplitName, SplitEntry] = {}
        for name, split in self._splits.items():
            frames = range(len(split.ids))
            rows = [self._written[name, i].labelled for i in frames]
            labelled = np.array(rows, "|b1").reshape(len(frames), len(self._unknown))
            presence = None
            if not labelled.all():
                path = self._folder / name / f"{PRESENCE}.npy"
                path.unlink(missing_ok=True)  # of a process that was killed after it
                presence = write_array(path, labelled)
            counts = dict(zip(self._unknown, labelled.sum(0).tolist(), strict=True))
            entries[name] = SplitEntry(
                frames=len(frames),
                ids=tuple(split.ids),
                files=self._files[name].entries(),
                labelled=counts,
                presence=presence,
            )
        return entries

    def notes(self) -> list[str]:
        """Make the notes of the facts of all frames."""
        notes: list[str] = []
        for name, split in self._splits.items():
            if split.summarise is not None:
                frames = range(len(split.ids))
                notes += split.summarise([self._written[name, i].facts for i in frames])
        return notes


@dataclass(frozen=True)
class _MakeFrame:
    """Makes a frame and writes it into the files of its split; runs in any process.

    Attributes:
        places: Number -> split and place in it.
        functions: Split -> function of a place.
        ids: Split -> ids.
        files: Split -> its files.
        unknown: Field of labels -> value of what is not known.
    """

    places: Sequence[tuple[SplitName, int]]
    functions: Mapping[SplitName, FrameFunction]
    ids: Mapping[SplitName, Sequence[str]]
    files: Mapping[SplitName, FrameFiles]
    unknown: Mapping[str, float]

    def name(self, number: int) -> str:
        split, index = self.places[number]
        return self.ids[split][index]

    def __call__(self, number: int) -> WrittenFrame | FrameFault:
        split, index = self.places[number]
        try:
            made = self.functions[split](index)
        except GatesearchError as error:
            return FrameFault(number, self.name(number), str(error))
        frame, facts = (made.frame, made.facts) if isinstance(made, NotedFrame) else (made, {})
        return _write_frame(self.files[split], split, index, frame, facts, self.unknown)


def _write_frame(
    files: FrameFiles,
    split: SplitName,
    index: int,
    frame: Frame,
    facts: Facts,
    unknown: Mapping[str, float],
) -> WrittenFrame:
    sum_of_bytes = files.write(index, frame)
    labelled = tuple(
        bool(labelled_frames(torch.from_numpy(np.asarray(frame[field])[None]), value))
        for field, value in unknown.items()
    )
    return WrittenFrame(split, index, sum_of_bytes, labelled, facts)


def _describe(fields: Mapping[str, Task]) -> dict[str, FieldEntry]:
    """Describe the fields of a pack."""
    described = {
        IMAGE: FieldEntry(kind="", dtype=IMAGE_STORAGE.dtype, shape=IMAGE_STORAGE.channels)
    }
    kinds = {kind: name for name, kind in TASKS.items()}
    for field, task in fields.items():
        storage = task.storage
        described[field] = FieldEntry(
            kind=kinds[type(task)],
            dtype=storage.dtype,
            shape=storage.channels,
            dense=storage.dense,
            classes=task.classes,
            class_names=task.output_names,
        )
    return described


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest.model_dump(mode="json"), file, indent=1)
        _flush(file)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
