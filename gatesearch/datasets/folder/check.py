"""Check all files of a folder and gather their faults."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gatesearch.datasets.faults import Fault, first_names
from gatesearch.datasets.folder.frame import WRONG_FRAME_SIZE, FrameReport, examine_frame
from gatesearch.datasets.folder.listing import ListedFrame, Listing
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.photos import is_grey
from gatesearch.datasets.image_files import peek_image
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
    # Decoding leaves Python's lock to other threads; the frames themselves are thrown away.
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        examine = partial(_examine, source)
        for index, (frame, report) in enumerate(
            zip(frames, threads.map(examine, frames), strict=True), start=1
        ):
            faults += report.faults
            grey += [frame.id] * bool(report.is_grey)
            emit(_progress(index, len(frames)))
    faults = _sizes_together(faults)
    return (*listing.faults, *faults, *_grey_warning(grey, len(frames)))


def warn_of_grey(listing: Listing) -> tuple[Fault, ...]:
    """Look at the headers of all images, and warn of grey ones among those of colour."""
    frames = listing.all_frames()
    grey = []
    for frame in frames:
        image = peek_image(frame.image)
        if image is not None and is_grey(image):
            grey.append(frame.id)
    return _grey_warning(grey, len(frames))


def _examine(source: FolderSource, frame: ListedFrame) -> FrameReport:
    report = examine_frame(source, frame)
    return FrameReport({}, report.faults, report.is_grey)


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


def _grey_warning(grey: list[str], count: int) -> tuple[Fault, ...]:
    if not grey or len(grey) == count:
        return ()
    return (
        Fault(
            "grey images among colour",
            "data.images",
            first_names(grey),
            "they become RGB with equal channels",
            len(grey),
            is_warning=True,
        ),
    )


def _progress(done: int, total: int) -> Progress:
    return Progress(
        stage="data check",
        done=done,
        total=total,
        unit="frames",
        message=f"checking: {done} of {total} frames",
    )
