"""The pack: what every data set becomes before training reads it.

A pack is a folder of plain NumPy files and a manifest:

    <pack>/manifest.json             checked sums, sizes, classes, ids, notes
    <pack>/{train,test}/FIELD.npy    one array per field, frames first, read by memory map
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, model_validator

from gatesearch.errors import DataError
from gatesearch.strict import Strict
from gatesearch.tasks import TASKS
from gatesearch.tasks.labels import Storage

SplitName = Literal["train", "test"]
Frame = Mapping[str, NDArray[Any]]  # field -> array, (H, W) or (H, W, channels)

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
IMAGE = "image"
MANIFEST = "manifest.json"

_IMAGE_STORAGE = Storage("|u1", (3,))


def field_storage(field: str) -> Storage:
    """How a pack stores a field: the image, or labels, whose name is that of their kind of task.

    Raises:
        ValueError: No such field.
    """
    if field == IMAGE:
        return _IMAGE_STORAGE
    if field not in TASKS:
        raise ValueError(f"a field must be {IMAGE} or one of {', '.join(TASKS)}, found {field!r}")
    return TASKS[field].storage


def _known_field(field: str) -> str:
    field_storage(field)
    return field


FieldName = Annotated[str, AfterValidator(_known_field)]


class FileEntry(Strict):
    """One array file: SHA-256 of all its bytes, element type and shape."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dtype: str
    shape: tuple[int, ...]


class SplitEntry(Strict):
    """One split: number of frames, their ids in order, and one file per field."""

    frames: int = Field(ge=1)
    ids: tuple[str, ...]
    files: dict[FieldName, FileEntry] = Field(min_length=1)


class Manifest(Strict):
    """What `manifest.json` holds.

    Files are found by split and field, whose names are checked against fixed lists, so that no
    name in a manifest can act as a path.

    Attributes:
        size: Height and width of every frame, in pixels.
        classes: Number of classes of each field whose labels are classes.
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
                storage = field_storage(field)
                expected = (storage.dtype, (split.frames, *self.size, *storage.channels))
                if (entry.dtype, entry.shape) != expected:
                    raise ValueError(
                        f"{name}/{field} must be {expected}, found {(entry.dtype, entry.shape)}"
                    )
        return self


@dataclass(frozen=True)
class Pack:
    """An opened pack.

    Attributes:
        folder: The pack's folder.
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
    def fields(self) -> tuple[str, ...]:
        """Fields that every frame has: `image`, and labels by the name of their kind of task."""
        return tuple(self.manifest.splits["train"].files)

    @property
    def classes(self) -> dict[str, int]:
        """Number of classes of each field whose labels are classes."""
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

    def path(self, split: SplitName, field: str) -> Path:
        """File of one field of one split."""
        return self.folder / split / f"{field}.npy"

    def array(self, split: SplitName, field: str) -> NDArray[Any]:
        """Read-only memory map of a field, frames first, stored as `field_storage` says.

        Raises:
            DataError: The file is absent, cut short, or not of the type and shape promised.
        """
        path = self.path(split, field)
        entry = self.manifest.splits[split].files[field]
        array = map_array(path, cure=self._cure())
        dtype, shape = array.dtype.str, array.shape
        if (dtype, shape) != (entry.dtype, entry.shape):
            raise DataError(
                f"{path} must hold {entry.dtype} {entry.shape} as its manifest says, "
                f"found {dtype} {shape}; {self._cure()}"
            )
        return array

    def _cure(self) -> str:
        return f"delete {self.folder} and run: gatesearch data prepare {self.manifest.dataset}"


def map_array(path: Path, *, cure: str) -> NDArray[Any]:
    """Read-only memory map of an .npy file, whose header can neither run code nor take memory.

    Raises:
        DataError: The file is absent, cut short, of Python objects, or no array at all.
    """
    try:
        with warnings.catch_warnings():
            # Files written by Python 2 are readable; numpy only asks for them to be rewritten.
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
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"no pack at {folder} ({MANIFEST} is missing); make it with: gatesearch data prepare"
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
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            expected = pack.manifest.splits[split].files[field].sha256
            if actual != expected:
                raise DataError(
                    f"{path} was changed since it was written: its sha256 must be "
                    f"{expected[:12]}..., found {actual[:12]}...; {pack._cure()}"
                )
    return pack
