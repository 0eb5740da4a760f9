"""NYU Depth v2, labelled set (Silberman et al., ECCV 2012), from its two public layouts.

`nyud_mt`: the release that multi-task code reads, 40 classes
    images/N.jpg  segmentation/N.png (0 ignore, 1..40)  depth/N.npy  normals/N.npy  edge/N.npy
    gt_sets/{train,val}.txt
`mtan`: the release of MTAN and LibMTL, 13 classes
    {train,val}/{image,label,depth,normal}/i.npy (image 0..1, label -1 ignore, 0..12)

N is a frame's id, i a running number. The source may be a folder or an archive, and may hold the
layout one folder deep. The official validation part becomes the pack's `test`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.edges import boundaries
from gatesearch.datasets.frame_size import resize_frame
from gatesearch.datasets.label_checks import (
    GET_AGAIN,
    Array,
    check_sizes,
    read_array,
    read_label_map,
    read_photo,
    to_depth,
    to_edges,
    to_image,
    to_labels,
    to_normals,
)
from gatesearch.datasets.pack_reader import Frame, SplitName
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.release import (
    check_all_exist,
    check_disjoint,
    folders_of,
    notes_on_counts,
    open_release,
    read_ids,
    spread,
    unknown_layout,
)
from gatesearch.errors import DataError, UsageError
from gatesearch.events import Emit, Warned
from gatesearch.tasks import Task, build_task
from gatesearch.tasks.labels import IGNORE

_OFFICIAL: dict[SplitName, int] = {"train": 795, "test": 654}
# Reason -> whether it makes a frame useless for one task, though not for the others.
_EMPTY: dict[str, Callable[[dict[str, Array]], Any]] = {
    "depth is unknown everywhere": lambda frame: not frame["depth"].any(),
    "labels are ignored everywhere": lambda frame: (frame["semseg"] == IGNORE).all(),
    "normals are unknown everywhere": lambda frame: not frame["normals"].any(),
}


@dataclass(frozen=True)
class Layout:
    """A layout that was recognised on disk.

    Attributes:
        name: `nyud_mt` or `mtan`.
        classes: Number of classes.
        ids: Official lists, in their order.
        read: Reads one frame of a split, at the size it has, in the pack's encodings; without
            `edges` where the release has none.
    """

    name: str
    classes: int
    ids: dict[SplitName, tuple[str, ...]]
    read: Callable[[SplitName, str], dict[str, Array]]


def find_layout(root: Path) -> Layout:
    """Recognise the layout of a folder, at the top or one folder deep.

    Raises:
        DataError: Neither layout, or a listed file is missing.
    """
    for folder in folders_of(root):
        if (folder / "gt_sets").is_dir():
            return _nyud_mt(folder)
        if (folder / "train" / "image").is_dir():
            return _mtan(folder)
    raise unknown_layout(
        root,
        dataset="nyud",
        title="NYUD-v2",
        expected="gt_sets/ beside images/, or train/image/ beside val/image/",
    )


def _nyud_mt(root: Path) -> Layout:
    with_edges = (root / "edge").is_dir()

    def files(frame: str) -> dict[str, Path]:
        paths = {
            "image": root / "images" / f"{frame}.jpg",
            "semseg": root / "segmentation" / f"{frame}.png",
            "depth": root / "depth" / f"{frame}.npy",
            "normals": root / "normals" / f"{frame}.npy",
        }
        return paths | ({"edges": root / "edge" / f"{frame}.npy"} if with_edges else {})

    def read(split: SplitName, frame: str) -> dict[str, Array]:
        paths = files(frame)
        classes = read_label_map(paths["semseg"])
        fields = {
            "image": read_photo(paths["image"]),
            "semseg": to_labels(classes, paths["semseg"], ignore=0, classes=40),
            "depth": to_depth(read_array(paths["depth"]), paths["depth"]),
            "normals": to_normals(read_array(paths["normals"]), paths["normals"]),
        }
        if with_edges:
            fields["edges"] = to_edges(read_array(paths["edges"]), paths["edges"])
        return check_sizes(fields, paths)

    ids: dict[SplitName, tuple[str, ...]] = {
        "train": read_ids(root / "gt_sets" / "train.txt"),
        "test": read_ids(root / "gt_sets" / "val.txt"),
    }
    lists = f"{root / 'gt_sets'}: no frame may be in train.txt and val.txt"
    check_disjoint(ids["train"], ids["test"], where=lists)
    check_all_exist(path for split in ids for frame in ids[split] for path in files(frame).values())
    return Layout(name="nyud_mt", classes=40, ids=ids, read=read)


def _mtan(root: Path) -> Layout:
    parts: dict[SplitName, Path] = {"train": root / "train", "test": root / "val"}
    folders = {"image": "image", "semseg": "label", "depth": "depth", "normals": "normal"}

    def files(split: SplitName, frame: str) -> dict[str, Path]:
        return {key: parts[split] / name / f"{frame}.npy" for key, name in folders.items()}

    def read(split: SplitName, frame: str) -> dict[str, Array]:
        paths = files(split, frame)
        loaded = {key: read_array(path) for key, path in paths.items()}
        fields = {
            "image": to_image(loaded["image"], paths["image"]),
            "semseg": to_labels(loaded["semseg"], paths["semseg"], ignore=-1, classes=13),
            "depth": to_depth(loaded["depth"], paths["depth"]),
            "normals": to_normals(loaded["normals"], paths["normals"]),
        }
        return check_sizes(fields, paths)

    ids: dict[SplitName, tuple[str, ...]] = {}
    for split, part in parts.items():
        stems = {path.stem for name in folders.values() for path in (part / name).glob("[!.]*.npy")}
        odd = sorted(stem for stem in stems if not stem.isdecimal())
        if odd:
            raise DataError(f"{part}: files must be named 0.npy, 1.npy ..., found {odd[0]}.npy")
        if not stems:
            raise DataError(f"{part} has no frames; {GET_AGAIN}")
        ids[split] = tuple(sorted(stems, key=int))
    check_all_exist(
        path for split in ids for frame in ids[split] for path in files(split, frame).values()
    )
    return Layout(name="mtan", classes=13, ids=ids, read=read)


def _frames(
    layout: Layout,
    split: SplitName,
    ids: Sequence[str],
    *,
    size: tuple[int, int] | None,
    notes: list[str],
    emit: Emit,
) -> Iterator[Frame]:
    first: tuple[int, ...] = ()
    empty: Counter[str] = Counter()
    known = away = 0
    for frame_id in ids:
        frame = layout.read(split, frame_id)
        size_found = frame["image"].shape[:2]
        first = first or size_found
        if size_found != first:
            raise DataError(
                f"{layout.name}: all frames of a split must have one size, {ids[0]} has "
                f"{first[0]} x {first[1]}, {frame_id} has {size_found[0]} x {size_found[1]}; "
                f"{GET_AGAIN}"
            )
        frame.setdefault("edges", boundaries(frame["semseg"], ignore=IGNORE))
        for what, nothing in _EMPTY.items():
            if nothing(frame):
                empty[what] += 1
                emit(Warned(f"nyud: {split} frame {frame_id}: {what}"))
        known += int(frame["normals"].any(-1).sum())
        away += int((frame["normals"][..., 2] > 0).sum())
        yield resize_frame(frame, size, _tasks(layout.classes)) if size else frame
    for what, count in empty.items():
        if count == len(ids):
            raise DataError(f"nyud: {what} in every {split} frame; {GET_AGAIN}")
        notes.append(f"{split}: {what} in {count} of {len(ids)} frames")
    if 2 * away > known:
        notes.append(
            f"{split}: {100 * away // known} % of the normals face away from the camera; the axes "
            "are probably not x right, y down, z forward"
        )
        emit(Warned(f"nyud: {notes[-1]}"))


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    with open_release(source, dataset="nyud", folder=folder, request=request, emit=emit) as root:
        return _write(root, folder, request, emit)


def _write(root: Path, folder: Path, request: PackRequest, emit: Emit) -> Path:
    """Write the pack of a layout in the folder `root`."""
    size = request.size
    layout = find_layout(root)
    ids: dict[SplitName, tuple[str, ...]] = {
        "train": spread(layout.ids["train"], request.train_frames),
        "test": spread(layout.ids["test"], request.test_frames),
    }
    notes = notes_on_counts({split: len(frames) for split, frames in ids.items()}, _OFFICIAL)
    tasks = _tasks(layout.classes)
    example = layout.read("train", ids["train"][0])
    if "edges" not in example:
        notes.append("edges are the boundaries of the labels")
    return write_pack(
        folder / f"nyud-{layout.classes}",
        dataset="nyud",
        size=size or example["image"].shape[:2],
        fields=tasks,
        class_names={"semseg": _CLASSES_40 if layout.classes == 40 else _CLASSES_13},
        splits={
            split: SplitFrames(
                ids=ids[split],
                frames=_frames(layout, split, ids[split], size=size, notes=notes, emit=emit),
            )
            for split in layout.ids
        },
        source=f"NYU Depth v2 labelled set, layout {layout.name}",
        notes=notes,
        emit=emit,
    )


def _tasks(classes: int) -> dict[str, Task]:
    """Tasks whose labels a pack holds, by field, which is also their kind."""
    kinds = {"semseg": classes, "depth": 1, "normals": 1, "edges": 1}
    return {kind: build_task(kind, {"classes": n}, where="nyud") for kind, n in kinds.items()}


def _pack_name(request: PackRequest) -> str:
    classes = request.classes("semseg")
    if classes not in (None, 13, 40):
        raise UsageError(f"nyud has packs of 40 classes (nyud_mt) and 13 (mtan), found {classes}")
    return f"nyud-{classes or 40}"


def _info() -> str:
    return """nyud: NYU Depth v2, labelled set, for research
      (Silberman, Hoiem, Kohli, Fergus, ECCV 2012).

Frames   795 to train, 654 to test (the official lists)
Labels   semseg (40 or 13 classes), depth (metres), normals, edges
Layouts  read from a folder or a .tgz, .tar.gz, .tar or .zip of it, and recognised by themselves:
         nyud_mt  images/N.jpg  segmentation/N.png (0 ignore, 1..40)  depth/N.npy (metres)
                  normals/N.npy  edge/N.npy  gt_sets/{train,val}.txt            -> pack nyud-40
         mtan     {train,val}/{image,label,depth,normal}/i.npy                  -> pack nyud-13
Get it   nyud_mt  NYUD_MT.tgz; linked from github.com/SimonVandenhende/Multi-Task-Learning-PyTorch
                  (by hand: drive.google.com/file/d/14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw)
         mtan     linked from the README of github.com/lorenmt/mtan
Command  gatesearch data prepare nyud --source PATH --data DIR
         (--size H W stores frames at that size; otherwise they keep theirs and a study that asks
         for another resizes them as it reads, in the same way)

The two packs are two protocols: figures of one are never put beside figures of the other."""


# Gupta, Arbelaez, Malik, CVPR 2013: label 1 of the release is class 0.
_CLASSES_40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
# Couprie, Farabet, Najman, LeCun, ICLR 2013.
_CLASSES_13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table",
    "television", "wall", "window",
)  # fmt: skip


DATASET = Dataset(
    name="nyud",
    summary="NYU Depth v2, 795 + 654 frames: semseg (40 or 13), depth, normals, edges",
    automatic=False,
    info=_info,
    pack_name=_pack_name,
    prepare=_prepare,
    class_names={("semseg", 40): _CLASSES_40, ("semseg", 13): _CLASSES_13},
)
