"""The pack: what every data set becomes before training reads it.

A pack is a folder of plain NumPy files and a manifest:

    <pack>/manifest.json             checked sums, sizes, classes, ids, notes
    <pack>/{train,test}/FIELD.npy    one array per field, frames first, read by memory map
"""

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from gatesearch.datasets.scratch import restore_replaced
from gatesearch.errors import DataError, one_line, shell_command
from gatesearch.files import MIB, FileRefusedError, open_regular, read_json
from gatesearch.strict import Strict
from gatesearch.tasks import TASKS
from gatesearch.tasks.labels import IGNORE, Storage

SplitName = Literal["train", "test"]
Frame = Mapping[str, NDArray[Any]]  # field -> array, (H, W) or (H, W, channels)

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
IMAGE = "image"
MANIFEST = "manifest.json"

_LARGEST_MANIFEST = 16 * MIB  # of 100,000 frames: about 2 MiB

_LONGEST_ID = 1000
# Bytes of the header of a .npy file up to its length; numpy itself writes about 120 in all.
_LONGEST_HEADER = 10_000
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
    ids: tuple[Annotated[str, Field(max_length=_LONGEST_ID)], ...]
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
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    classes: dict[FieldName, Annotated[int, Field(ge=1, le=IGNORE)]]
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
        return f"delete {self.folder} and run: {_prepare_command(self.folder)}"


def _prepare_command(folder: Path) -> str:
    """Spell the command that makes a pack; names of packs begin with that of their data set."""
    name = folder.name.partition("-")[0]
    return shell_command("gatesearch", "data", "prepare", name, "--data", str(folder.parent))


def map_array(path: Path, *, cure: str, follow_links: bool = False) -> NDArray[Any]:
    """Map a .npy file into memory, read-only; its header can neither run code nor take memory.

    Args:
        path: The file.
        cure: End of the error.
        follow_links: Whether the file may be a link, as in a user's own folder.

    Raises:
        DataError: The file is absent, no regular file, cut short, of Python objects, or no array.
    """
    opened = Path(os.path.realpath(path)) if follow_links else path
    try:
        with os.fdopen(open_regular(opened), "rb") as file, warnings.catch_warnings():
            # Files written by Python 2 are readable; numpy only asks for them to be rewritten.
            warnings.simplefilter("ignore", UserWarning)
            shape, fortran_order, dtype = _read_header(file)
            if dtype.hasobject or dtype.itemsize == 0:
                raise ValueError("found Python objects, or elements without bytes")
            order: Literal["F", "C"] = "F" if fortran_order else "C"
            return np.memmap(
                file, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order
            )
    except FileRefusedError as error:
        raise DataError(f"{path} {error.fault}") from error
    # What numpy's header parser raises on damaged input is an open set.
    except Exception as error:
        raise DataError(
            f"{path} is missing or is no whole array of plain numbers ({one_line(error)}); {cure}"
        ) from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read shape, whether the first index varies fastest, and element type of a .npy file."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # the third is for names of fields
        raise ValueError(f"version {version}")
    at = file.tell()
    # numpy reads a header of any length before it compares the length with its own bound.
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    file.seek(at)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def open_pack(folder: Path) -> Pack:
    """Open a pack: its manifest is validated and every file's type, shape and length compared.

    A pack that a killed process left between its old and its new version is put back first.

    Raises:
        DataError: No pack there, or a damaged one; names the file.
    """
    restore_replaced(folder)
    path = folder / MANIFEST
    try:
        manifest = read_json(path, Manifest, limit=_LARGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"no pack at {folder} ({MANIFEST} is missing); make it with: {_prepare_command(folder)}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except FileRefusedError as error:
        raise DataError(f"{error}; delete {folder} and prepare it again") from error
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
            with os.fdopen(open_regular(path), "rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            expected = pack.manifest.splits[split].files[field].sha256
            if actual != expected:
                raise DataError(
                    f"{path} was changed since it was written: its sha256 must be "
                    f"{expected[:12]}..., found {actual[:12]}...; {pack._cure()}"
                )
    return pack
