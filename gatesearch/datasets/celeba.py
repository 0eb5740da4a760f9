"""CelebA, aligned faces with forty attributes (Liu et al., ICCV 2015).

    img_align_celeba/000001.jpg ... (178 x 218), or img_align_celeba.zip of them
    list_attr_celeba.txt, the number of images, names, and a line `000001.jpg -1 1 ...` per image;
        or list_attr_celeba.csv, `image_id` and names, and a line `000001.jpg,-1,1 ...`
    list_eval_partition.txt or .csv, a line `000001.jpg 0` per image: 0 train, 1 validation, 2 test

These are looked for at the top of the source and up to two folders deep, so that all forms are read
in which the release circulates: the publisher's (Anno/, Eval/, Img/), that of torchvision (one
folder) and that of Kaggle (CSV).
"""

import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.frame_size import SizedFrames
from gatesearch.datasets.label_checks import GET_AGAIN, Array, read_photo
from gatesearch.datasets.pack_manifest import SplitName
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.release import (
    check_all_exist,
    folders_of,
    identity_of,
    notes_on_counts,
    open_release,
    printable,
    read_lines,
    unknown_layout,
    unpacked,
)
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError
from gatesearch.events import Emit
from gatesearch.files import MIB
from gatesearch.study import TaskSpec
from gatesearch.tasks import Task, build_task

FIELD = "attributes"
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup",
    "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns",
    "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
_IMAGES = "img_align_celeba"
_OFFICIAL: dict[SplitName, int] = {"train": 162_770, "test": 19_962, "validation": 19_867}
_PARTS: dict[str, SplitName] = {"0": "train", "1": "validation", "2": "test"}
_CODES = {"1": 1, "-1": 0, "0": 0}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.jpg")
_LARGEST_LIST = 64 * MIB  # that of the release takes 26


def read_attributes(path: Path) -> dict[str, bytes]:
    """Read the list of attributes, name of the image -> forty bytes 0 or 1 in the usual order.

    Raises:
        DataError: Another number of lines than the list says, other attributes, other values.
    """
    lines = read_lines(path, limit=_LARGEST_LIST)
    rows = [(number, _cells(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    count = None
    if rows and len(rows[0][1]) == 1 and rows[0][1][0].isdecimal():
        count = int(rows.pop(0)[1][0][:9])
    names = rows.pop(0)[1] if rows else []
    names = names[1:] if names and names[0] not in ATTRIBUTES else names
    if sorted(names) != sorted(ATTRIBUTES):
        lacking = [name for name in ATTRIBUTES if name not in names] or names
        _refuse(path, f"must name the {len(ATTRIBUTES)} attributes, {lacking[0]} is not once there")
    if count is not None and len(rows) != count:
        _refuse(path, f"must have a line for each of its {count} images, found {len(rows)}")
    order = [names.index(name) for name in ATTRIBUTES]
    attributes: dict[str, bytes] = {}
    for number, (name, *values) in rows:
        if len(values) != len(names):
            _refuse(path, f"line {number} must have {len(names)} values, found {len(values)}")
        try:
            codes = [_CODES[value] for value in values]
        except KeyError as error:
            _refuse(path, f"line {number} must have the values 1 and -1, found {error}")
        _check_name(name, attributes, path, number)
        attributes[name] = bytes(codes[column] for column in order)
    return attributes


def read_partition(path: Path) -> dict[str, SplitName]:
    """Read the official partition, name of the image -> its part.

    Raises:
        DataError: Lines that are none of it, or parts without images.
    """
    parts: dict[str, SplitName] = {}
    for number, line in enumerate(read_lines(path, limit=_LARGEST_LIST), start=1):
        cells = _cells(line)
        if not line.strip() or (number == 1 and cells[1:] == ["partition"]):
            continue
        if len(cells) != 2 or cells[1] not in _PARTS:
            _refuse(
                path, f"line {number} must be an image and 0, 1 or 2, found '{printable(line)}'"
            )
        _check_name(cells[0], parts, path, number)
        parts[cells[0]] = _PARTS[cells[1]]
    for code, part in _PARTS.items():
        if part != "validation" and part not in parts.values():
            _refuse(path, f"must have images of {part} ({code}), found none")
    return parts


def _cells(line: str) -> list[str]:
    for delimiter in (",", ";", "\t"):
        if delimiter in line:
            return [cell.strip().strip('"') for cell in line.split(delimiter)]
    return line.split()


def _check_name(name: str, known: Container[str], path: Path, number: int) -> None:
    if not _NAME.fullmatch(name):
        _refuse(path, f"line {number} must begin with a file, as 000001.jpg, found {name[:40]!a}")
    if name in known:
        _refuse(path, f"must list each image once, found {name} twice")


def _refuse(path: Path, fault: str) -> NoReturn:
    raise DataError(f"{path}: {fault}; {GET_AGAIN}")


def _find(root: Path, names: Sequence[str]) -> Path | None:
    """Find a file or folder of one of some names, up to two folders deep; the first name first."""
    folders = [root]
    for folder in folders_of(root)[1:]:
        folders += [folder] if folder.name == _IMAGES else folders_of(folder)
    places = [folder / name for name in names for folder in folders if folder.name != _IMAGES]
    return next((place for place in places if place.exists()), None)


def _find_list(root: Path, stem: str) -> Path:
    found = _find(root, (f"{stem}.txt", f"{stem}.csv"))
    if found is None:
        raise unknown_layout(
            root, dataset="celeba", title="CelebA", expected=f"{stem}.txt or {stem}.csv"
        )
    return found


@contextmanager
def _open_images(root: Path, *, folder: Path, emit: Emit) -> Iterator[Path]:
    """Give the folder of images; an archive of them is unpacked until the block ends."""
    found = _find(root, (_IMAGES, f"{_IMAGES}.zip"))
    if found is None:
        raise unknown_layout(
            root, dataset="celeba", title="CelebA", expected=f"{_IMAGES}/ or {_IMAGES}.zip"
        )
    if found.is_dir():
        yield _innermost(found)
    else:
        with unpacked(found, folder=folder, dataset="celeba", emit=emit) as images:
            yield _innermost(images)


def _innermost(images: Path) -> Path:
    """The folder of the images themselves: Kaggle's form has two of one name."""
    while (images / _IMAGES).is_dir():
        images = images / _IMAGES
    return images


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    with open_release(source, dataset="celeba", folder=folder, request=request, emit=emit) as root:
        attributes_file = _find_list(root, "list_attr_celeba")
        partition_file = _find_list(root, "list_eval_partition")
        attributes, parts = read_attributes(attributes_file), read_partition(partition_file)
        for one, other, where in (
            (attributes, parts, partition_file),
            (parts, attributes, attributes_file),
        ):
            lacking = [name for name in one if name not in other]
            if lacking:
                more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
                _refuse(where, f"must list the images of the other list, lacks {lacking[0]}{more}")
        with _open_images(root, folder=folder, emit=emit) as images:
            check_all_exist(images / name for name in parts)
            return _write(
                images, attributes, parts, folder, request, emit,
                lists=(attributes_file, partition_file),
            )  # fmt: skip


def _write(
    images: Path,
    attributes: dict[str, bytes],
    parts: dict[str, SplitName],
    folder: Path,
    request: PackRequest,
    emit: Emit,
    *,
    lists: tuple[Path, ...],
) -> Path:
    """Write the pack of the images in a folder, whose lists were read from files."""
    ids: dict[SplitName, Sequence[str]] = {
        part: tuple(name for name, its in parts.items() if its == part) for part in _OFFICIAL
    }
    ids["train"] = spread_evenly(ids["train"], request.train_frames)
    ids["test"] = spread_evenly(ids["test"], request.test_frames)
    first = ids["train"][0]
    height, width = read_photo(images / first).shape[:2]
    tasks = _tasks()

    def frames(names: Sequence[str]) -> SizedFrames:
        read = _FrameReader(images, tuple(names), tuple(attributes[name] for name in names))
        size = (first, (height, width))
        return SizedFrames(read, names, request.size, size, tasks, where="celeba")

    return write_pack(
        folder / "celeba-aligned",
        dataset="celeba",
        size=request.size or (height, width),
        fields=tasks,
        splits={
            part: SplitFrames([name.removesuffix(".jpg") for name in names], frames(names))
            for part, names in ids.items()
            if names
        },
        source="CelebA, aligned and cropped images",
        notes=notes_on_counts({part: len(names) for part, names in ids.items()}, _OFFICIAL),
        identity=identity_of(*lists, *(images / name for names in ids.values() for name in names)),
        emit=emit,
    )


@dataclass(frozen=True)
class _FrameReader:
    """Reads images of a split, whose attributes were read before.

    Attributes:
        images: Their folder.
        names: Their files.
        attributes: A byte per attribute for each of them.
    """

    images: Path
    names: tuple[str, ...]
    attributes: tuple[bytes, ...]

    def __call__(self, index: int) -> dict[str, Array]:
        """Read the frame of a number."""
        labels = np.frombuffer(bytearray(self.attributes[index]), np.uint8)
        return {"image": read_photo(self.images / self.names[index]), FIELD: labels}


def _tasks() -> dict[str, Task]:
    return {FIELD: build_task("attributes", {"names": ATTRIBUTES}, where="celeba")}


def _field_of(name: str, spec: TaskSpec) -> str:
    """The attributes that a task names are its columns; a task without names has all forty."""
    label, names = spec.label or FIELD, spec.further.get("names", ())
    return f"{label}:{','.join(map(str, names))}" if names and ":" not in label else label


def _info() -> str:
    train, validation, test = (_OFFICIAL[part] for part in ("train", "validation", "test"))
    return f"""celeba: CelebA, aligned faces with forty attributes, for non-commercial research
      (Liu, Luo, Wang, Tang, ICCV 2015).

Frames   {train} to train, {validation} for validation, {test} to test
         (the official partition; set data.validation = 0)
Labels   {FIELD} (40, present or not); a task has those that it names:
         names = ["Smiling", "Male"], or all
Layouts  read from a folder or a .zip, .tar, .tgz or .tar.gz of it, up to two folders deep:
         img_align_celeba/ or img_align_celeba.zip, list_attr_celeba.txt or .csv,
         list_eval_partition.txt or .csv                                     -> pack celeba-aligned
Get it   linked from mmlab.ie.cuhk.edu.hk/projects/CelebA.html
Command  gatesearch data prepare celeba --source PATH --data DIR --size 64 64
         (at 64x64 2.5 GB, at the 218x178 of the release 24 GB)"""


DATASET = Dataset(
    name="celeba",
    summary="CelebA, 162,770 + 19,867 + 19,962 aligned faces: forty attributes, in any groups",
    automatic=False,
    info=_info,
    pack_name=lambda request: "celeba-aligned",
    prepare=_prepare,
    field_of=_field_of,
)
