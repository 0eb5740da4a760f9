"""UTKFace, aligned faces with age, gender and race in the file's name (Zhang, Song, Qi, CVPR 2017).

    AGE_GENDER_RACE_DATE.jpg.chip.jpg (200 x 200); AGE in years, GENDER 0 male or 1 female,
    RACE 0 White, 1 Black, 2 Asian, 3 Indian, 4 other

Three names of the release lack one of the two classes (`61_1_20170109142408075.jpg.chip.jpg`), and
do not say which: these faces have an age only. The files may lie up to two folders deep. There is
no official split: whether a face is in the test part follows from its name alone, so that it is the
same for every copy of the release.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.frame_size import SizedFrames
from gatesearch.datasets.label_checks import Array, read_photo
from gatesearch.datasets.pack_manifest import SplitName
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.release import (
    folders_of,
    identity_of,
    open_release,
    printable,
    unknown_layout,
)
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError
from gatesearch.events import Emit
from gatesearch.tasks import Task, build_task, named_classes

_FACES = 23_708  # of the release
_TEST_SHARE = 5  # one face in so many
_SEED = 0
_GENDERS = ("male", "female")
_RACES = ("White", "Black", "Asian", "Indian", "other")
_OLDEST = 130
_SUFFIXES = (".jpg", ".jpeg", ".png")
# Spaces and points before the suffix differ between copies.
_NAME = re.compile(
    r"(\d{1,3})_([01])_(?:([0-4])_)?(\d{8,20})[ .]*(?:jpg)?(?:\.chip)?(?:\.\w+)?", re.ASCII
)


def labels_of(name: str) -> dict[str, str] | None:
    """Read the labels in a file's name, as cells of a table; an empty one where there is none.

    Returns:
        `age`, `gender` and `race`; None for a name of another form.

    >>> labels_of("100_1_2_20170112213615815.jpg.chip.jpg")
    {'age': '100', 'gender': '1', 'race': '2'}
    >>> labels_of("61_1_20170109142408075.jpg.chip.jpg")
    {'age': '61', 'gender': '', 'race': ''}
    """
    found = _NAME.fullmatch(name)
    if found is None or int(found[1]) > _OLDEST:
        return None
    if found[3] is None:
        return {"age": found[1], "gender": "", "race": ""}
    return {"age": found[1], "gender": found[2], "race": found[3]}


def is_test(name: str) -> bool:
    """Whether a face is in the test part, which a hash of the numbers in its name decides."""
    found = _NAME.fullmatch(name)
    numbers = "_".join(found.groups(default="")) if found else name
    return hashlib.sha256(f"{_SEED}/{numbers}".encode()).digest()[0] * _TEST_SHARE < 256


def _find_faces(root: Path) -> dict[str, Path]:
    """Find the folder with the most faces, up to two folders deep; name -> file, in order.

    Raises:
        DataError: There is none, or an image in it is named in another way.
    """
    folders = [inner for folder in folders_of(root)[1:] for inner in folders_of(folder)]
    best: list[Path] = []
    for folder in [root, *folders]:
        images = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES]
        if sum(labels_of(path.name) is not None for path in images) > len(best):
            best = images
    if not best:
        raise unknown_layout(
            root, dataset="utkface", title="UTKFace", expected="AGE_GENDER_RACE_DATE.jpg.chip.jpg"
        )
    odd = sorted(path.name for path in best if labels_of(path.name) is None)
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(
            f"{best[0].parent}: images must be named AGE_GENDER_RACE_DATE, found "
            f"'{printable(odd[0])}'{more}; rename or remove them"
        )
    return {path.name: path for path in sorted(best)}


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    with open_release(source, dataset="utkface", folder=folder, request=request, emit=emit) as root:
        return _write(_find_faces(root), folder, request, emit)


def _write(faces: dict[str, Path], folder: Path, request: PackRequest, emit: Emit) -> Path:
    """Write the pack of faces, name -> file."""
    ids: dict[SplitName, Sequence[str]] = {
        "train": tuple(name for name in faces if not is_test(name)),
        "test": tuple(name for name in faces if is_test(name)),
    }
    for part, names in ids.items():
        if not names:
            raise DataError(
                f"{next(iter(faces.values())).parent}: there must be faces for both parts, found "
                f"{len(faces)} in all and none for {part}; get the release again"
            )
    notes = ["split by a hash of the files' names; UTKFace has no official one"]
    if len(faces) != _FACES:
        notes.append(f"{len(faces)} of the {_FACES} faces of the release")
    ids["train"] = spread_evenly(ids["train"], request.train_frames)
    ids["test"] = spread_evenly(ids["test"], request.test_frames)
    first = ids["train"][0]
    height, width = read_photo(faces[first]).shape[:2]
    tasks = _tasks()

    def frames(names: Sequence[str]) -> SizedFrames:
        read = partial(_read, [faces[name] for name in names], tasks)
        size = (first, (height, width))
        return SizedFrames(read, names, request.size, size, tasks, where="utkface")

    return write_pack(
        folder / "utkface-aligned",
        dataset="utkface",
        size=request.size or (height, width),
        fields=tasks,
        splits={part: SplitFrames(names, frames(names)) for part, names in ids.items()},
        source="UTKFace, aligned and cropped images",
        notes=notes,
        identity=identity_of(*(faces[name] for names in ids.values() for name in names)),
        emit=emit,
    )


def _read(paths: Sequence[Path], tasks: dict[str, Task], index: int) -> dict[str, Array]:
    path = paths[index]
    cells = labels_of(path.name) or {}
    labels = {field: task.encode(np.array([cells[field]])) for field, task in tasks.items()}
    return {"image": read_photo(path), **labels}


def _tasks() -> dict[str, Task]:
    options: dict[str, tuple[str, dict[str, Any]]] = {
        "age": ("regression", {"unit": "years"}),
        "gender": ("classification", named_classes(_GENDERS)),
        "race": ("classification", named_classes(_RACES)),
    }
    return {
        field: build_task(kind, given, where="utkface") for field, (kind, given) in options.items()
    }


def _info() -> str:
    return f"""utkface: UTKFace, aligned faces of all ages, for non-commercial research
      (Zhang, Song, Qi, CVPR 2017).

Frames   {_FACES} in all; one in {_TEST_SHARE} to test, chosen by a hash of its name (there is no
         official split)
Labels   age (years), gender (2 classes), race (5 classes); three faces have an age only
Layout   read from a folder or a .tgz, .tar.gz, .tar or .zip of it, up to two folders deep:
         AGE_GENDER_RACE_DATE.jpg.chip.jpg                                  -> pack utkface-aligned
Get it   linked from susanqq.github.io/UTKFace (aligned and cropped faces)
Command  gatesearch data prepare utkface --source PATH --data DIR --size 64 64
         (at 64x64 0.3 GB, at the 200x200 of the release 2.9 GB)"""


DATASET = Dataset(
    name="utkface",
    summary="UTKFace, 23,708 aligned faces: age (years), gender (2), race (5)",
    automatic=False,
    info=_info,
    pack_name=lambda request: "utkface-aligned",
    prepare=_prepare,
    class_names={("gender", len(_GENDERS)): _GENDERS, ("race", len(_RACES)): _RACES},
)
