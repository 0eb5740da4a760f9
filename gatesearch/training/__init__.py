"""Training and evaluation of any network that maps an image batch to a dict of predictions."""

from gatesearch.training.batchnorm import recompute_statistics
from gatesearch.training.checkpoint import Checkpoint, Checkpoints, Phase, Preempted
from gatesearch.training.distributed import RankError, Ranks, launch
from gatesearch.training.evaluate import evaluate, predict
from gatesearch.training.history import History
from gatesearch.training.runtime import Runtime, measure_memory_format, resolve_runtime
from gatesearch.training.split_data import Frames, split_validation
from gatesearch.training.trainer import TrainingError, train

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
    "evaluate",
    "launch",
    "measure_memory_format",
    "predict",
    "recompute_statistics",
    "resolve_runtime",
    "split_validation",
    "train",
]
