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

from gatesearch.datasets.free_space import need_space
from gatesearch.datasets.pack_reader import (
    IMAGE,
    MANIFEST,
    SPLITS,
    FileEntry,
    Frame,
    Manifest,
    Pack,
    SplitEntry,
    SplitName,
    field_storage,
    open_pack,
)
from gatesearch.datasets.scratch import put_in_place, scratch_folder
from gatesearch.errors import DataError
from gatesearch.events import Emit, Progress
from gatesearch.files import sync_folder
from gatesearch.tasks import TASKS


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
        frames: Dicts field -> array of shape (H, W) or (H, W, 3); consumed once.
    """

    ids: Sequence[str]
    frames: Iterator[Frame]


def write_pack(
    folder: Path,
    *,
    dataset: str,
    size: tuple[int, int],
    classes: Mapping[str, int],
    splits: Mapping[SplitName, SplitFrames],
    source: str,
    notes: Sequence[str] = (),
    emit: Emit,
) -> Path:
    """Write a pack, one frame in memory at a time; an old pack stays until the new one is whole.

    Args:
        folder: The pack's folder; its name is the pack's name.
        dataset: Name of the data set.
        size: Height and width in pixels.
        classes: Number of classes of each field whose labels are classes.
        splits: Both splits.
        source: Where the frames come from.
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
            for name in SPLITS:
                split = splits[name]
                with _SplitWriter(partial / name, frames=len(split.ids), size=size) as writer:
                    for frame in split.frames:
                        writer.add(frame)
                        done += 1
                        emit(_progress(dataset, done, total))
                entries[name] = SplitEntry(
                    frames=len(split.ids), ids=tuple(split.ids), files=writer.entries()
                )
            manifest = Manifest(
                dataset=dataset,
                pack=folder.name,
                size=size,
                classes=dict(classes),
                splits=entries,
                source=source,
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

    def __init__(self, folder: Path, *, frames: int, size: tuple[int, int]) -> None:
        self._folder = folder
        self._frames = frames
        self._size = size
        self._seen = 0
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._sums: dict[str, Any] = {}

    def __enter__(self) -> "_SplitWriter":
        self._folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                if self._seen != self._frames:
                    raise ValueError(
                        f"{self._folder.name}: {self._frames} ids, {self._seen} frames"
                    )
                for file in self._files.values():
                    _flush(file)
        finally:
            self._stack.close()

    def add(self, frame: Frame) -> None:
        if not self._files:
            fields = [field for field in (IMAGE, *TASKS) if field in frame]
            need_space(self._folder.parent, sum(map(self._bytes, fields)))
            for field in fields:
                self._open(field)
        if set(frame) != set(self._files):
            raise ValueError(f"every frame must have {set(self._files)}, found {set(frame)}")
        for field, file in self._files.items():
            storage = field_storage(field)
            shape = (*self._size, *storage.channels)
            if frame[field].shape != shape:
                raise ValueError(f"{field} must be {shape}, found {frame[field].shape}")
            data = np.ascontiguousarray(frame[field], dtype=storage.dtype).tobytes()
            file.write(data)
            self._sums[field].update(data)
        self._seen += 1

    def entries(self) -> dict[str, FileEntry]:
        return {
            field: FileEntry(
                sha256=self._sums[field].hexdigest(),
                dtype=field_storage(field).dtype,
                shape=self._shape(field),
            )
            for field in self._files
        }

    def _shape(self, field: str) -> tuple[int, ...]:
        return (self._frames, *self._size, *field_storage(field).channels)

    def _bytes(self, field: str) -> int:
        return math.prod(self._shape(field)) * np.dtype(field_storage(field).dtype).itemsize

    def _open(self, field: str) -> None:
        file = self._stack.enter_context((self._folder / f"{field}.npy").open("wb+"))
        dtype = field_storage(field).dtype
        header = {"descr": dtype, "fortran_order": False, "shape": self._shape(field)}
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0)
        self._sums[field] = hashlib.sha256(file.read())
        self._files[field] = file


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
