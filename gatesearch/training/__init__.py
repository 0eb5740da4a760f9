"""Training and evaluation of any network that maps an image batch to a dict of predictions."""

from gatesearch.training.batchnorm import recompute_statistics
from gatesearch.training.evaluate import evaluate, predict
from gatesearch.training.frames import Frames, carve
from gatesearch.training.loop import History, TrainingError, train
from gatesearch.training.runtime import Runtime, measure_memory_format, resolve_runtime

__all__ = [
    "Frames",
    "History",
    "Runtime",
    "TrainingError",
    "carve",
    "evaluate",
    "measure_memory_format",
    "predict",
    "recompute_statistics",
    "resolve_runtime",
    "train",
]
