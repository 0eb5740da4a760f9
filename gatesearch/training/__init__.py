"""Training and evaluation of any network that maps an image batch to a dict of predictions."""

from gatesearch.training.batchnorm import recompute_statistics
from gatesearch.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    PhaseCheckpoints,
    Preempted,
)
from gatesearch.training.distributed import RankError, Ranks, launch
from gatesearch.training.evaluate import Figures, evaluate, measure, predict
from gatesearch.training.history import History
from gatesearch.training.hooks import Hooks
from gatesearch.training.mixed_data import MixedData
from gatesearch.training.optimizer import ParameterGroup, rate_decay
from gatesearch.training.runtime import Runtime, measure_memory_format, resolve_runtime
from gatesearch.training.split_data import FrameData, SplitData, TrainingData
from gatesearch.training.trainer import Trainer, TrainingError
from gatesearch.training.turns import Turn
from gatesearch.training.validation_split import split_validation

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Figures",
    "FrameData",
    "History",
    "Hooks",
    "MixedData",
    "ParameterGroup",
    "PhaseCheckpoints",
    "Preempted",
    "RankError",
    "Ranks",
    "Runtime",
    "SplitData",
    "Trainer",
    "TrainingData",
    "TrainingError",
    "Turn",
    "evaluate",
    "launch",
    "measure",
    "measure_memory_format",
    "predict",
    "rate_decay",
    "recompute_statistics",
    "resolve_runtime",
    "split_validation",
]
