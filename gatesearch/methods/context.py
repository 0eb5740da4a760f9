"""What all trainings of a run share: data, tasks, runtime. Made once a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatesearch.cost import LatencyTable
from gatesearch.datasets import DATASETS, Pack, ensure_pack
from gatesearch.errors import DataError, UsageError, unknown
from gatesearch.methods import build_model
from gatesearch.study import Study
from gatesearch.tasks import TASKS, Task, build_tasks
from gatesearch.training import (
    Frames,
    Runtime,
    measure_memory_format,
    resolve_runtime,
    split_validation,
)
from gatesearch.training.augment import augment
from gatesearch.training.split_data import Batch, spread

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Stopwatch:
    """How latency is measured where a budget bounds it.

    Attributes:
        runtime: Device and memory format.
        table: Measured layers of the study's supernet.
    """

    runtime: Runtime
    table: LatencyTable


@dataclass(frozen=True)
class Context:
    """A study ready to train on.

    Attributes:
        study: The definition.
        tasks: Task name -> task.
        train: Training part, without the validation part.
        validation: Carved from the official training part; every choice is made on it.
        test: The official test part.
        runtime: Device, precision, memory format.
        data: Digest of what was read, for the store.
        stopwatch: For budgets of latency; None without one.
    """

    study: Study
    tasks: dict[str, Task]
    train: Frames
    validation: Frames
    test: Frames
    runtime: Runtime
    data: dict[str, Any]
    stopwatch: Stopwatch | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Task -> ω_t."""
        return {name: spec.weight for name, spec in self.study.tasks.items()}

    def seen(self, method: str) -> Callable[[Batch], Tensor]:
        """Batch -> its images augmented as the method trains, by draws that are always the same."""
        generator = torch.Generator().manual_seed(0)
        options = self.study.training_of(method).augment.model_dump()

        def images(batch: Batch) -> Tensor:
            image = {"image": batch["image"]}
            return augment(self.runtime.tensors(image), {}, generator=generator, **options)["image"]

        return images

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """One image."""
        return (1, 3, *self.study.protocol.size)


def check_dataset(study: Study) -> None:
    """Refuse a study whose data set nobody can read.

    Raises:
        UsageError: Unknown data set.
    """
    name = study.data.dataset
    if name not in DATASETS:
        hint = unknown("data set", name, DATASETS)
        raise UsageError(f"{hint}; `gatesearch flops` needs no data")


def open_context(study: Study, *, data: Path, stored: dict[str, str] | None, emit: Emit) -> Context:
    """Open a study's data and choose its runtime.

    Args:
        study: The definition.
        data: Folder of packs.
        stored: Precision and memory format that the store was begun with; they are kept.
        emit: Receives events.

    Raises:
        DataError: Data missing, damaged, or without labels for a task.
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
    chosen = spread(pack.frames("train"), spec.train_frames)
    train, validation = split_validation(
        len(chosen), validation=spec.validation, seed=spec.validation_seed
    )
    test = spread(pack.frames("test"), spec.test_frames)
    size = study.protocol.size
    parts: dict[str, Any] = {
        "train": Frames(pack, "train", indices=[chosen[i] for i in train], tasks=tasks, size=size),
        "validation": Frames(
            pack, "train", indices=[chosen[i] for i in validation], tasks=tasks, size=size
        ),
        "test": Frames(pack, "test", indices=test, tasks=tasks, size=size),
    }
    if len(parts["train"]) < study.training.batch_size:
        raise DataError(
            f"training.batch_size is {study.training.batch_size} but only {len(parts['train'])} "
            "frames are left to train on; lower it, or raise data.train_frames"
        )
    digest = _digest(pack, {name: len(part) for name, part in parts.items()})
    runtime = _runtime(study, stored, emit)
    parts["train"].keep_on(runtime.device)
    return Context(study=study, tasks=tasks, runtime=runtime, data=digest, **parts)


def _runtime(study: Study, stored: dict[str, str] | None, emit: Emit) -> Runtime:
    asked = study.training
    if stored is not None:
        return resolve_runtime(stored["precision"], stored["memory_format"])
    runtime = resolve_runtime(asked.precision, asked.memory_format)
    if asked.memory_format == "auto":
        runtime = measure_memory_format(
            lambda: build_model(study, "mtl", pretrained=False),
            (asked.batch_size, 3, *study.protocol.size),
            runtime,
        )
    message = f"{runtime.device}, {runtime.precision}, {runtime.memory_format}"
    emit({"event": "log", "message": f"computing on {message}"})
    return runtime


def _digest(pack: Pack, counts: dict[str, int]) -> dict[str, Any]:
    return {"pack": pack.name, "sha256": pack.digest, **counts, "notes": list(pack.manifest.notes)}


def progress(emit: Emit, stage: str, done: int, total: int, unit: str) -> None:
    """Tell how far a stage is."""
    if total:
        emit(
            {
                "event": "progress", "stage": stage, "done": min(done, total), "total": total,
                "unit": unit, "message": "",
            }
        )  # fmt: skip
