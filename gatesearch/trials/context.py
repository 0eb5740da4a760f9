"""Open a study's data and choose its runtime; all trainings of a run share both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets import DATASETS, Pack, ensure_pack
from gatesearch.errors import DataError, UsageError, unknown
from gatesearch.events import Emit, Log
from gatesearch.methods import Context, build_model, training_of
from gatesearch.results import MULTI_TASK
from gatesearch.study import Study
from gatesearch.tasks import Task, build_tasks
from gatesearch.tasks.labels import labelled_frames
from gatesearch.training import (
    Runtime,
    SplitData,
    measure_memory_format,
    resolve_runtime,
    split_validation,
)
from gatesearch.training.split_data import spread_evenly


def check_dataset(study: Study) -> None:
    """Refuse a study of an unknown data set.

    Raises:
        UsageError: Unknown data set.
    """
    name = study.data.dataset
    if name not in DATASETS:
        hint = unknown("data set", name, DATASETS)
        raise UsageError(f"{hint}; `gatesearch flops` needs no data")


@dataclass(frozen=True)
class OpenedData:
    """The data of a study, opened and found fit to train on.

    Attributes:
        tasks: Task name -> task.
        train: The official training part without the validation part.
        validation: Frames taken from the official training part.
        test: The official test part.
        description: Description for the store: pack, its SHA-256, number of frames, and number of
            labelled frames per task where some lack labels.
    """

    tasks: dict[str, Task]
    train: SplitData
    validation: SplitData
    test: SplitData
    description: dict[str, object]


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
    spec = study.data
    dataset = DATASETS[spec.dataset]
    pack = ensure_pack(dataset, study, data=data, emit=emit)
    fields = {name: dataset.field_of(name, task) for name, task in study.tasks.items()}
    tasks = {
        name: task.fitted(pack.fields[fields[name]].figures)
        for name, task in build_tasks(study.tasks).items()
    }
    frames = partial(SplitData, pack, tasks=tasks, size=study.protocol.size, fields=fields)
    chosen = spread_evenly(pack.frames("train"), spec.train_frames)
    if "validation" in pack.splits:
        train = frames("train", indices=chosen)
        validation = frames("validation", indices=range(pack.frames("validation")))
    else:
        train_at, validation_at = split_validation(
            len(chosen),
            validation=spec.carved,
            seed=spec.validation_seed,
            labelled=_labelled_fields(pack, list(fields.values()), chosen),
        )
        train = frames("train", indices=[chosen[i] for i in train_at])
        validation = frames("train", indices=[chosen[i] for i in validation_at])
    test = frames("test", indices=spread_evenly(pack.frames("test"), spec.test_frames))
    _check_batch_sizes(study, len(train))
    parts = {"train": train, "validation": validation, "test": test}
    _check_labels(parts, tasks, pack)
    return OpenedData(tasks, train, validation, test, _description(pack, parts))


def open_context(
    study: Study, *, data: Path, stored: Mapping[str, str] | None, emit: Emit
) -> Context:
    """Open a study's data (`open_data`) and choose its runtime (`make_context`)."""
    return make_context(study, open_data(study, data=data, emit=emit), stored=stored, emit=emit)


def make_context(
    study: Study, opened: OpenedData, *, stored: Mapping[str, str] | None, emit: Emit
) -> Context:
    """Choose the runtime of a study whose data are open.

    Args:
        study: The definition.
        opened: Its data; training frames are moved to the device where it has room.
        stored: `precision` and `memory_format` that the store was begun with, which are used again;
            None to choose them.
        emit: Receives events.
    """
    runtime = _runtime(study, stored, emit)
    opened.train.keep_on(runtime.device)
    return Context(
        study=study, tasks=opened.tasks, train=opened.train, validation=opened.validation,
        test=opened.test, runtime=runtime, data=opened.description,
    )  # fmt: skip


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


def _check_labels(parts: Mapping[str, SplitData], tasks: Mapping[str, Task], pack: Pack) -> None:
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
        f"{pack.name} must have labels of every task in every part, found frames with labels: "
        f"{shown}. Leave {' and '.join(lacking)} out of the study's tasks, or take other frames: "
        "data.validation, data.validation_seed, data.train_frames, data.test_frames"
    )


def _labelled(part: SplitData, task: Task, name: str, *, most: int) -> int:
    """Count the frames of a part that have a labelled pixel of a task, up to `most`."""
    count = 0
    for position in range(len(part)):
        labels = part.labels(position, name)
        if bool(labelled_frames(labels[None], task.unknown_value)):
            count += 1
            if count == most:
                break
    return count


def _runtime(study: Study, stored: Mapping[str, str] | None, emit: Emit) -> Runtime:
    training = study.training
    if stored:
        return resolve_runtime(stored["precision"], stored["memory_format"])
    runtime = resolve_runtime(training.precision, training.memory_format)
    if training.memory_format == "auto":
        runtime = measure_memory_format(
            lambda: build_model(study, MULTI_TASK, pretrained=False),
            (training.batch_size, 3, *study.protocol.size),
            runtime,
        )
    emit(Log(f"computing on {runtime.device}, {runtime.precision}, {runtime.memory_format}"))
    return runtime


def _labelled_fields(
    pack: Pack, fields: Sequence[str], frames: Sequence[int]
) -> NDArray[np.bool_] | None:
    """Which frames of the training part have labels of which field; None if all have all."""
    columns = [pack.labelled("train", field) for field in fields]
    known = [column[frames] for column in columns if column is not None]
    if len(known) < len(columns) or all(column.all() for column in known):
        return None
    return np.stack(known, 1)


def _description(pack: Pack, parts: Mapping[str, SplitData]) -> dict[str, object]:
    counts = {name: len(part) for name, part in parts.items()}
    described = {"pack": pack.name, "sha256": pack.digest, **counts}
    labelled = {name: part.labelled for name, part in parts.items()}
    if any(count < counts[name] for name in parts for count in labelled[name].values()):
        described["labelled"] = labelled
    return {**described, "notes": list(pack.manifest.notes)}
