"""NYU Depth v2, labelled set (Silberman et al., ECCV 2012), from its two public layouts.

`nyud_mt`: the release that multi-task code reads, 40 classes
    images/N.jpg  segmentation/N.png (0 ignore, 1..40)  depth/N.npy  normals/N.npy  edge/N.npy
    gt_sets/{train,val}.txt
`mtan`: the release of MTAN and LibMTL, 13 classes
    {train,val}/{image,label,depth,normal}/i.npy (image 0..1, label -1 ignore, 0..12)

N is a frame's id, i a running number. The source may be a folder or an archive, and may hold the
layout one folder deep. The official validation part becomes the pack's `test`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.edges import boundaries
from gatesearch.datasets.frame_journal import Facts
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
from gatesearch.datasets.pack_manifest import SplitName
from gatesearch.datasets.pack_writer import NotedFrame, SplitFrames, write_pack
from gatesearch.datasets.release import (
    check_all_exist,
    check_disjoint,
    folders_of,
    identity_of,
    notes_on_counts,
    open_release,
    read_ids,
    unknown_layout,
)
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError, UsageError
from gatesearch.events import Emit, Warned
from gatesearch.tasks import Task, build_task, named_classes
from gatesearch.tasks.labels import IGNORE

_OFFICIAL: dict[SplitName, int] = {"train": 795, "test": 654}
_MTAN_FOLDERS = {"image": "image", "semseg": "label", "depth": "depth", "normals": "normal"}
# Facts of a frame: pixels whose normal is known, and those whose normal faces away.
_KNOWN, _AWAY = "known", "away"
# Reason -> whether it makes a frame useless for one task, though not for the others.
_EMPTY: dict[str, Callable[[dict[str, Array]], Any]] = {
    "depth is unknown everywhere": lambda frame: not frame["depth"].any(),
    "labels are ignored everywhere": lambda frame: (frame["semseg"] == IGNORE).all(),
    "normals are unknown everywhere": lambda frame: not frame["normals"].any(),
}


@dataclass(frozen=True)
class Layout:
    """A layout that was recognised on disk; picklable, so that several processes read its frames.

    Attributes:
        name: `nyud_mt` or `mtan`.
        root: Its folder.
        ids: Official lists, in their order.
        with_edges: Whether the release has edges.
    """

    name: Literal["nyud_mt", "mtan"]
    root: Path
    ids: dict[SplitName, tuple[str, ...]]
    with_edges: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 40 if self.name == "nyud_mt" else 13

    def files(self, split: SplitName, frame: str) -> dict[str, Path]:
        """Files of a frame by field."""
        root = self.root
        if self.name == "mtan":
            part = root / ("train" if split == "train" else "val")
            return {key: part / name / f"{frame}.npy" for key, name in _MTAN_FOLDERS.items()}
        paths = {
            "image": root / "images" / f"{frame}.jpg",
            "semseg": root / "segmentation" / f"{frame}.png",
            "depth": root / "depth" / f"{frame}.npy",
            "normals": root / "normals" / f"{frame}.npy",
        }
        return paths | ({"edges": root / "edge" / f"{frame}.npy"} if self.with_edges else {})

    def all_files(self) -> Iterator[Path]:
        """Every file of every listed frame."""
        for split, ids in self.ids.items():
            for frame in ids:
                yield from self.files(split, frame).values()

    def read(self, split: SplitName, frame: str) -> dict[str, Array]:
        """Read one frame of a split, at the size it has, in the pack's encodings.

        Without `edges` where the release has none.
        """
        paths = self.files(split, frame)
        return _read_mtan(paths) if self.name == "mtan" else _read_nyud_mt(paths)


def _read_nyud_mt(paths: dict[str, Path]) -> dict[str, Array]:
    classes = read_label_map(paths["semseg"])
    fields = {
        "image": read_photo(paths["image"]),
        "semseg": to_labels(classes, paths["semseg"], ignore=0, classes=40),
        "depth": to_depth(read_array(paths["depth"]), paths["depth"]),
        "normals": to_normals(read_array(paths["normals"]), paths["normals"]),
    }
    if "edges" in paths:
        fields["edges"] = to_edges(read_array(paths["edges"]), paths["edges"])
    return check_sizes(fields, paths)


def _read_mtan(paths: dict[str, Path]) -> dict[str, Array]:
    loaded = {key: read_array(path) for key, path in paths.items()}
    fields = {
        "image": to_image(loaded["image"], paths["image"]),
        "semseg": to_labels(loaded["semseg"], paths["semseg"], ignore=-1, classes=13),
        "depth": to_depth(loaded["depth"], paths["depth"]),
        "normals": to_normals(loaded["normals"], paths["normals"]),
    }
    return check_sizes(fields, paths)


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
    ids: dict[SplitName, tuple[str, ...]] = {
        "train": read_ids(root / "gt_sets" / "train.txt"),
        "test": read_ids(root / "gt_sets" / "val.txt"),
    }
    lists = f"{root / 'gt_sets'}: no frame may be in train.txt and val.txt"
    check_disjoint(ids["train"], ids["test"], where=lists)
    layout = Layout("nyud_mt", root, ids, with_edges=(root / "edge").is_dir())
    check_all_exist(layout.all_files())
    return layout


def _mtan(root: Path) -> Layout:
    parts: dict[SplitName, Path] = {"train": root / "train", "test": root / "val"}
    ids: dict[SplitName, tuple[str, ...]] = {}
    for split, part in parts.items():
        stems = {
            path.stem for name in _MTAN_FOLDERS.values() for path in (part / name).glob("[!.]*.npy")
        }
        odd = sorted(stem for stem in stems if not stem.isdecimal())
        if odd:
            raise DataError(f"{part}: files must be named 0.npy, 1.npy ..., found {odd[0]}.npy")
        if not stems:
            raise DataError(f"{part} has no frames; {GET_AGAIN}")
        ids[split] = tuple(sorted(stems, key=int))
    layout = Layout("mtan", root, ids)
    check_all_exist(layout.all_files())
    return layout


@dataclass(frozen=True)
class _FrameReader:
    """Reads the frame of a place in a list of ids, with the facts that end in notes.

    Attributes:
        layout: Where the frames are.
        split: Their split.
        ids: Their ids.
        first: Id, height and width of a frame, whose size all others must have.
        size: Height and width at which they are stored; None for their own.
    """

    layout: Layout
    split: SplitName
    ids: Sequence[str]
    first: tuple[str, tuple[int, int]]
    size: tuple[int, int] | None

    def __call__(self, index: int) -> NotedFrame:
        id_ = self.ids[index]
        frame = self.layout.read(self.split, id_)
        found, (first, size) = frame["image"].shape[:2], self.first
        if found != size:
            raise DataError(
                f"{self.layout.name}: all frames of a split must have one size, {first} has "
                f"{size[0]} x {size[1]}, {id_} has {found[0]} x {found[1]}; {GET_AGAIN}"
            )
        frame.setdefault("edges", boundaries(frame["semseg"], ignore=IGNORE))
        facts: dict[str, int | bool] = {
            what: bool(nothing(frame)) for what, nothing in _EMPTY.items()
        }
        facts[_KNOWN] = int(frame["normals"].any(-1).sum())
        facts[_AWAY] = int((frame["normals"][..., 2] > 0).sum())
        tasks = _tasks(self.layout.classes)
        return NotedFrame(resize_frame(frame, self.size, tasks) if self.size else frame, facts)


def _first_size(
    layout: Layout, split: SplitName, ids: Sequence[str]
) -> tuple[str, tuple[int, int]]:
    """Find the first frame that can be read: its id, height and width.

    Where there is none, the size is made up: writing then says what is wrong with each frame.
    """
    for id_ in ids:
        with suppress(DataError):
            height, width = layout.read(split, id_)["image"].shape[:2]
            return id_, (height, width)
    return ids[0], (1, 1)


def _summarise(
    facts: Sequence[Facts], *, split: SplitName, ids: Sequence[str], emit: Emit
) -> list[str]:
    """Make the notes of a split, and warn of frames without labels.

    Raises:
        DataError: No frame has labels of a task.
    """
    notes = []
    for id_, of_frame in zip(ids, facts, strict=True):
        for what in _EMPTY:
            if of_frame[what]:
                emit(Warned(f"nyud: {split} frame {id_}: {what}"))
    # The reason that occurs first comes first.
    first = {what: next((i for i, f in enumerate(facts) if f[what]), len(ids)) for what in _EMPTY}
    for what in sorted(_EMPTY, key=first.__getitem__):
        count = sum(bool(of_frame[what]) for of_frame in facts)
        if count == len(ids):
            raise DataError(f"nyud: {what} in every {split} frame; {GET_AGAIN}")
        if count:
            notes.append(f"{split}: {what} in {count} of {len(ids)} frames")
    known, away = (sum(int(of_frame[key]) for of_frame in facts) for key in (_KNOWN, _AWAY))
    if 2 * away > known:
        notes.append(
            f"{split}: {100 * away // known} % of the normals face away from the camera; the axes "
            "are probably not x right, y down, z forward"
        )
        emit(Warned(f"nyud: {notes[-1]}"))
    return notes


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    with open_release(source, dataset="nyud", folder=folder, request=request, emit=emit) as root:
        identity = identity_of(source) if source is not None and source != root else ""
        return _write(root, folder, request, emit, identity=identity)


def _write(
    root: Path, folder: Path, request: PackRequest, emit: Emit, *, identity: str = ""
) -> Path:
    """Write the pack of a layout.

    Args:
        root: Folder with the layout.
        folder: Folder of packs.
        request: Size and number of the frames.
        emit: Receives events.
        identity: Of the archive that was unpacked there; empty for that of the files.
    """
    size = request.size
    layout = find_layout(root)
    ids: dict[SplitName, Sequence[str]] = {
        "train": spread_evenly(layout.ids["train"], request.train_frames),
        "test": spread_evenly(layout.ids["test"], request.test_frames),
    }
    notes = notes_on_counts({split: len(ids[split]) for split in ids}, _OFFICIAL)
    tasks = _tasks(layout.classes)
    firsts = {split: _first_size(layout, split, ids[split]) for split in ids}
    if not layout.with_edges:
        notes.append("edges are the boundaries of the labels")
    return write_pack(
        folder / f"nyud-{layout.classes}",
        dataset="nyud",
        size=size or firsts["train"][1],
        fields=tasks,
        splits={
            split: SplitFrames(
                ids=ids[split],
                frames=_FrameReader(layout, split, ids[split], firsts[split], size),
                summarise=partial(_summarise, split=split, ids=ids[split], emit=emit),
            )
            for split in layout.ids
        },
        source=f"NYU Depth v2 labelled set, layout {layout.name}",
        notes=notes,
        identity=identity or identity_of(*layout.all_files()),
        emit=emit,
    )


def _tasks(classes: int) -> dict[str, Task]:
    """Tasks whose labels a pack holds, by field, which is also their kind."""
    named = {"semseg": _CLASSES_40 if classes == 40 else _CLASSES_13}
    return {
        kind: build_task(kind, named_classes(named.get(kind, ())), where="nyud")
        for kind in ("semseg", "depth", "normals", "edges")
    }


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
