"""Open the data of a study, and refuse those that it cannot be trained or measured on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets import DATASETS, Dataset, Pack, ensure_pack
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError, UsageError, unknown
from gatesearch.events import Emit
from gatesearch.methods import method_of, training_of
from gatesearch.study import Study, TaskSpec
from gatesearch.tasks import Task, build_tasks
from gatesearch.tasks.labels import labelled_frames
from gatesearch.training import FrameData, MixedData, SplitData, split_validation
from gatesearch.training.split_data import labelled_fields

PARTS = ("train", "validation", "test")
_TASKS_NAMED = 5  # in a line of the log


def check_dataset(study: Study) -> None:
    """Refuse a study of an unknown data set.

    Raises:
        UsageError: Unknown data set.
    """
    for spec in (study.data, *study.more_data):
        if spec.dataset not in DATASETS:
            hint = unknown("data set", spec.dataset, DATASETS)
            raise UsageError(f"{hint}; `gatesearch flops` needs no data")


@dataclass(frozen=True)
class OpenedData:
    """The data of a study, opened and found fit to train on.

    Attributes:
        tasks: Task name -> task, fitted to the labels of the training part.
        train: The official training part without the validation part.
        validation: Frames taken from the official training part.
        test: The official test part.
        description: Description for the store: pack, its SHA-256, number of frames, and number of
            labelled frames per task where some lack labels.
    """

    tasks: dict[str, Task]
    train: FrameData
    validation: FrameData
    test: FrameData
    description: dict[str, object]

    @property
    def partial_labels(self) -> list[str]:
        """Lines on the tasks that have labels of some frames only; none where all have all.

        Tasks with the same counts share a line.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        labelled = {name: part.labelled for name, part in parts.items()}
        by_counts: dict[tuple[int, ...], list[str]] = {}
        for task in self.tasks:
            counts = tuple(labelled[name][task] for name in parts)
            if any(count < len(part) for count, part in zip(counts, parts.values(), strict=True)):
                by_counts.setdefault(counts, []).append(task)
        lines = []
        for counts, tasks in by_counts.items():
            of = [
                f"{name} {count} of {len(part)}"
                for count, (name, part) in zip(counts, parts.items(), strict=True)
            ]
            more = len(tasks) - _TASKS_NAMED
            names = ", ".join(tasks[:_TASKS_NAMED]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"labelled frames of {names}: {', '.join(of)}")
        return lines


def open_data(study: Study, *, data: Path, emit: Emit) -> OpenedData:
    """Open a study's data, and refuse data that it cannot be trained or measured on.

    Nothing of the study's store is read or made.

    Args:
        study: The definition.
        data: Folder of packs.
        emit: Receives events.

    Raises:
        DataError: Data are missing or damaged, fewer than a batch, or a part of them has no labels
            of a task.
        UsageError: Unknown data set or option of it, or a task that its labels do not fit.
    """
    check_dataset(study)
    opened = [_open_source(source, data=data, emit=emit) for source in study.sources]
    tasks = {name: _fitted(name, opened) for name in study.tasks}
    parts = {
        name: _mixed([source.parts[name] for source in opened], study, tasks) for name in PARTS
    }
    _check_batch_sizes(study, len(parts["train"]))
    packs = [source.pack for source in opened]
    _check_labels(parts, tasks, " and ".join(pack.name for pack in packs))
    return OpenedData(tasks=tasks, description=_description(packs, parts), **parts)


@dataclass(frozen=True)
class _OpenedSource:
    """One data set of a study, opened.

    Attributes:
        pack: Its pack.
        tasks: Task name -> task.
        parts: `train`, `validation`, `test` -> frames.
        rows: Task name -> labels of its frames to train on, (N, ...), of tasks with labels per
            image.
    """

    pack: Pack
    tasks: dict[str, Task]
    parts: dict[str, SplitData]
    rows: dict[str, NDArray[Any]]


def _fitted(name: str, sources: Sequence[_OpenedSource]) -> Task:
    """Return a task as the first source has it, with what it learns from the frames of all."""
    having = [source for source in sources if name in source.tasks]
    task = having[0].tasks[name]
    if task.storage.dense:
        return task
    return task.fitted(task.summarise(np.concatenate([source.rows[name] for source in having])))


def _open_source(study: Study, *, data: Path, emit: Emit) -> _OpenedSource:
    """Open the data set of a study that has one, or of one of its `Study.sources`."""
    spec = study.data
    dataset = DATASETS[spec.dataset]
    pack = ensure_pack(dataset, study, data=data, emit=emit)
    fields = {name: dataset.field_of(name, task) for name, task in study.tasks.items()}
    tasks = build_tasks(_named(study, dataset, pack))
    frames = partial(SplitData, pack, tasks=tasks, size=study.protocol.size, fields=fields)
    chosen = spread_evenly(range(pack.frames("train")), spec.train_frames)
    if "validation" in pack.splits and not spec.carved:
        train_at = chosen
        validation = frames("validation", indices=range(pack.frames("validation")))
    else:
        places, validation_at = split_validation(
            len(chosen),
            validation=spec.carved,
            seed=spec.validation_seed,
            labelled=labelled_fields(pack, "train", list(fields.values()), chosen),
        )
        train_at = [chosen[i] for i in places]
        validation = frames("train", indices=[chosen[i] for i in validation_at])
    tested = spread_evenly(range(pack.frames("test")), spec.test_frames)
    test = frames("test", indices=tested)
    parts = {"train": frames("train", indices=train_at), "validation": validation, "test": test}
    rows = {
        name: pack.array("train", fields[name])[train_at]
        for name, task in tasks.items()
        if not task.storage.dense
    }
    return _OpenedSource(pack, tasks, parts, rows)


def _named(study: Study, dataset: Dataset, pack: Pack) -> dict[str, TaskSpec]:
    """Tasks of a study with the names of their classes that its data set knows."""
    named = {}
    for name, spec in study.tasks.items():
        field = dataset.field_of(name, spec)
        known = pack.entry(field).class_names if spec.classes > 1 else ()
        if len(known) != spec.classes:  # as in packs that were made by gatesearch 0.1.0
            known = dataset.class_names.get((field, spec.classes), ())
        names = spec.class_names or known
        named[name] = spec.model_copy(update={"class_names": tuple(names)})
    return named


def _mixed(parts: list[SplitData], study: Study, tasks: Mapping[str, Task]) -> FrameData:
    """Make one part of the data of that of each source."""
    if len(parts) == 1:
        return parts[0]
    shares = [spec.share for spec in (study.data, *study.more_data)]
    given = [share for share in shares if share is not None]
    return MixedData(parts, tasks=tasks, mixing=study.mixing, shares=given or None)


def _check_batch_sizes(study: Study, frames: int) -> None:
    """Refuse a batch, of the study or of one of its methods, that is larger than the training part.

    Raises:
        DataError: It is larger.
    """
    sizes = {"training.batch_size": study.training.batch_size}
    for method in study.options:
        key = f"options.{method}.training.batch_size"
        sizes[key] = training_of(study, method).batch_size
    for key, size in sizes.items():
        if frames < size:
            raise DataError(
                f"{key} is {size} but only {frames} frames are left to train on; lower it, or "
                "raise data.train_frames"
            )
    for method in dict.fromkeys((*study.methods, *study.tune)):
        parts, size = method_of(method).data_parts(study), training_of(study, method).batch_size
        if parts > 1 and frames // parts < size:
            raise DataError(
                f"{method} trains on {parts} parts of the training frames in turns, each of which "
                f"must have a batch of {size}, found {frames // parts} frames in a part; lower "
                "training.batch_size, or raise data.train_frames"
            )


def _check_labels(parts: Mapping[str, FrameData], tasks: Mapping[str, Task], packs: str) -> None:
    """Refuse data in which a part has not one labelled pixel of a task.

    Such a task would learn nothing, or its metric would be undefined for every network.

    Raises:
        DataError: A part has none; the error counts the labelled frames of every part and task.
    """
    if all(_labelled(part, task, name, most=1) for part in parts.values()
           for name, task in tasks.items()):  # fmt: skip
        return
    counts = {
        name: [_labelled(part, task, name, most=len(part)) for part in parts.values()]
        for name, task in tasks.items()
    }
    shown = "; ".join(
        f"{task} "
        + ", ".join(f"{c} of {len(parts[p])} in {p}" for p, c in zip(parts, by_part, strict=True))
        for task, by_part in counts.items()
    )
    lacking = [task for task, by_part in counts.items() if 0 in by_part]
    raise DataError(
        f"{packs} must have labels of every task in every part, found frames with labels: "
        f"{shown}. Leave {' and '.join(lacking)} out of the study's tasks, or take other frames: "
        "data.validation, data.validation_seed, data.train_frames, data.test_frames"
    )


def _labelled(part: FrameData, task: Task, name: str, *, most: int) -> int:
    """Count the frames of a part that have a labelled pixel of a task, up to `most`."""
    count = 0
    for position in range(len(part)):
        labels = part.labels(position, name)
        if bool(labelled_frames(labels[None], task.unknown_value)):
            count += 1
            if count == most:
                break
    return count


def _description(packs: Sequence[Pack], parts: Mapping[str, FrameData]) -> dict[str, object]:
    """Describe opened data for the store; equal digests mean equal frames."""
    counts = {name: len(part) for name, part in parts.items()}
    digest = packs[0].digest
    if len(packs) > 1:
        digest = hashlib.sha256(" ".join(pack.digest for pack in packs).encode()).hexdigest()
    described = {"pack": " + ".join(pack.name for pack in packs), "sha256": digest, **counts}
    labelled = {name: part.labelled for name, part in parts.items()}
    if any(count < counts[name] for name in parts for count in labelled[name].values()):
        described["labelled"] = labelled
    return {**described, "notes": [note for pack in packs for note in pack.manifest.notes]}
