"""Read one frame of a folder: image and labels, checked, encoded, at the protocol's size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gatesearch.datasets.faults import Fault, FileFaultError, as_fault
from gatesearch.datasets.folder.fit import Placement, fit_image, fit_labels, fit_row, place
from gatesearch.datasets.folder.label_files import read_label
from gatesearch.datasets.folder.listing import ListedFrame
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.photos import Photo, read_photo
from gatesearch.datasets.orientation import UPRIGHT
from gatesearch.datasets.pack_manifest import IMAGE, Frame
from gatesearch.errors import DataError
from gatesearch.tasks import Task
from gatesearch.tasks.labels import labelled_frames, to_array, to_tensor, unknown_labels

Array = NDArray[Any]
WRONG_FRAME_SIZE = "frame of another size"


@dataclass(frozen=True)
class FrameReader:
    """Frames of one part, to be read by `read_frame` in any process.

    Attributes:
        source: The folder.
        frames: Its frames.
    """

    source: FolderSource
    frames: tuple[ListedFrame, ...]


@dataclass(frozen=True)
class FrameReport:
    """What reading a frame gave.

    Attributes:
        fields: The frame as a pack stores it; without the fields that have faults.
        faults: What is wrong with its files.
        is_grey: Whether its image has no colours; None if it cannot be read.
        is_turned: Whether its image is stored turned or mirrored; None if it cannot be read.
    """

    fields: Frame
    faults: tuple[Fault, ...]
    is_grey: bool | None
    is_turned: bool | None


def read_frame(reader: FrameReader, index: int) -> Frame:
    """Read the frame `index` as a pack stores it.

    Raises:
        DataError: One of its files is missing, damaged, or does not fit the others.
    """
    report = examine_frame(reader.source, reader.frames[index])
    for fault in report.faults:
        raise DataError(f"{fault.place}: {fault.found}; {fault.cure}")
    return report.fields


def examine_frame(source: FolderSource, frame: ListedFrame) -> FrameReport:
    """Read all files of a frame, and gather the faults of all of them."""
    faults: list[Fault] = []
    fields: dict[str, Array] = {}
    photo: Photo | None = None
    placement: Placement | None = None
    try:
        photo = read_photo(frame.image)
        placement = _placement(photo, frame.image, source)
        fields[IMAGE] = to_array(fit_image(to_tensor(photo.pixels[None]), placement))[0]
    except DataError as error:
        faults.append(as_fault(error, frame.image, source.root))
    for name, task in source.tasks.items():
        label = frame.labels.get(name)
        try:
            if label is None:
                fields[name] = unknown_labels(task, 1, source.size)[0]
            elif isinstance(label, Path):
                encoded = _read_dense(task, label, photo, frame.image)
                if placement is not None:
                    fitted = fit_labels(to_tensor(encoded[None]), task, placement)
                    fields[name] = to_array(fitted)[0]
            else:
                if placement is not None:
                    row = task.encode(np.array(label), size=placement.frame)
                    fitted = fit_row(to_tensor(row[None]), task, placement)
                    fields[name] = to_array(fitted)[0]
        except ValueError as error:
            place = f"tasks.{name} of '{frame.id}'"
            faults.append(Fault("bad value", place, str(error), "correct the table"))
        except DataError as error:
            path = label if isinstance(label, Path) else frame.image
            faults.append(as_fault(error, path, source.root))
    if photo is None:
        return FrameReport(fields, tuple(faults), None, None)
    return FrameReport(fields, tuple(faults), photo.is_grey, photo.orientation != UPRIGHT)


def tasks_without_label(source: FolderSource, frame: ListedFrame, fields: Frame) -> tuple[str, ...]:
    """Name the tasks for which a frame has a file or cells that hold no label at all."""
    return tuple(
        name
        for name, task in source.tasks.items()
        if name in frame.labels
        and name in fields
        and not labelled_frames(torch.from_numpy(fields[name][None]), task.unknown_value)
    )


def _placement(photo: Photo, path: Path, source: FolderSource) -> Placement:
    """Place an image in the protocol's size.

    Raises:
        FileFaultError: It has another size, with `fit = "none"`.
    """
    size = photo.pixels.shape[:2]
    if source.options.fit == "none" and size != source.size:
        raise FileFaultError(
            WRONG_FRAME_SIZE,
            path,
            f"must have the protocol's size {source.size[0]} x {source.size[1]}, found "
            f"{size[0]} x {size[1]}",
            'set data.fit to "stretch", "crop" or "pad", or protocol.size to the size of all',
        )
    return place(size, source.size, source.options.fit)


def _read_dense(task: Task, path: Path, photo: Photo | None, image: Path) -> Array:
    """Read a file of labels in the encoding of the pack, as large as its image.

    Raises:
        DataError: It cannot be read, has another size, or values that are not allowed.
    """
    raw = read_label(path, channels=int(np.prod(task.storage.channels, dtype=int)))
    if photo is not None:
        _check_size(raw, path, photo, image)
    try:
        return task.encode(raw)
    except ValueError as error:
        raise FileFaultError(
            "bad value", path, str(error), "correct the file, or the task's classes and options"
        ) from error


def _check_size(label: Array, path: Path, photo: Photo, image: Path) -> None:
    """Refuse a label that is not as large as its image.

    Raises:
        FileFaultError: It is not; says so where the label fits the image before it was turned.
    """
    expected, found = photo.pixels.shape[:2], label.shape[:2]
    if found == expected:
        return
    turned = photo.is_turned and found == expected[::-1]
    raise FileFaultError(
        "wrong size",
        path,
        f"must be as large as its image, {expected[0]} x {expected[1]}, found {found[0]} x "
        f"{found[1]}"
        + (f", which is the size of {image.name} before its EXIF orientation turns it" * turned),
        "turn the label as the image is shown, or save the image without EXIF orientation"
        if turned
        else "make the label anew at the size of its image",
    )
