"""Which frames a folder has, where their labels lie, and in which part each is.

No image is opened here: names, tables and lists are compared, and all their faults gathered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gatesearch.datasets.faults import Fault, first_names
from gatesearch.datasets.folder.findings import Findings
from gatesearch.datasets.folder.images import find_images
from gatesearch.datasets.folder.labels import Label, find_labels
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.parts import assign_parts
from gatesearch.datasets.folder.splits import PARTS, PartName
from gatesearch.datasets.folder.tables import image_names


@dataclass(frozen=True)
class ListedFrame:
    """A frame.

    Attributes:
        id: Its id.
        image: File of its image.
        labels: Task name -> where its label is; tasks without one are left out.
    """

    id: str
    image: Path
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class Listing:
    """All frames of a folder.

    Attributes:
        frames: Part -> its frames, by id.
        faults: What is wrong, and warnings.
        digest: Changes whenever a file is added, removed or written.
    """

    frames: Mapping[PartName, tuple[ListedFrame, ...]]
    faults: tuple[Fault, ...]
    digest: str

    @property
    def is_faulty(self) -> bool:
        """Whether the frames cannot be used."""
        return any(not fault.is_warning for fault in self.faults)

    def all_frames(self) -> tuple[ListedFrame, ...]:
        """Frames of all parts, in the parts' order."""
        return tuple(frame for part in PARTS for frame in self.frames.get(part, ()))


def list_frames(source: FolderSource) -> Listing:
    """List the frames of a folder.

    Raises:
        UsageError: A pattern, or a reference to a column, that cannot be read.
        DataError: A table or list that cannot be read.
    """
    findings = Findings(source.root)
    images = find_images(source, findings)
    names = image_names(images, source.root)
    labels = {task: find_labels(source, task, images, names, findings) for task in source.tasks}
    images = _with_labels(images, labels, source, findings)
    parts = assign_parts(source, images, names, labels, findings)
    frames: dict[PartName, list[ListedFrame]] = {part: [] for part in PARTS}
    for frame_id in sorted(parts):
        of_tasks = {task: by_id[frame_id] for task, by_id in labels.items() if frame_id in by_id}
        frames[parts[frame_id]].append(ListedFrame(frame_id, images[frame_id], of_tasks))
    return Listing(
        {part: tuple(listed) for part, listed in frames.items()},
        tuple(findings.faults),
        findings.digest(),
    )


def _with_labels(
    images: dict[str, Path],
    labels: Mapping[str, Mapping[str, Label]],
    source: FolderSource,
    findings: Findings,
) -> dict[str, Path]:
    """Leave out images without a label of any task, and warn of them; not if none has one."""
    labelled = {frame_id for by_id in labels.values() for frame_id in by_id}
    bare = [frame_id for frame_id in images if frame_id not in labelled]
    if not bare or len(bare) == len(images):
        return images
    findings.add(
        "images with no label",
        f"data.images = '{source.options.images}'" if source.options.images else "data.table",
        f"no task has a label of {first_names(bare)}",
        "they are left out; add their labels",
        count=len(bare),
        is_warning=True,
    )
    return {frame_id: path for frame_id, path in images.items() if frame_id in labelled}
