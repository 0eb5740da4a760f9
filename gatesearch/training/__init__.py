"""Training and evaluation of any network that maps an image batch to a dict of predictions."""

from gatesearch.training.batchnorm import recompute_statistics
from gatesearch.training.checkpoint import Checkpoint, Checkpoints, Phase, Preempted
from gatesearch.training.evaluate import evaluate, predict
from gatesearch.training.frames import Frames, carve
from gatesearch.training.history import History
from gatesearch.training.loop import TrainingError, train
from gatesearch.training.ranks import RankError, Ranks, launch
from gatesearch.training.runtime import Runtime, measure_memory_format, resolve_runtime

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Frames",
    "History",
    "Phase",
    "Preempted",
    "RankError",
    "Ranks",
    "Runtime",
    "TrainingError",
    "carve",
    "evaluate",
    "launch",
    "measure_memory_format",
    "predict",
    "recompute_statistics",
    "resolve_runtime",
    "train",
]
