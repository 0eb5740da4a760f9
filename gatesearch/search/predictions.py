"""Write predictions on a few test frames, with their labels, for the report.

Tasks whose labels are no pictures are left out.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.answers import ANSWERS, complete_names
from gatesearch.drawing import DRAWINGS, OVERLAYS
from gatesearch.errors import DataError, UsageError, unknown
from gatesearch.files import FileRefusedError, write_atomic
from gatesearch.methods import Context
from gatesearch.results import Result
from gatesearch.store.predictions import read_predictions
from gatesearch.store.store import PREDICTIONS
from gatesearch.tasks import Task
from gatesearch.training import FrameData, predict
from gatesearch.trials.kept_networks import load_network


def check_frames(test: FrameData, tasks: Mapping[str, Task], *, count: int) -> None:
    """Show the labels of the frames that the report will show, before anything is trained.

    Args:
        test: The test part.
        tasks: Task name -> task.
        count: The study's `report_frames`.

    Raises:
        UsageError: A kind of task names a drawing that there is not.
        DataError: The labels cannot be drawn.
    """
    if count == 0:
        return
    batch = test.batch(_positions(test, count))
    for name, task in _drawn(tasks).items():
        if task.drawing not in DRAWINGS and task.drawing not in ANSWERS:
            hint = unknown(f"drawing of task {name}", task.drawing, [*DRAWINGS, *ANSWERS])
            raise UsageError(f"{hint}; mend `drawing` of its kind, or set report_frames = 0")
        labels = _shown(task, batch[name])
        try:
            _show(task, labels, _array(batch["image"]))
        except Exception as error:  # Of any kind: labels and drawings may be a user's own.
            raise DataError(
                f"labels of {name} on the {len(labels)} test frames of the report must be drawable "
                f"as '{task.drawing}', found {type(error).__name__}: {error}; set report_frames = "
                "0, or mend the labels"
            ) from error


def _show(task: Task, labels: NDArray[Any], images: NDArray[np.uint8]) -> None:
    """Draw labels, or say them in words, as the report will."""
    if task.drawing in DRAWINGS:
        drawing = DRAWINGS[task.drawing]
        limits = drawing.limits_of(labels)
        for frame in labels:
            drawing.draw(frame, limits)
        return
    answer = ANSWERS[task.drawing]
    names = complete_names(task.output_names, task.channels)
    for frame, image in zip(labels, images, strict=True):
        answer.rows(frame, [], names, task.unit)
        if task.drawing in OVERLAYS:
            OVERLAYS[task.drawing].paint(frame, image)


def draw_predictions(results: Sequence[Result], context: Context, *, out: Path) -> None:
    """Write `predictions.npz`: frames spread over the test part, labels, and predictions.

    Predictions that the file already has of the same frames and seed are not computed again.

    Args:
        results: Networks to predict with.
        context: Study, data, tasks and device.
        out: The store's folder.
    """
    study = context.study
    if study.report_frames == 0:
        return
    path = out / PREDICTIONS
    batch = context.test.batch(_positions(context.test, study.report_frames))
    earlier = _earlier(path)
    arrays = {"image": _array(batch["image"]), "seed": np.array(study.seed)}
    tasks = _drawn(context.tasks)
    arrays |= {f"truth.{name}": _shown(task, batch[name]) for name, task in tasks.items()}
    same_frames = all(
        name in earlier and _equal(earlier[name], array) for name, array in arrays.items()
    )
    for result in results:
        keys = {task: f"{result.name}.{task}" for task in tasks}
        if same_frames and all(key in earlier for key in keys.values()):
            arrays |= {key: earlier[key] for key in keys.values()}
            continue
        network = load_network(result, context, out=out)
        # No more at a time than training and evaluation had room for.
        parts = [
            predict(network, images, tasks, runtime=context.runtime)
            for images in batch["image"].split(study.training.batch_size)
        ]
        arrays |= {
            keys[name]: _shown(task, torch.cat([part[name] for part in parts]))
            for name, task in tasks.items()
        }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def _drawn(tasks: Mapping[str, Task]) -> dict[str, Task]:
    return {name: task for name, task in tasks.items() if task.drawing}


def _positions(test: FrameData, count: int) -> Tensor:
    """Spread positions over the test part: `count` of them, or all where it has fewer."""
    count = min(count, len(test))
    return torch.tensor([(2 * i + 1) * len(test) // (2 * count) for i in range(count)])


def _array(tensor: Tensor) -> NDArray[Any]:
    """Convert a tensor to the form that the report reads.

    Dense ones have their channels last, in half precision; numbers per image are (B, n).
    """
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)
        if tensor.dtype == torch.float32:
            tensor = tensor.half()
    return tensor.contiguous().numpy()


def _shown(task: Task, values: Tensor) -> NDArray[Any]:
    """Convert labels or decoded predictions of a task; see `_array`."""
    return _array(values.reshape(len(values), -1) if task.drawing in ANSWERS else values)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Tell whether two arrays of numbers are equal; NaN, of an absent label, equals NaN."""
    return np.array_equal(a, b, equal_nan=b.dtype.kind == "f")


def _earlier(path: Path) -> dict[str, NDArray[Any]]:
    """Read what was written before; nothing where the file is missing or damaged."""
    try:
        return read_predictions(path)
    except (OSError, FileRefusedError):
        return {}
