"""PASCAL-Context for five tasks, from the tree of multi-task code (`PASCAL_MT`).

    ImageSets/Context/{train,val}.txt  JPEGImages/ID.jpg
    semseg/VOC12/ID.png, or semseg/pascal-context/ID.png (0 background, 1..20, 255 ignore)
    human_parts/ID.mat (objects with masks of their parts)
    pascal-context/trainval/ID.mat (LabelMap, of which edges are made)
    normals_distill/ID.png (0..255 for -1..1)  sal_distill/ID.png (0..255)

Sources: the images and classes are those of PASCAL VOC 2010 (Everingham et al.), labels of all
pixels by Mottaghi et al. (CVPR 2014), parts by Chen et al. (CVPR 2014); normals and saliency are
predictions of networks (Maninis et al., CVPR 2019). Every label is made as the survey code makes it
(Vandenhende et al., 2021, `data/pascal_context.py`); docs/how-to/pascal.md says where we differ.

The source may be a folder or an archive, and may hold the tree one folder deep. The official
validation part becomes the pack's `test`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.edges import laplacian_edges
from gatesearch.datasets.frame_journal import Facts
from gatesearch.datasets.frame_size import resize_field, resize_frame
from gatesearch.datasets.label_checks import (
    GET_AGAIN,
    Array,
    encode_label,
    read_label_map,
    read_photo,
    to_normals,
)
from gatesearch.datasets.mat_file import Value, read_mat
from gatesearch.datasets.pack_manifest import Frame, SplitName
from gatesearch.datasets.pack_writer import NotedFrame, SplitFrames, write_pack
from gatesearch.datasets.release import (
    check_all_exist,
    check_disjoint,
    folders_of,
    identity_of,
    notes_on_counts,
    open_release,
    printable,
    read_ids,
    unknown_layout,
)
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError
from gatesearch.events import Emit
from gatesearch.tasks import Task, build_task, named_classes
from gatesearch.tasks.labels import IGNORE

SIZE = (512, 512)
_OFFICIAL: dict[SplitName, int] = {"train": 4998, "test": 5105}
_LISTS: dict[SplitName, str] = {"train": "train.txt", "test": "val.txt"}
_PERSON = 15  # class of persons in PASCAL VOC
_HALF = 127  # saliency above this counts

_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "TV monitor",
)  # fmt: skip
# Part of a person -> names of the pieces that are annotated.
_PIECES = {
    "head": ("hair", "head", "lear", "lebrow", "leye", "mouth", "nose", "rear", "rebrow", "reye"),
    "torso": ("neck", "torso"),
    "upper arms": ("luarm", "ruarm"),
    "lower arms": ("lhand", "llarm", "rhand", "rlarm"),
    "upper legs": ("luleg", "ruleg"),
    "lower legs": ("lfoot", "llleg", "rfoot", "rlleg"),
}
_PARTS = ("background", *_PIECES)
_PART_OF = {
    piece: part for part, pieces in enumerate(_PIECES.values(), start=1) for piece in pieces
}
# Classes of the LabelMap on which normals are known: those whose names are also among the classes
# of NYUD, on which the network was trained that predicted them, and TV monitors.
_WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50,
    51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104,
    105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172,
    174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230,
    232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281,
    283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323,
    329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432,
    440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip


def _tasks() -> dict[str, Task]:
    """Tasks whose labels a pack holds, by field, which is also their kind."""
    named = {"semseg": _CLASSES, "parts": _PARTS}
    return {
        kind: build_task(kind, named_classes(named.get(kind, ())), where="pascal")
        for kind in ("semseg", "parts", "normals", "saliency", "edges")
    }


def _find_tree(root: Path) -> Path:
    """Find the tree in a folder, at the top or one folder deep.

    Raises:
        DataError: There is none.
    """
    for folder in folders_of(root):
        if (folder / "ImageSets" / "Context").is_dir():
            return folder
    raise unknown_layout(
        root, dataset="pascal", title="PASCAL_MT", expected="ImageSets/Context/ beside JPEGImages/"
    )


def _files(tree: Path, frame: str) -> dict[str, Path]:
    of_voc = tree / "semseg" / "VOC12" / f"{frame}.png"
    of_context = tree / "semseg" / "pascal-context" / f"{frame}.png"
    return {
        "image": tree / "JPEGImages" / f"{frame}.jpg",
        "semseg": of_voc if of_voc.exists() else of_context,
        "parts": tree / "human_parts" / f"{frame}.mat",
        "normals": tree / "normals_distill" / f"{frame}.png",
        "saliency": tree / "sal_distill" / f"{frame}.png",
        "edges": tree / "pascal-context" / "trainval" / f"{frame}.mat",
    }


def _official_ids(tree: Path) -> dict[SplitName, tuple[str, ...]]:
    """Read the official lists, and see that every listed frame has all its files.

    Raises:
        DataError: A list or a file is missing, or a frame is in both lists.
    """
    lists = tree / "ImageSets" / "Context"
    ids = {split: read_ids(lists / name) for split, name in _LISTS.items()}
    where = f"{lists}: no frame may be in train.txt and val.txt"
    check_disjoint(ids["train"], ids["test"], where=where)
    check_all_exist(
        path for frames in ids.values() for frame in frames for path in _files(tree, frame).values()
    )
    return ids


def _read(tree: Path, frame: str, tasks: dict[str, Task]) -> tuple[Frame, list[str]]:
    """Read a frame at the size of its image, and name the labels that had another size."""
    paths = _files(tree, frame)
    image = read_photo(paths["image"])
    size = (image.shape[0], image.shape[1])
    context = _label_map(paths["edges"])
    raw = {
        "semseg": read_label_map(paths["semseg"]),
        "parts": _human_parts(paths["parts"], size),
        "saliency": _halved(read_label_map(paths["saliency"]), paths["saliency"]),
        "edges": laplacian_edges(context),
    }
    labels = {field: encode_label(tasks[field], raw[field], paths[field]) for field in raw}
    labels["normals"] = _normals(paths["normals"], context)
    odd = [field for field in tasks if labels[field].shape[:2] != size]
    for field in odd:
        labels[field] = resize_field(tasks[field], labels[field], size)
    return {"image": image, **{field: labels[field] for field in tasks}}, odd


def _label_map(path: Path) -> Array:
    """Classes of all pixels, (H, W) int64."""
    labels = read_mat(path).get("LabelMap")
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.size == 0:
        raise DataError(f"{path} must hold a LabelMap of shape (H, W); {GET_AGAIN}")
    if not ((labels >= 0) & (labels <= IGNORE**2) & (labels == np.round(labels))).all():
        raise DataError(f"{path}: LabelMap must hold whole numbers from 0; {GET_AGAIN}")
    return labels.astype(np.int64)


def _halved(saliency: Array, path: Path) -> Array:
    """1 where saliency of 0..255 is above a half, else 0."""
    if saliency.max(initial=0) > 255:
        raise DataError(f"{path} must hold 0..255, found {saliency.max()}; {GET_AGAIN}")
    return (saliency > _HALF).astype(np.uint8)


def _normals(path: Path, context: Array) -> Array:
    """Unit vectors, zero on classes without normals."""
    vectors = to_normals(read_photo(path).astype(np.float32) * np.float32(2 / 255) - 1, path)
    if vectors.shape[:2] != context.shape:
        raise DataError(
            f"{path} must be as large as the LabelMap, {context.shape[0]} x {context.shape[1]}, "
            f"found {vectors.shape[0]} x {vectors.shape[1]}; {GET_AGAIN}"
        )
    known = np.isin(context, _WITH_NORMALS)
    return np.where(known[..., None], vectors, np.float32(0))


def _human_parts(path: Path, size: tuple[int, int]) -> Array:
    """Parts of all persons, later ones before earlier ones; 0 everywhere else.

    An image without a person whose parts are annotated is 0 everywhere; its size is then `size`.
    """
    parts: Array | None = None
    for person in _persons(path):
        if parts is None:
            parts = np.zeros(_mask(person, path).shape, np.uint8)
        for piece in person["parts"]:
            name, mask = piece.get("part_name"), _mask(piece, path)
            if name not in _PART_OF:
                shown = printable(str(name))
                raise DataError(f"{path}: unknown part of a person '{shown}'; {GET_AGAIN}")
            if mask.shape != parts.shape:
                raise DataError(
                    f"{path}: all masks must have one size, found {parts.shape} and {mask.shape}; "
                    f"{GET_AGAIN}"
                )
            parts[mask] = _PART_OF[name]
    return np.zeros(size, np.uint8) if parts is None else parts


def _persons(path: Path) -> Iterator[dict[str, Any]]:
    """The annotated persons of an image that have parts."""
    annotations = _structures(read_mat(path).get("anno"))
    if len(annotations) != 1 or "objects" not in annotations[0]:
        raise DataError(f"{path} must hold one structure anno with objects; {GET_AGAIN}")
    for annotated in _structures(annotations[0]["objects"]):
        kind, parts = annotated.get("class_ind"), _structures(annotated.get("parts"))
        if not isinstance(kind, np.ndarray) or kind.size != 1:
            raise DataError(f"{path}: every object must have one class_ind; {GET_AGAIN}")
        if kind.item() == _PERSON and parts:
            yield {**annotated, "parts": parts}


def _structures(value: Value | None) -> list[dict[str, Any]]:
    """The structures of an array of them; none for anything else, as MATLAB's []."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _mask(annotated: dict[str, Any], path: Path) -> Array:
    mask = annotated.get("mask")
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.size == 0:
        raise DataError(f"{path}: every mask must have the shape (H, W); {GET_AGAIN}")
    return np.asarray(mask != 0)


def _read_noted(tree: Path, ids: Sequence[str], size: tuple[int, int], index: int) -> NotedFrame:
    """Read the frame of a number, and note the fields that had another size than the image."""
    tasks = _tasks()
    frame, odd = _read(tree, ids[index], tasks)
    return NotedFrame(resize_frame(frame, size, tasks), dict.fromkeys(odd, True))


def _summarise(facts: Sequence[Facts], *, split: SplitName) -> list[str]:
    """Count the frames of a split whose fields had another size than the image."""
    resized = Counter(field for of_frame in facts for field in of_frame)
    return [
        f"{split}: {field} had another size than the image in {count} frames"
        for field, count in resized.items()
    ]


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    with open_release(source, dataset="pascal", folder=folder, request=request, emit=emit) as root:
        return _write(_find_tree(root), folder, request, emit)


def _write(tree: Path, folder: Path, request: PackRequest, emit: Emit) -> Path:
    """Write the pack of a tree."""
    size = request.size or SIZE
    official = _official_ids(tree)
    ids: dict[SplitName, Sequence[str]] = {
        "train": spread_evenly(official["train"], request.train_frames),
        "test": spread_evenly(official["test"], request.test_frames),
    }
    notes = notes_on_counts({split: len(frames) for split, frames in ids.items()}, _OFFICIAL)
    return write_pack(
        folder / "pascal-context",
        dataset="pascal",
        size=size,
        fields=_tasks(),
        splits={
            split: SplitFrames(
                ids=ids[split],
                frames=partial(_read_noted, tree, ids[split], size),
                summarise=partial(_summarise, split=split),
            )
            for split in ids
        },
        source="PASCAL-Context, tree PASCAL_MT",
        notes=notes,
        identity=identity_of(*(path for path in sorted(tree.rglob("*")) if path.is_file())),
        emit=emit,
    )


def _info() -> str:
    return f"""pascal: PASCAL-Context with labels of five tasks, for research.

Frames   {_OFFICIAL["train"]} to train, {_OFFICIAL["test"]} to test (the official lists)
Labels   semseg (21 classes), parts (6 parts of persons and background; only where a person is
         annotated), normals and saliency (predictions of networks), edges (of 459 classes)
Layout   read from a folder or a .tgz, .tar.gz, .tar or .zip of it:
         JPEGImages/ID.jpg  semseg/{{VOC12,pascal-context}}/ID.png  human_parts/ID.mat
         normals_distill/ID.png  sal_distill/ID.png  pascal-context/trainval/ID.mat
         ImageSets/Context/{{train,val}}.txt                               -> pack pascal-context
Get it   PASCAL_MT.tgz, whose address is in data/pascal_context.py of
         github.com/SimonVandenhende/Multi-Task-Learning-PyTorch; docs/how-to/pascal.md has more
Command  gatesearch data prepare pascal --source PATH --data DIR
         (images differ in size; all are stretched to {SIZE[0]}x{SIZE[1]}, as the survey code
         does, or to --size H W; a pack of {SIZE[0]}x{SIZE[1]} takes 34 GB)"""


DATASET = Dataset(
    name="pascal",
    summary="PASCAL-Context, 4,998 + 5,105 frames: semseg, parts, normals, saliency, edges",
    automatic=False,
    info=_info,
    pack_name=lambda request: "pascal-context",
    prepare=_prepare,
    class_names={("semseg", len(_CLASSES)): _CLASSES, ("parts", len(_PARTS)): _PARTS},
)
