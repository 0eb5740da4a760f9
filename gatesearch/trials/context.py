"""Open a study's data and choose its runtime; all trainings of a run share both."""

from collections.abc import Mapping
from pathlib import Path

from gatesearch.datasets import DATASETS, Pack, ensure_pack
from gatesearch.errors import DataError, UsageError, unknown
from gatesearch.events import Emit, Log
from gatesearch.methods import Context, build_model
from gatesearch.results import MULTI_TASK
from gatesearch.study import Study
from gatesearch.tasks import TASKS, build_tasks
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


def open_context(
    study: Study, *, data: Path, stored: Mapping[str, str] | None, emit: Emit
) -> Context:
    """Open a study's data and choose its runtime.

    Args:
        study: The definition.
        data: Folder of packs.
        stored: `precision` and `memory_format` that the store was begun with, which are used again;
            None to choose them.
        emit: Receives events.

    Raises:
        DataError: Data are missing, damaged, without labels for a task, or fewer than a batch.
        UsageError: Unknown data set, or a task whose name and kind do not go together.
    """
    check_dataset(study)
    spec = study.data
    tasks = build_tasks(study.tasks)
    pack = ensure_pack(
        DATASETS[spec.dataset],
        data=data,
        size=study.protocol.size,
        train_frames=spec.train_frames,
        test_frames=spec.test_frames,
        classes=study.tasks["semseg"].classes if "semseg" in study.tasks else None,
        emit=emit,
    )
    for name, task in study.tasks.items():
        if name in TASKS and task.kind != name:
            raise UsageError(
                f"tasks.{name}.kind must be '{name}', as the labels of that name are; "
                f"found '{task.kind}'"
            )
    chosen = spread_evenly(pack.frames("train"), spec.train_frames)
    train_at, validation_at = split_validation(
        len(chosen), validation=spec.validation, seed=spec.validation_seed
    )
    size = study.protocol.size
    train = SplitData(pack, "train", indices=[chosen[i] for i in train_at], tasks=tasks, size=size)
    validation = SplitData(
        pack, "train", indices=[chosen[i] for i in validation_at], tasks=tasks, size=size
    )
    test_at = spread_evenly(pack.frames("test"), spec.test_frames)
    test = SplitData(pack, "test", indices=test_at, tasks=tasks, size=size)
    if len(train) < study.training.batch_size:
        raise DataError(
            f"training.batch_size is {study.training.batch_size} but only {len(train)} "
            "frames are left to train on; lower it, or raise data.train_frames"
        )
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    runtime = _runtime(study, stored, emit)
    train.keep_on(runtime.device)
    return Context(
        study=study, tasks=tasks, train=train, validation=validation, test=test,
        runtime=runtime, data=_digest(pack, counts),
    )  # fmt: skip


def _runtime(study: Study, stored: Mapping[str, str] | None, emit: Emit) -> Runtime:
    training = study.training
    if stored is not None:
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


def _digest(pack: Pack, counts: Mapping[str, int]) -> dict[str, object]:
    return {"pack": pack.name, "sha256": pack.digest, **counts, "notes": list(pack.manifest.notes)}
