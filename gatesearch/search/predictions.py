"""Write predictions on a few test frames, with their labels, for the report."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.files import FileRefusedError, write_atomic
from gatesearch.methods import Context
from gatesearch.results import Result
from gatesearch.store.predictions import read_predictions
from gatesearch.store.store import PREDICTIONS
from gatesearch.training import predict
from gatesearch.trials.kept_networks import load_network


def draw_predictions(results: Sequence[Result], context: Context, *, out: Path) -> None:
    """Write `predictions.npz`: frames spread over the test part, labels, and predictions.

    Predictions that the file already has of the same frames and seed are not computed again.

    Args:
        results: Networks to predict with.
        context: Study, data, tasks and device.
        out: The store's folder.
    """
    count = min(context.study.report_frames, len(context.test))
    if count == 0:
        return
    path = out / PREDICTIONS
    positions = torch.tensor([(2 * i + 1) * len(context.test) // (2 * count) for i in range(count)])
    batch = context.test.batch(positions)
    earlier = _earlier(path)
    arrays = {"image": _array(batch["image"]), "seed": np.array(context.study.seed)}
    arrays |= {f"truth.{task}": _array(batch[task]) for task in context.tasks}
    same_frames = all(
        name in earlier and np.array_equal(earlier[name], array) for name, array in arrays.items()
    )
    for result in results:
        keys = {task: f"{result.name}.{task}" for task in context.tasks}
        if same_frames and all(key in earlier for key in keys.values()):
            arrays |= {key: earlier[key] for key in keys.values()}
            continue
        network = load_network(result, context, out=out)
        predictions = predict(network, batch["image"], context.tasks, runtime=context.runtime)
        arrays |= {keys[task]: _array(tensor) for task, tensor in predictions.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def _array(tensor: Tensor) -> NDArray[Any]:
    """Convert a tensor to the form that the report reads: channels last, in half precision."""
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)
        if tensor.dtype == torch.float32:
            tensor = tensor.half()
    return tensor.contiguous().numpy()


def _earlier(path: Path) -> dict[str, NDArray[Any]]:
    """Read what was written before; nothing where the file is missing or damaged."""
    try:
        return read_predictions(path)
    except (OSError, FileRefusedError):
        return {}
