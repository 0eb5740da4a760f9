"""Writes packs, frame by frame, into a scratch folder that is moved into place when whole."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gatesearch.datasets.free_space import need_space
from gatesearch.datasets.pack_reader import (
    IMAGE,
    IMAGE_STORAGE,
    MANIFEST,
    PRESENCE,
    SPLITS,
    FieldEntry,
    FileEntry,
    Frame,
    Manifest,
    Pack,
    SplitEntry,
    SplitName,
    open_pack,
)
from gatesearch.datasets.scratch import put_in_place, scratch_folder
from gatesearch.errors import DataError
from gatesearch.events import Emit, Progress
from gatesearch.files import sync_folder
from gatesearch.tasks import TASKS, Task
from gatesearch.tasks.labels import labelled_frames


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
class SplitFrames:
    """A split to be written into a pack: ids, and as many frames in the same order.

    Attributes:
        ids: One id per frame.
        frames: Dicts field -> array of the shape that the field's storage says; consumed once.
    """

    ids: Sequence[str]
    frames: Iterator[Frame]


def write_pack(
    folder: Path,
    *,
    dataset: str,
    size: tuple[int, int],
    fields: Mapping[str, Task],
    splits: Mapping[SplitName, SplitFrames],
    source: str,
    origin: str = "",
    class_names: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
    emit: Emit,
) -> Path:
    """Write a pack, one frame in memory at a time; an old pack stays until the new one is whole.

    Args:
        folder: The pack's folder; its name is the pack's name.
        dataset: Name of the data set.
        size: Height and width in pixels.
        fields: Field of labels -> task whose labels it holds; every frame has them and an image.
        splits: The training and the test part, and perhaps a validation part.
        source: Where the frames come from.
        origin: Digest of the files that they come from; empty for none.
        class_names: Field -> names of its classes, where they are known.
        notes: Read after the last frame, so that the iterator of frames may still add to it.
        emit: Receives `Progress` events in frames.

    Raises:
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
    total = sum(len(split.ids) for split in splits.values())
    done = 0
    try:
        with scratch_folder(place) as partial:
            entries: dict[SplitName, SplitEntry] = {}
            for name in [split for split in SPLITS if split in splits]:
                split = splits[name]
                count = len(split.ids)
                with _SplitWriter(partial / name, frames=count, size=size, fields=fields) as writer:
                    for frame in split.frames:
                        writer.add(frame)
                        done += 1
                        emit(_progress(dataset, done, total))
                entries[name] = writer.entry(tuple(split.ids))
            manifest = Manifest(
                dataset=dataset,
                pack=folder.name,
                size=size,
                fields=_describe(fields, partial / "train", class_names or {}),
                splits=entries,
                source=source,
                origin=origin,
                notes=tuple(notes),
            )
            _write_manifest(manifest, partial)
            put_in_place(partial, place)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; "
            "free space there, or name another folder with --data"
        ) from error
    return folder


def _describe(
    fields: Mapping[str, Task], train: Path, class_names: Mapping[str, Sequence[str]]
) -> dict[str, FieldEntry]:
    """Describe the fields of a pack whose training part was written into the folder `train`."""
    described = {
        IMAGE: FieldEntry(kind="", dtype=IMAGE_STORAGE.dtype, shape=IMAGE_STORAGE.channels)
    }
    kinds = {kind: name for name, kind in TASKS.items()}
    for field, task in fields.items():
        storage, figures = task.storage, {}
        if not storage.dense:
            figures = task.summarise(np.load(train / f"{field}.npy", mmap_mode="r"))
        described[field] = FieldEntry(
            kind=kinds[type(task)],
            dtype=storage.dtype,
            shape=storage.channels,
            dense=storage.dense,
            classes=task.classes,
            class_names=tuple(class_names.get(field, ())),
            figures=figures,
        )
    return described


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest.model_dump(mode="json"), file, indent=1)
        _flush(file)


def _progress(dataset: str, done: int, total: int) -> Progress:
    return Progress(
        stage=f"data {dataset}",
        done=done,
        total=total,
        unit="frames",
        message=f"{dataset}: {done} of {total} frames",
    )


class _SplitWriter:
    """Appends frames to one .npy file per field and keeps the files' SHA-256 sums.

    Plain appends rather than a memory map: on a full disk a write fails with an error that can
    be shown, where a write through a memory map kills the process.
    """

    def __init__(
        self, folder: Path, *, frames: int, size: tuple[int, int], fields: Mapping[str, Task]
    ) -> None:
        self._folder = folder
        self._frames = frames
        self._size = size
        self._storage = {IMAGE: IMAGE_STORAGE} | {
            field: task.storage for field, task in fields.items()
        }
        self._unknown = {field: task.unknown_value for field, task in fields.items()}
        self._labelled: list[list[bool]] = []
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._sums: dict[str, Any] = {}

    def __enter__(self) -> "_SplitWriter":
        self._folder.mkdir()
        need_space(self._folder.parent, sum(map(self._bytes, self._storage)))
        for field, storage in self._storage.items():
            self._open(field, storage.dtype, self._shape(field))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                if len(self._labelled) != self._frames:
                    raise ValueError(
                        f"{self._folder.name}: {self._frames} ids, {len(self._labelled)} frames"
                    )
                self._write_presence()
                for file in self._files.values():
                    _flush(file)
        finally:
            self._stack.close()

    def add(self, frame: Frame) -> None:
        if set(frame) != set(self._storage):
            raise ValueError(f"every frame must have {set(self._storage)}, found {set(frame)}")
        for field, storage in self._storage.items():
            shape = storage.shape(self._size)
            if frame[field].shape != shape:
                raise ValueError(f"{field} must be {shape}, found {frame[field].shape}")
            self._append(field, np.ascontiguousarray(frame[field], dtype=storage.dtype))
        self._labelled.append(
            [
                bool(labelled_frames(torch.from_numpy(np.asarray(frame[field])[None]), value))
                for field, value in self._unknown.items()
            ]
        )

    def entry(self, ids: tuple[str, ...]) -> SplitEntry:
        entries = {
            field: FileEntry(
                sha256=self._sums[field].hexdigest(),
                dtype=storage.dtype,
                shape=self._shape(field),
            )
            for field, storage in self._storage.items()
        }
        counts = np.array(self._labelled, bool).reshape(self._frames, len(self._unknown)).sum(0)
        presence = None
        if PRESENCE in self._sums:
            presence = FileEntry(
                sha256=self._sums[PRESENCE].hexdigest(),
                dtype="|b1",
                shape=(self._frames, len(self._unknown)),
            )
        return SplitEntry(
            frames=self._frames,
            ids=ids,
            files=entries,
            labelled=dict(zip(self._unknown, counts.tolist(), strict=True)),
            presence=presence,
        )

    def _write_presence(self) -> None:
        """Write which frames have labels of which field, if any lacks some."""
        labelled = np.array(self._labelled, "|b1")
        if not labelled.all():
            self._open(PRESENCE, "|b1", labelled.shape)
            self._append(PRESENCE, labelled)

    def _shape(self, field: str) -> tuple[int, ...]:
        return (self._frames, *self._storage[field].shape(self._size))

    def _bytes(self, field: str) -> int:
        return math.prod(self._shape(field)) * np.dtype(self._storage[field].dtype).itemsize

    def _append(self, field: str, values: NDArray[Any]) -> None:
        data = values.tobytes()
        self._files[field].write(data)
        self._sums[field].update(data)

    def _open(self, field: str, dtype: str, shape: tuple[int, ...]) -> None:
        file = self._stack.enter_context((self._folder / f"{field}.npy").open("wb+"))
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0)
        self._sums[field] = hashlib.sha256(file.read())
        self._files[field] = file


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
