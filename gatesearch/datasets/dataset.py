"""What a data set is to the rest of the library: a name, help, and a way to make a pack of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gatesearch.datasets.faults import Fault
from gatesearch.datasets.pack_reader import FieldEntry, Pack, open_pack
from gatesearch.datasets.scratch import remove_leftovers
from gatesearch.errors import DataError, UsageError, shell_command, unknown
from gatesearch.events import Emit, Warned
from gatesearch.strict import Strict
from gatesearch.study import Study, TaskSpec
from gatesearch.study.validation import validated
from gatesearch.tasks import Task, build_tasks


class NoOptions(Strict):
    """The options of a data set that has none."""


@dataclass(frozen=True)
class PackRequest:
    """What is asked of a data set's pack.

    Attributes:
        size: Height and width in pixels; None keeps the size that the frames have.
        train_frames: Frames of the official training part, spread evenly; 0 = all.
        test_frames: The same of the official test part.
        study: The study that the pack is for; None where a data set is prepared without a study.
    """

    size: tuple[int, int] | None = None
    train_frames: int = 0
    test_frames: int = 0
    study: Study | None = None

    @classmethod
    def of(cls, study: Study) -> "PackRequest":
        """What a study asks for."""
        data = study.data
        return cls(study.protocol.size, data.train_frames, data.test_frames, study)

    def classes(self, kind: str) -> int | None:
        """Number of classes of the study's first task of a kind; None without such a task."""
        specs = {} if self.study is None else self.study.tasks
        return next((spec.classes for spec in specs.values() if spec.kind == kind), None)


class Prepare(Protocol):
    """Makes a pack and returns its folder."""

    def __call__(
        self, *, folder: Path, source: Path | None, request: PackRequest, emit: Emit
    ) -> Path:
        """Make a pack.

        Args:
            folder: The data folder that holds packs.
            source: Folder or archive of the frames, for data sets that need one.
            request: Size and number of the frames, and the study that they are for.
            emit: Receives events.

        Raises:
            UsageError: A source where none is taken, or none where one is needed.
            DataError: The source is damaged or not in a known layout.
        """
        ...


@dataclass(frozen=True)
class StudyFiles:
    """What a data set can tell of files that a study itself names.

    Attributes:
        check: Reads all files; returns their faults and warnings.
        describe: Counts frames and labels per part.
        warn_of_changes: Compares the files with the digest of those that a pack was made from
            (`Manifest.origin`), and warns if they have changed.
    """

    check: Callable[[Study, Emit], Sequence[Fault]]
    describe: Callable[[Study], str]
    warn_of_changes: Callable[[Study, str, Emit], None]


def field_of(name: str, spec: TaskSpec) -> str:
    """Name the field of a pack that has a task's labels: `label`, or the task's name."""
    return spec.label or name


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: As in a study's `data.dataset`.
        summary: One line.
        automatic: Whether its pack can be made without a source.
        info: Says where to get it, layouts that are read, frames, the command.
        pack_name: Names the pack's folder below the data folder, by what is asked for.
        prepare: See `Prepare`.
        options: Type of the keys of `[data]` that only this data set has.
        field_of: (task's name, its table in the study) -> field of the pack with its labels, or
            columns of one (`attributes:Smiling,Male`).
        class_names: (field, number of its classes) -> their names by index, for reports.
        files: What it can tell of files that a study names; None if studies name none.
        made_by: How its packs are made, if not by `gatesearch data prepare`.
    """

    name: str
    summary: str
    automatic: bool
    info: Callable[[], str]
    pack_name: Callable[[PackRequest], str]
    prepare: Prepare
    options: type[Strict] = NoOptions
    field_of: Callable[[str, TaskSpec], str] = field_of
    class_names: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    files: StudyFiles | None = None
    made_by: str = ""


def check_options(dataset: Dataset, study: Study) -> None:
    """Refuse options that a study gives a data set and that it does not have.

    Raises:
        UsageError: There are such, or a value is not allowed.
    """
    validated(dataset.options, study.data.further, where=f"study {study.name}, data")


def ensure_pack(dataset: Dataset, study: Study, *, data: Path, emit: Emit) -> Pack:
    """Open the pack that a study reads; that of an automatic data set is made where it is absent.

    What killed processes left in the data folder is removed first.

    Args:
        dataset: The set.
        study: The definition.
        data: Folder that holds packs.
        emit: Receives events while a pack is made.

    Raises:
        DataError: The pack is absent or damaged; says where to get it and the command.
        UsageError: The pack does not have the labels that the study's tasks need.
    """
    check_options(dataset, study)
    remove_leftovers(data)
    request = PackRequest.of(study)
    folder = data / dataset.pack_name(request)
    if dataset.automatic:
        pack = _open_or_make(dataset, folder, request, emit)
    elif folder.exists():
        pack = open_pack(folder)
    else:
        cure = dataset.made_by or (
            f"Prepare it once with: gatesearch data prepare {dataset.name} --source PATH "
            + shell_command("--data", str(data))
        )
        raise DataError(f"{dataset.name} is not prepared: no {folder}.\n{cure}\n\n{dataset.info()}")
    for name, task in build_tasks(study.tasks).items():
        spec = study.tasks[name]
        _check_field(pack, dataset.field_of(name, spec), name, spec, task)
    return pack


def _open_or_make(dataset: Dataset, folder: Path, request: PackRequest, emit: Emit) -> Pack:
    if folder.exists():
        try:
            pack = open_pack(folder)
        except DataError as error:
            emit(Warned(f"{error}; making it anew"))
        else:
            if dataset.files is not None and request.study is not None:
                dataset.files.warn_of_changes(request.study, pack.manifest.origin, emit)
            return pack
    made = dataset.prepare(folder=folder.parent, source=None, request=request, emit=emit)
    return open_pack(made)


def _check_field(pack: Pack, field: str, name: str, spec: TaskSpec, task: Task) -> None:
    """Refuse a pack whose field does not hold the labels of a task.

    Raises:
        DataError: It has no such field.
        UsageError: The field is of another kind or has another number of classes.
    """
    whole = field.partition(":")[0]
    if whole not in pack.label_fields:
        labels = ", ".join(pack.label_fields)
        key = f"tasks.{name}.label" if spec.label else "task"
        raise DataError(
            f"{unknown(f'{key} of {pack.name}', whole, pack.label_fields)}; leave the task out, "
            f"set tasks.{name}.label to one of {labels}, or prepare another source"
        )
    entry: FieldEntry = pack.entry(field)
    if entry.kind != spec.kind:
        raise UsageError(
            f"tasks.{name}.kind must be '{entry.kind}', as the labels of that name are in "
            f"{pack.name}; found '{spec.kind}'"
        )
    if entry.classes != task.classes:
        raise UsageError(
            f"{pack.name} has {entry.classes} classes, the study asks for {task.classes}; "
            f"set tasks.{name}.classes to match"
        )
    if entry.storage != task.storage:
        raise UsageError(
            f"{pack.name} has labels of {entry.storage.dtype} {entry.shape} for {name}, the study "
            f"asks for {task.storage.dtype} {task.storage.channels}; set the options of "
            f"tasks.{name} to match"
        )
