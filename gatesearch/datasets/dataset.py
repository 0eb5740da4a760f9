"""What a data set is to the rest of the library: a name, help, and a way to make a pack of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gatesearch.datasets.pack_reader import Pack, open_pack
from gatesearch.datasets.scratch import remove_leftovers
from gatesearch.errors import DataError, UsageError, shell_command
from gatesearch.events import Emit, Warned


class PackName(Protocol):
    """Names the pack that a study of this size, classes and numbers of frames reads."""

    def __call__(
        self,
        size: tuple[int, int] | None,
        classes: int | None,
        train_frames: int,
        test_frames: int,
    ) -> str:
        """A folder's name; 0 frames, and None, stand for what the data set has."""
        ...


class Prepare(Protocol):
    """Makes a pack and returns its folder."""

    def __call__(
        self,
        *,
        folder: Path,
        source: Path | None,
        size: tuple[int, int] | None,
        train_frames: int,
        test_frames: int,
        emit: Emit,
    ) -> Path:
        """Make a pack.

        Args:
            folder: The data folder that holds packs.
            source: Folder or archive of the frames, for data sets that are not automatic.
            size: Height and width in pixels; None keeps the size that the frames have.
            train_frames: Frames of the official training part, spread evenly; 0 = all.
            test_frames: The same of the official test part.
            emit: Receives events.

        Raises:
            UsageError: A source where none is taken, or none where one is needed.
            DataError: The source is damaged or not in a known layout.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: As in a study's `data.dataset`.
        summary: One line.
        automatic: Whether its pack can be made without a source.
        info: Says where to get it, layouts that are read, frames, the command.
        pack_name: See `PackName`.
        prepare: See `Prepare`.
        class_names: (label, number of its classes) -> their names by index, for reports.
    """

    name: str
    summary: str
    automatic: bool
    info: Callable[[], str]
    pack_name: PackName
    prepare: Prepare
    class_names: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)


def ensure_pack(
    dataset: Dataset,
    *,
    data: Path,
    size: tuple[int, int],
    train_frames: int = 0,
    test_frames: int = 0,
    classes: int | None = None,
    emit: Emit,
) -> Pack:
    """Open the pack that a study reads; that of an automatic data set is made where it is absent.

    What killed processes left in the data folder is removed first.

    Args:
        dataset: The set.
        data: Folder that holds packs.
        size: The study's height and width in pixels.
        train_frames: Frames of the official training part that the study uses; 0 = all.
        test_frames: The same of the official test part.
        classes: Classes of the study's semantic segmentation; None when it has none.
        emit: Receives events while a pack is made.

    Raises:
        DataError: The pack is absent or damaged; says where to get it and the command.
        UsageError: The pack has another number of classes than the study.
    """
    remove_leftovers(data)
    folder = data / dataset.pack_name(size, classes, train_frames, test_frames)
    if dataset.automatic:
        pack = _open_or_make(
            dataset,
            folder,
            size=size,
            train_frames=train_frames,
            test_frames=test_frames,
            emit=emit,
        )
    elif folder.exists():
        pack = open_pack(folder)
    else:
        raise DataError(
            f"{dataset.name} is not prepared: no {folder}.\n"
            f"Prepare it once with: gatesearch data prepare {dataset.name} --source PATH "
            f"{shell_command('--data', str(data))}\n\n{dataset.info()}"
        )
    if classes is not None and pack.classes.get("semseg") != classes:
        raise UsageError(
            f"{pack.name} has {pack.classes.get('semseg')} classes, the study asks for {classes}; "
            f"set tasks.semseg.classes to match"
        )
    return pack


def _open_or_make(
    dataset: Dataset,
    folder: Path,
    *,
    size: tuple[int, int],
    train_frames: int,
    test_frames: int,
    emit: Emit,
) -> Pack:
    if folder.exists():
        try:
            return open_pack(folder)
        except DataError as error:
            emit(Warned(f"{error}; making it anew"))
    made = dataset.prepare(
        folder=folder.parent,
        source=None,
        size=size,
        train_frames=train_frames,
        test_frames=test_frames,
        emit=emit,
    )
    return open_pack(made)
