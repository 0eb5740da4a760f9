"""The pack: what every data set becomes before training reads it.

A pack is a folder of plain NumPy files and a manifest:

    <pack>/manifest.json             checked sums, sizes, classes, ids, notes
    <pack>/{train,test}/FIELD.npy    one array per field, frames first, read by memory map

A field is the image, or the labels of one task. A pack may also have a validation part. A field of
named values per frame can be read in part: `attributes:Smiling,Male` are two columns of the field
`attributes`, in this order.
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
from pydantic import BaseModel, Field, ValidationError, model_validator

from gatesearch.datasets.scratch import restore_replaced
from gatesearch.errors import DataError, UsageError, one_line, shell_command, unknown
from gatesearch.files import (
    MIB,
    FileRefusedError,
    first_fault,
    open_regular,
    parse_json,
    read_bytes,
)
from gatesearch.strict import Strict
from gatesearch.tasks.labels import IGNORE, MOST_CLASSES, Storage

SplitName = Literal["train", "test", "validation"]
Frame = Mapping[str, NDArray[Any]]  # field -> one frame's values, as `Storage.shape` says

# Every pack has the first two.
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
IMAGE = "image"
MANIFEST = "manifest.json"
# Which frames have labels of each field: bool (frames, fields of labels in their order). Its name
# can be that of no field.
PRESENCE = ".labelled"

IMAGE_STORAGE = Storage("|u1", (3,))
_PRESENCE_TYPE = "|b1"

_LARGEST_MANIFEST = 256 * MIB  # of a million frames: about 40 MiB

_LONGEST_ID = 1000
# Bytes of the header of a .npy file up to its length; numpy itself writes about 120 in all.
_LONGEST_HEADER = 10_000
# Element types of fields, and how many values a pixel or frame may have.
_TYPES = ("|u1", "|b1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")
_MOST_VALUES = 2**16
# Fields of packs of format 1.
_FirstField = Annotated[str, Field(pattern="^(image|semseg|depth|normals|edges|saliency)$")]
_FIRST_STORAGE = {
    "image": IMAGE_STORAGE,
    "semseg": Storage("|u1"),
    "depth": Storage("<f4"),
    "normals": Storage("<f2", (3,)),
    "edges": Storage("|u1"),
    "saliency": Storage("|u1"),
}

# A field is a file, and its name is that of a task.
FieldName = Annotated[str, Field(pattern=r"^[\w -]{1,100}$")]


class FieldEntry(Strict):
    """What a field holds.

    Attributes:
        kind: Kind of task that its labels are for; empty for the image.
        dtype: Element type.
        shape: Shape of the values of a pixel, or of a frame if the field is not dense.
        dense: Whether it has values per pixel.
        classes: Number of classes; 1 for a kind without classes.
        class_names: Their names, or those of the values of a frame; empty where none are known.
    """

    kind: str
    dtype: Literal[_TYPES]  # type: ignore[valid-type]
    shape: tuple[Annotated[int, Field(ge=1, le=_MOST_VALUES)], ...] = Field(max_length=3)
    dense: bool = True
    classes: int = Field(default=1, ge=1, le=MOST_CLASSES)
    class_names: tuple[str, ...] = ()

    @property
    def storage(self) -> Storage:
        """Element type and shape."""
        return Storage(self.dtype, self.shape, self.dense)


class FileEntry(Strict):
    """One array file: SHA-256 of all its bytes, element type and shape."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dtype: str
    shape: tuple[int, ...]


class SplitEntry(Strict):
    """One split.

    Attributes:
        frames: Number of its frames.
        ids: Their ids, in the order of the arrays.
        files: Field -> its file.
        labelled: Field of labels -> number of frames that have any.
        presence: File that says which frames these are; None if all frames have all labels.
    """

    frames: int = Field(ge=1)
    ids: tuple[Annotated[str, Field(max_length=_LONGEST_ID)], ...]
    files: dict[FieldName, FileEntry] = Field(min_length=1)
    labelled: dict[FieldName, Annotated[int, Field(ge=0)]] = Field(default={})
    presence: FileEntry | None = None


class Manifest(Strict):
    """What `manifest.json` holds.

    Files are found by split and field, whose names are checked, so that no name in a manifest can
    act as a path.

    Attributes:
        size: Height and width of every frame, in pixels.
        fields: Field -> what it holds, `image` first.
        source: Where the frames came from.
        origin: Digest of the files that the pack was made from; empty where none was taken.
        notes: What a reader of figures made on this pack should know.
    """

    format: Literal[2] = 2
    dataset: str
    pack: str
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    fields: dict[FieldName, FieldEntry]
    splits: dict[SplitName, SplitEntry]
    source: str
    origin: str = ""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if not {"train", "test"} <= set(self.splits):
            raise ValueError(f"splits must have train and test, found {tuple(self.splits)}")
        if self.fields.get(IMAGE, _NO_FIELD).storage != IMAGE_STORAGE:
            raise ValueError(f"fields must have {IMAGE}, of three bytes per pixel")
        for name, split in self.splits.items():
            self._check_split(name, split)
        return self

    def _check_split(self, name: str, split: SplitEntry) -> None:
        if set(split.files) != set(self.fields):
            raise ValueError(f"{name} must have the fields {tuple(self.fields)}")
        if len(split.ids) != split.frames:
            raise ValueError(f"{name} has {split.frames} frames but {len(split.ids)} ids")
        expected = {
            field: (entry.dtype, (split.frames, *entry.storage.shape(self.size)))
            for field, entry in self.fields.items()
        }
        files = dict(split.files)
        if split.presence is not None:
            expected[PRESENCE] = (_PRESENCE_TYPE, (split.frames, len(self.fields) - 1))
            files[PRESENCE] = split.presence
        for field, entry in files.items():
            if (entry.dtype, entry.shape) != expected[field]:
                raise ValueError(
                    f"{name}/{field} must be {expected[field]}, found {(entry.dtype, entry.shape)}"
                )


_NO_FIELD = FieldEntry(kind="", dtype="|b1", shape=())


class _FirstSplit(Strict):
    """A split of format 1."""

    frames: int = Field(ge=1)
    ids: tuple[Annotated[str, Field(max_length=_LONGEST_ID)], ...]
    files: dict[_FirstField, FileEntry] = Field(min_length=1)


class _FirstManifest(Strict):
    """The manifest of a pack of gatesearch 0.1.0, whose fields are named after their kinds."""

    format: Literal[1]
    dataset: str
    pack: str
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    classes: dict[_FirstField, Annotated[int, Field(ge=1, le=IGNORE)]]
    splits: dict[Literal["train", "test"], _FirstSplit]
    source: str
    notes: tuple[str, ...] = ()

    def in_present_form(self) -> Manifest:
        """Describe the same pack as a present one.

        Raises:
            ValidationError: It contradicts itself.
        """
        fields = self.splits["train"].files if "train" in self.splits else ()
        return Manifest(
            dataset=self.dataset,
            pack=self.pack,
            size=self.size,
            fields={
                field: FieldEntry(
                    kind="" if field == IMAGE else field,
                    dtype=_FIRST_STORAGE[field].dtype,
                    shape=_FIRST_STORAGE[field].channels,
                    classes=self.classes.get(field, 1),
                )
                for field in fields
            },
            splits={
                split: SplitEntry(frames=entry.frames, ids=entry.ids, files=entry.files)
                for split, entry in self.splits.items()
            },
            source=self.source,
            notes=self.notes,
        )


class _AnyManifest(BaseModel):
    """The version of a manifest, whatever else it holds."""

    format: Literal[1, 2]


def _read_manifest(path: Path) -> Manifest:
    """Read a manifest of either format.

    Raises:
        FileRefusedError: It is damaged.
        OSError: It cannot be read.
    """
    data = read_bytes(path, limit=_LARGEST_MANIFEST)
    if parse_json(data, _AnyManifest, path).format == 2:
        return parse_json(data, Manifest, path)
    first = parse_json(data, _FirstManifest, path)
    try:
        return first.in_present_form()
    except ValidationError as error:
        raise FileRefusedError(path, f"is damaged: {first_fault(error)}") from error


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
    def fields(self) -> dict[str, FieldEntry]:
        """Field -> what it holds: `image` first, then labels."""
        return self.manifest.fields

    @property
    def label_fields(self) -> list[str]:
        """Names of the fields of labels, in their order."""
        return [field for field in self.fields if field != IMAGE]

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Splits that the pack has: train, test, and perhaps validation."""
        return tuple(split for split in SPLITS if split in self.manifest.splits)

    @property
    def digest(self) -> str:
        """SHA-256 over the sums of all files: equal digests mean equal frames."""
        sums = [
            f"{split}/{field} {entry.sha256}\n"
            for split, part in sorted(self.manifest.splits.items())
            for field, entry in sorted(part.files.items())
        ]
        sums += [
            f"{split}/{PRESENCE} {part.presence.sha256}\n"
            for split, part in sorted(self.manifest.splits.items())
            if part.presence is not None
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

    def entry(self, field: str) -> FieldEntry:
        """Say what a field holds, or the columns `FIELD:NAME,NAME` of one.

        Raises:
            UsageError: The field has no such columns.
        """
        name, columns = self._columns(field)
        entry = self.fields[name]
        if columns is None:
            return entry
        return entry.model_copy(
            update={
                "shape": (len(columns),),
                "class_names": tuple(entry.class_names[column] for column in columns),
            }
        )

    def _columns(self, field: str) -> tuple[str, list[int] | None]:
        """Name of a field, and which of its columns are meant; None for all."""
        name, colon, listed = field.partition(":")
        if not colon:
            return name, None
        known, chosen = self.fields[name].class_names, listed.split(",")
        if self.fields[name].dense or not known:
            raise UsageError(f"{self.name}: {name} has no named columns, found '{field}'")
        for column in chosen:
            if column not in known:
                raise unknown(f"column of {name} in {self.name}", column, known)
        if len(set(chosen)) < len(chosen):
            raise UsageError(f"columns of {name} must be named once each, found '{listed}'")
        return name, [known.index(column) for column in chosen]

    def array(self, split: SplitName, field: str) -> NDArray[Any]:
        """Read-only memory map of a field, frames first; a copy of the columns of one.

        Raises:
            DataError: The file is absent, cut short, or not of the type and shape promised.
        """
        field, columns = self._columns(field)
        array = self._whole_array(split, field)
        return array if columns is None else np.ascontiguousarray(array[:, columns])

    def _whole_array(self, split: SplitName, field: str) -> NDArray[Any]:
        path = self.path(split, field)
        entry = self.files(split)[field]
        array = map_array(path, cure=self._cure())
        dtype, shape = array.dtype.str, array.shape
        if (dtype, shape) != (entry.dtype, entry.shape):
            raise DataError(
                f"{path} must hold {entry.dtype} {entry.shape} as its manifest says, "
                f"found {dtype} {shape}; {self._cure()}"
            )
        return array

    def files(self, split: SplitName) -> dict[str, FileEntry]:
        """Files of a split: field -> file, and `PRESENCE` if some frames lack labels."""
        entry = self.manifest.splits[split]
        presence = {} if entry.presence is None else {PRESENCE: entry.presence}
        return {**entry.files, **presence}

    def labelled(self, split: SplitName, field: str) -> NDArray[np.bool_] | None:
        """Which frames of a split have labels of a field, (frames,); None if all frames have all.

        Frames that have labels in any column of a field count for all columns of it.

        Raises:
            DataError: The file that says so is damaged.
        """
        if self.manifest.splits[split].presence is None:
            return None
        column = self.label_fields.index(self._columns(field)[0])
        return np.array(self.array(split, PRESENCE)[:, column])

    def _cure(self) -> str:
        # The pack of a folder is made by the file of a study, which may have any name.
        name = "STUDY.toml" if self.manifest.dataset == "folder" else self.manifest.dataset
        return f"delete {self.folder} and run: {_prepare_command(self.folder, name)}"


def _prepare_command(folder: Path, name: str = "") -> str:
    """Spell the command that makes a pack.

    Args:
        folder: The pack's folder.
        name: What is prepared; by default the data set with whose name the pack's name begins.
    """
    name = name or folder.name.partition("-")[0]
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
        manifest = _read_manifest(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"no pack at {folder} ({MANIFEST} is missing); make it with: {_prepare_command(folder)}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except FileRefusedError as error:
        raise DataError(f"{error}; delete {folder} and prepare it again") from error
    pack = Pack(folder=folder, manifest=manifest)
    for split in pack.splits:
        for field in pack.files(split):
            pack.array(split, field)
    return pack


def check_pack(folder: Path) -> Pack:
    """Open a pack and compare the sum of every file with the manifest's.

    Raises:
        DataError: Naming the first file that differs.
    """
    pack = open_pack(folder)
    for split in pack.splits:
        for field, entry in pack.files(split).items():
            path = pack.path(split, field)
            with os.fdopen(open_regular(path), "rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            expected = entry.sha256
            if actual != expected:
                raise DataError(
                    f"{path} was changed since it was written: its sha256 must be "
                    f"{expected[:12]}..., found {actual[:12]}...; {pack._cure()}"
                )
    return pack
