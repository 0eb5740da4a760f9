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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.array_file import map_array
from gatesearch.datasets.pack_manifest import (
    IMAGE,
    MANIFEST,
    PRESENCE,
    SPLITS,
    FieldEntry,
    FileEntry,
    Manifest,
    SplitName,
    read_manifest,
)
from gatesearch.datasets.scratch import restore_replaced
from gatesearch.errors import DataError, UsageError, shell_command, unknown
from gatesearch.files import FileRefusedError, open_regular


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


def open_pack(folder: Path) -> Pack:
    """Open a pack: its manifest is validated and every file's type, shape and length compared.

    A pack that a killed process left between its old and its new version is put back first.

    Raises:
        DataError: No pack there, or a damaged one; names the file.
    """
    restore_replaced(folder)
    path = folder / MANIFEST
    try:
        manifest = read_manifest(path)
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
