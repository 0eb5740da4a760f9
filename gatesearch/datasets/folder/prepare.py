"""Make the pack of a folder, and tell whether its files have changed since."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gatesearch.datasets.dataset import Dataset, PackRequest, StudyFiles
from gatesearch.datasets.faults import Fault, FaultyDataError, warn_of
from gatesearch.datasets.folder.check import check_files, parts_without_labels, warn_of_images
from gatesearch.datasets.folder.frame import FrameReader, read_frame, tasks_without_label
from gatesearch.datasets.folder.labels import WITHOUT_LABEL
from gatesearch.datasets.folder.listing import Listing, list_frames
from gatesearch.datasets.folder.options import FolderOptions, FolderSource, source_of
from gatesearch.datasets.folder.splits import PARTS, PartName
from gatesearch.datasets.frame_faults import FaultyFramesError
from gatesearch.datasets.frame_journal import Facts
from gatesearch.datasets.pack_writer import NotedFrame, SplitFrames, write_pack
from gatesearch.errors import DataError, UsageError
from gatesearch.events import Emit, Warned
from gatesearch.study import Study, TaskSpec

# Part of every pack's name: raise it whenever the same files would give another pack.
VERSION = 1


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    study = _study_of(request)
    if source is not None:
        raise UsageError(
            f"the study's file says where the images lie, found --source {source}; leave it out"
        )
    files = source_of(study)
    listing = list_frames(files)
    if listing.is_faulty:
        raise FaultyDataError(check_files(files, listing, emit=emit), where=study.name)
    warnings = (*listing.faults, *warn_of_images(listing))
    warn_of(warnings, emit)
    try:
        return write_pack(
            folder / _pack_name(request),
            dataset="folder",
            size=files.size,
            fields=files.tasks,
            splits={part: _split(files, listing, part) for part in PARTS if listing.frames[part]},
            source=f"files of {study.folder}",
            origin=listing.digest,
            identity=f"{_pack_name(request)} {listing.digest}",
            notes=[
                f"{fault.kind}: {fault.place}: {fault.found}"
                for fault in warnings
                if fault.kind != WITHOUT_LABEL
            ],
            emit=emit,
        )
    except FaultyFramesError as error:
        # All files are read again for the table, with the listing's faults and the warnings.
        faults = check_files(files, listing, emit=emit)
        if not any(not fault.is_warning for fault in faults):
            raise DataError(f"{error}; its files changed meanwhile, run this again") from error
        raise FaultyDataError(faults, where=study.name) from error


def _split(source: FolderSource, listing: Listing, part: PartName) -> SplitFrames:
    frames = listing.frames[part]
    return SplitFrames(
        ids=[frame.id for frame in frames],
        frames=partial(_read_noted, FrameReader(source, frames)),
        summarise=partial(_check_labels, listing=listing, part=part),
    )


def _read_noted(reader: FrameReader, index: int) -> NotedFrame:
    """Read a frame, and note the tasks whose file or cells hold no label."""
    fields = read_frame(reader, index)
    bare = tasks_without_label(reader.source, reader.frames[index], fields)
    return NotedFrame(fields, dict.fromkeys(bare, True))


def _check_labels(facts: Sequence[Facts], *, listing: Listing, part: PartName) -> list[str]:
    """Refuse a part in which no file or cell of a task holds a label; no notes otherwise.

    Raises:
        FaultyDataError: There is such a task.
    """
    bare = Counter((part, task) for of_frame in facts for task in of_frame)
    faults = parts_without_labels(listing, bare)
    if faults:
        raise FaultyDataError(faults, where=part)
    return []


def _pack_name(request: PackRequest) -> str:
    """Name the pack after the study, with a digest of all that the study says of its frames."""
    study = _study_of(request)
    defining = {
        "version": VERSION,
        "size": study.protocol.size,
        "data": study.data.further,
        "validation": study.data.validation,
        "tasks": {
            name: {"kind": spec.kind, "label": spec.label, "names": spec.class_names}
            | spec.kind_options
            for name, spec in study.tasks.items()
        },
    }
    text = json.dumps(defining, sort_keys=True, default=str)
    return f"{study.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _study_of(request: PackRequest) -> Study:
    if request.study is None:
        raise UsageError(
            "a folder needs a study that says where its images and labels lie; name its file, as "
            "`gatesearch data prepare STUDY.toml`, or write one with `gatesearch new`"
        )
    return request.study


def _check(study: Study, emit: Emit) -> tuple[Fault, ...]:
    source = source_of(study)
    return check_files(source, list_frames(source), emit=emit)


def _warn_of_changes(study: Study, origin: str, emit: Emit) -> None:
    """Warn if files were added, removed or written since the pack was made from them.

    A pack is used without its files where these are away.
    """
    if study.folder is None:
        return
    try:
        listing = list_frames(source_of(study))
    except DataError:
        return
    if listing.all_frames() and listing.digest != origin:
        emit(
            Warned(
                f"{study.name}: images, labels or lists have changed since the pack was made, "
                "which is used as it is; for the present files run: gatesearch data prepare "
                f"{study.name}.toml (the study's file)"
            )
        )


def _describe(study: Study) -> str:
    source = source_of(study)
    listing = list_frames(source)
    frames = ", ".join(f"{len(listing.frames[part])} {part}" for part in PARTS)
    lines = [f"{study.name}: {frames} frames of {source.options.images or source.options.table}"]
    for name in source.tasks:
        counts = Counter(
            part for part in PARTS for frame in listing.frames[part] if name in frame.labels
        )
        shown = ", ".join(f"{counts[part]} {part}" for part in PARTS)
        kind = study.tasks[name].kind
        lines.append(f"  {name} ({kind}): {source.labels[name]}: labels of {shown}")
    faults = sum(fault.count for fault in listing.faults if not fault.is_warning)
    if faults:
        lines.append(f"  {faults} faults; see them with: gatesearch data check FILE")
    return "\n".join(lines)


def _info() -> str:
    return """folder: a folder of your own images and labels.

Write a study  gatesearch new NAME --images 'photos/*.jpg' --label TASK=masks/{id}.png
                               --label TASK=table.csv:column
               looks at the files, guesses kinds, classes and size, and writes NAME.toml
Check it       gatesearch data check NAME.toml      lists all faulty files
Run it         gatesearch run --study NAME.toml     prepares what it lacks
Images         JPEG, PNG, WebP, TIFF, BMP of 8 bits, turned upright as their EXIF data say
Labels         PNG, TIFF, BMP, .npy, or columns of a CSV or Parquet table; a frame may lack some
Parts          lists of ids (train, validation, test), a column `split`, or fractions by seed"""


def _field_of(name: str, spec: TaskSpec) -> str:
    """Name the field of a pack with a task's labels: the task's name, as `label` is a place."""
    del spec
    return name


DATASET = Dataset(
    name="folder",
    summary="a folder of your own images and labels; see `gatesearch new`",
    automatic=True,
    info=_info,
    pack_name=_pack_name,
    prepare=_prepare,
    options=FolderOptions,
    field_of=_field_of,
    files=StudyFiles(check=_check, describe=_describe, warn_of_changes=_warn_of_changes),
)
