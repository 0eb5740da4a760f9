"""Check all files of a folder and gather their faults."""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from gatesearch.datasets.faults import Fault, first_names
from gatesearch.datasets.folder.frame import (
    WRONG_FRAME_SIZE,
    FrameReport,
    examine_frame,
    tasks_without_label,
)
from gatesearch.datasets.folder.listing import ListedFrame, Listing
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.photos import is_grey
from gatesearch.datasets.folder.splits import PartName
from gatesearch.datasets.frame_pool import cores
from gatesearch.datasets.image_files import peek_image
from gatesearch.datasets.orientation import UPRIGHT, orientation_of
from gatesearch.events import Emit, Progress


def check_files(source: FolderSource, listing: Listing, *, emit: Emit) -> tuple[Fault, ...]:
    """Read every file of a listing.

    Args:
        source: The folder.
        listing: Its frames.
        emit: Receives `Progress` events.

    Returns:
        Faults and warnings of the listing, then of the files.
    """
    frames = listing.all_frames()
    faults: list[Fault] = []
    grey: list[str] = []
    turned: list[str] = []
    bare: Counter[tuple[PartName, str]] = Counter()  # part, task -> labels that hold none
    part_of = {frame.id: part for part, listed in listing.frames.items() for frame in listed}
    # Decoding leaves Python's lock to other threads; the frames themselves are thrown away.
    with ThreadPoolExecutor(cores()) as threads:
        examine = partial(_examine, source)
        for index, (frame, (report, empty)) in enumerate(
            zip(frames, threads.map(examine, frames), strict=True), start=1
        ):
            faults += report.faults
            grey += [frame.id] * bool(report.is_grey)
            turned += [frame.id] * bool(report.is_turned)
            bare.update((part_of[frame.id], task) for task in empty)
            emit(_progress(index, len(frames)))
    faults = _sizes_together(faults)
    faults += parts_without_labels(listing, bare)
    return (*listing.faults, *faults, *_warnings(grey, turned, len(frames)))


def warn_of_images(listing: Listing) -> tuple[Fault, ...]:
    """Look at the headers of all images, and warn of what is changed as they are read.

    These are grey images among those of colour, and images that are stored turned.
    """
    frames = listing.all_frames()
    grey, turned = [], []
    for frame in frames:
        image = peek_image(frame.image)
        if image is not None:
            grey += [frame.id] * is_grey(image)
            turned += [frame.id] * (orientation_of(image) != UPRIGHT)
    return _warnings(grey, turned, len(frames))


def _examine(source: FolderSource, frame: ListedFrame) -> tuple[FrameReport, tuple[str, ...]]:
    """Return what reading a frame gave, and the tasks whose label of it holds none."""
    report = examine_frame(source, frame)
    return replace(report, fields={}), tasks_without_label(source, frame, report.fields)


def parts_without_labels(listing: Listing, bare: Mapping[tuple[PartName, str], int]) -> list[Fault]:
    """Refuse a task all of whose labels in a part say that there is none."""
    faults = []
    for (part, task), count in bare.items():
        given = sum(task in frame.labels for frame in listing.frames[part])
        if count == given:
            faults.append(
                Fault(
                    "part without labels",
                    f"tasks.{task}",
                    f"every part must have labels of every task, found none in {count} of {count} "
                    f"files or rows of {part}",
                    "label more frames, or correct the lists, data.fractions or data.split_seed",
                )
            )
    return faults


def _sizes_together(faults: Iterable[Fault]) -> list[Fault]:
    """Give one row to all frames of the same wrong size."""
    first: dict[str, Fault] = {}
    counts: dict[str, int] = {}
    others = []
    for fault in faults:
        if fault.kind == WRONG_FRAME_SIZE:
            first.setdefault(fault.found, fault)
            counts[fault.found] = counts.get(fault.found, 0) + 1
        else:
            others.append(fault)
    sizes = [
        Fault(
            fault.kind,
            f"{fault.place}{f' and {count - 1} more' * (count > 1)}",
            fault.found,
            fault.cure,
            count,
        )
        for fault, count in ((fault, counts[found]) for found, fault in first.items())
    ]
    return [*sizes, *others]


def _warnings(grey: list[str], turned: list[str], count: int) -> tuple[Fault, ...]:
    told = [
        (
            "grey images among colour",
            grey if len(grey) < count else [],
            "they become RGB with equal channels",
        ),
        (
            "images turned by EXIF",
            turned,
            "they are turned upright; pixels and points of their labels must be those of the "
            "upright image",
        ),
    ]
    return tuple(
        Fault(kind, "data.images", first_names(ids), cure, len(ids), is_warning=True)
        for kind, ids, cure in told
        if ids
    )


def _progress(done: int, total: int) -> Progress:
    return Progress(
        stage="data check",
        done=done,
        total=total,
        unit="frames",
        message=f"checking: {done} of {total} frames",
    )
