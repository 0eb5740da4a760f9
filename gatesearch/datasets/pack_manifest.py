"""The manifest of a pack: what `manifest.json` holds, and the names of fields and splits.

Manifests of gatesearch 0.1.0, of format 1, are read too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from gatesearch.files import MIB, FileRefusedError, first_fault, parse_json, read_bytes
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


def read_manifest(path: Path) -> Manifest:
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
