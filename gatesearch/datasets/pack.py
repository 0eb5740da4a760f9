"""The pack: what every data set becomes before training reads it.

A pack is a folder of plain NumPy files and a manifest:

    <pack>/manifest.json             checked sums, sizes, classes, ids, notes
    <pack>/{train,test}/FIELD.npy    one array a field, frames first, read by memory map

It is written frame by frame into a folder aside and moved into place when complete, so that a
pack is either whole or absent.
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gatesearch.errors import DataError

Emit = Callable[[dict[str, Any]], None]
Frame = Mapping[str, NDArray[Any]]
FieldName = Literal["image", "semseg", "depth", "normals", "edges"]
SplitName = Literal["train", "test"]

IGNORE = 255
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
# Field -> element type and what follows (H, W) in its shape.
FIELDS: dict[FieldName, tuple[str, tuple[int, ...]]] = {
    "image": ("|u1", (3,)),
    "semseg": ("|u1", ()),
    "depth": ("<f4", ()),
    "normals": ("<f2", (3,)),
    "edges": ("|u1", ()),
}
_MANIFEST = "manifest.json"
_STALE_SECONDS = 24 * 3600.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """One array file: its sum over all bytes of the file, element type and shape."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dtype: str
    shape: tuple[int, ...]


class SplitEntry(_Strict):
    """One split: number of frames, their ids in order, and a file a field."""

    frames: int = Field(ge=1)
    ids: tuple[str, ...]
    files: dict[FieldName, FileEntry] = Field(min_length=1)


class Manifest(_Strict):
    """What `manifest.json` holds.

    Files are found by split and field, both from fixed lists: no name in a manifest is a path.

    Attributes:
        size: Height and width of every frame, in pixels.
        classes: Number of classes of each labelled field.
        source: Where the frames came from.
        notes: What a reader of figures made on this pack should know.
    """

    format: Literal[1] = 1
    dataset: str
    pack: str
    size: tuple[int, int]
    classes: dict[FieldName, int]
    splits: dict[SplitName, SplitEntry]
    source: str
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"splits must be {SPLITS}, found {tuple(self.splits)}")
        if len({frozenset(split.files) for split in self.splits.values()}) > 1:
            raise ValueError("both splits must have the same fields")
        for name, split in self.splits.items():
            if len(split.ids) != split.frames:
                raise ValueError(f"{name} has {split.frames} frames but {len(split.ids)} ids")
            for field, entry in split.files.items():
                dtype, channels = FIELDS[field]
                expected = (dtype, (split.frames, *self.size, *channels))
                if (entry.dtype, entry.shape) != expected:
                    raise ValueError(
                        f"{name}/{field} must be {expected}, found {(entry.dtype, entry.shape)}"
                    )
        return self


@dataclass(frozen=True)
class Pack:
    """An opened pack.

    Attributes:
        folder: Where it lies.
        manifest: Its validated manifest.
    """

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the pack, such as `nyud-40`."""
        return self.manifest.pack

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.manifest.size

    @property
    def fields(self) -> tuple[FieldName, ...]:
        """Fields that every frame has."""
        return tuple(self.manifest.splits["train"].files)

    @property
    def classes(self) -> dict[FieldName, int]:
        """Number of classes of each labelled field."""
        return self.manifest.classes

    @property
    def digest(self) -> str:
        """SHA-256 over the sums of all files: equal digests mean equal frames."""
        sums = [
            f"{split}/{field} {entry.sha256}\n"
            for split, part in sorted(self.manifest.splits.items())
            for field, entry in sorted(part.files.items())
        ]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def frames(self, split: SplitName) -> int:
        """Number of frames of a split."""
        return self.manifest.splits[split].frames

    def ids(self, split: SplitName) -> tuple[str, ...]:
        """Ids of a split's frames, in the order of the arrays."""
        return self.manifest.splits[split].ids

    def path(self, split: SplitName, field: FieldName) -> Path:
        """File of one field of one split."""
        return self.folder / split / f"{field}.npy"

    def array(self, split: SplitName, field: FieldName) -> NDArray[Any]:
        """Read-only memory map of a field, frames first; encodings as in `FIELDS`.

        Raises:
            DataError: The file is absent, cut short, or not of the type and shape promised.
        """
        path = self.path(split, field)
        entry = self.manifest.splits[split].files[field]
        array = map_array(path, cure=self._cure())
        found = (array.dtype.str, array.shape)
        if found != (entry.dtype, entry.shape):
            raise DataError(
                f"{path} must hold {entry.dtype} {entry.shape} as its manifest says, "
                f"found {found[0]} {found[1]}; {self._cure()}"
            )
        return array

    def _cure(self) -> str:
        return f"delete {self.folder} and run: gatesearch data prepare {self.manifest.dataset}"


def map_array(path: Path, *, cure: str) -> NDArray[Any]:
    """Read-only memory map of an .npy file; a header cannot make it run code or take memory.

    Raises:
        DataError: The file is absent, cut short, of Python objects, or no array at all.
    """
    try:
        with warnings.catch_warnings():
            # Files of Python 2 are read all the same; numpy would ask for them to be rewritten.
            warnings.simplefilter("ignore", UserWarning)
            return np.lib.format.open_memmap(path, mode="r")
    # What numpy's header parser raises on damaged input is an open set.
    except Exception as error:
        raise DataError(
            f"{path} is missing or is no whole array of plain numbers ({error}); {cure}"
        ) from error


def open_pack(folder: Path) -> Pack:
    """Open a pack: its manifest is validated and every file's type, shape and length compared.

    Raises:
        DataError: No pack there, or a damaged one; names the file.
    """
    path = folder / _MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"no pack at {folder} ({_MANIFEST} is missing); make it with: gatesearch data prepare"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(
            f"{path} is not a manifest of format 1: {where}: {first['msg']}; "
            f"delete {folder} and prepare it again"
        ) from error
    pack = Pack(folder=folder, manifest=manifest)
    for split in SPLITS:
        for field in pack.fields:
            pack.array(split, field)
    return pack


def check_pack(folder: Path) -> Pack:
    """Open a pack and compare the sum of every file with the manifest's.

    Raises:
        DataError: Naming the first file that differs.
    """
    pack = open_pack(folder)
    for split in SPLITS:
        for field in pack.fields:
            path = pack.path(split, field)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            expected = pack.manifest.splits[split].files[field].sha256
            if found != expected:
                raise DataError(
                    f"{path} was changed since it was written: its sha256 must be "
                    f"{expected[:12]}..., found {found[:12]}...; {pack._cure()}"
                )
    return pack


def annotate(folder: Path, notes: Sequence[str]) -> Pack:
    """Add notes that whoever reads figures made on a pack should see; its frames stay.

    Raises:
        DataError: No pack there, or a folder that cannot be written.
    """
    pack = open_pack(folder)
    manifest = pack.manifest.model_copy(update={"notes": (*pack.manifest.notes, *notes)})
    fresh = folder / f".{_MANIFEST}.{os.getpid()}"
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(manifest.model_dump(mode="json"), file, indent=1)
            _flush(file)
        fresh.replace(folder / _MANIFEST)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return open_pack(folder)


@dataclass(frozen=True)
class SplitFrames:
    """A split on its way into a pack: ids, and as many frames in the same order.

    Attributes:
        ids: One id a frame.
        frames: Dicts field -> array of shape (H, W) or (H, W, 3); consumed once.
    """

    ids: Sequence[str]
    frames: Iterator[Frame]


def write_pack(
    folder: Path,
    *,
    dataset: str,
    size: tuple[int, int],
    classes: Mapping[FieldName, int],
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
        classes: Number of classes of each labelled field.
        splits: Both splits.
        source: Where the frames come from.
        notes: Read after the last frame, so the frames' iterator may still add to it.
        emit: Receives `progress` events in frames.

    Raises:
        DataError: The folder cannot be written, the disk is full, or something that is no pack
            lies there; nothing is left behind.
    """
    if folder.exists() and not (folder / _MANIFEST).is_file():
        raise DataError(
            f"{folder} is to hold a pack but holds something else ({_MANIFEST} is missing); "
            "move it away, or name another folder with --data"
        )
    total = sum(len(split.ids) for split in splits.values())
    done = 0
    try:
        with aside(folder) as partial:
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
            with (partial / _MANIFEST).open("w", encoding="utf-8") as file:
                json.dump(manifest.model_dump(mode="json"), file, indent=1)
                _flush(file)
            _move_into_place(partial, folder)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}; "
            "free space there, or name another folder with --data"
        ) from error
    return folder


@contextmanager
def aside(folder: Path, *, purpose: str = "partial") -> Iterator[Path]:
    """A fresh sibling folder `.<name>.<purpose>-<pid>`, gone when the block ends.

    So are the folders above it that it needed and nobody else used. What killed processes left
    there more than a day ago is removed first.
    """
    needed = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f".{folder.name}.{purpose}-*"):
        if time.time() - old.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    fresh = folder.parent / f".{folder.name}.{purpose}-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):
            for above in needed:
                above.rmdir()


def _progress(dataset: str, done: int, total: int) -> dict[str, Any]:
    return {
        "event": "progress",
        "message": f"{dataset}: {done} of {total} frames",
        "stage": f"data {dataset}",
        "done": done,
        "total": total,
        "unit": "frames",
    }


class _SplitWriter:
    """Appends frames to one .npy file a field and keeps their sums.

    Plain appends rather than a memory map: on a full disk a write fails with an error that can
    be shown, where a store through a map kills the process.
    """

    def __init__(self, folder: Path, *, frames: int, size: tuple[int, int]) -> None:
        self._folder = folder
        self._frames = frames
        self._size = size
        self._seen = 0
        self._stack = ExitStack()
        self._files: dict[FieldName, IO[bytes]] = {}
        self._sums: dict[FieldName, Any] = {}

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
            for field in FIELDS:
                if field in frame:
                    self._open(field)
        if set(frame) != set(self._files):
            raise ValueError(f"every frame must have {set(self._files)}, found {set(frame)}")
        for field, file in self._files.items():
            dtype, channels = FIELDS[field]
            shape = (*self._size, *channels)
            if frame[field].shape != shape:
                raise ValueError(f"{field} must be {shape}, found {frame[field].shape}")
            self._write(field, file, np.ascontiguousarray(frame[field], dtype=dtype).tobytes())
        self._seen += 1

    def entries(self) -> dict[FieldName, FileEntry]:
        return {
            field: FileEntry(
                sha256=self._sums[field].hexdigest(),
                dtype=FIELDS[field][0],
                shape=self._shape(field),
            )
            for field in self._files
        }

    def _shape(self, field: FieldName) -> tuple[int, ...]:
        return (self._frames, *self._size, *FIELDS[field][1])

    def _open(self, field: FieldName) -> None:
        file = self._stack.enter_context((self._folder / f"{field}.npy").open("wb+"))
        header = {"descr": FIELDS[field][0], "fortran_order": False, "shape": self._shape(field)}
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0)
        self._sums[field] = hashlib.sha256(file.read())
        self._files[field] = file

    def _write(self, field: FieldName, file: IO[bytes], data: bytes) -> None:
        file.write(data)
        self._sums[field].update(data)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move_into_place(partial: Path, folder: Path) -> None:
    with aside(folder, purpose="replaced") as bin_folder:
        old = bin_folder / folder.name
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
