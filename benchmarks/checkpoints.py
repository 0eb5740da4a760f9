"""Checkpoints as a share of training, for the supernet of `nyud-small`.

The same steps are timed with a checkpoint after each and with none; a training keeps one every
`execution.checkpoint_minutes`.
"""

import itertools
import tempfile
from pathlib import Path

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.loading import random_pack
from gatesearch.tasks import build_tasks
from gatesearch.training import (
    Checkpoints,
    PhaseCheckpoints,
    SplitData,
    Trainer,
    TrainingData,
    resolve_runtime,
)
from gatesearch.training.weightings import build_weighting

BAR = 2.0
STEPS = 3


def measure() -> list[Figure]:
    study = gs.load_study("nyud-small", [f"training.epochs={STEPS}"])
    runtime, tasks = resolve_runtime("auto", "auto"), build_tasks(study.tasks)
    with tempfile.TemporaryDirectory() as folder:
        pack = random_pack(study, Path(folder) / "random")
        frames = SplitData(
            pack, "train", indices=range(study.training.batch_size), tasks=tasks,
            size=study.protocol.size,
        )  # fmt: skip
    model = runtime.place(gs.build_model(study, "interrogate"))
    numbers = itertools.count()

    def steps(checkpoints: PhaseCheckpoints | None) -> None:
        Trainer(
            model, TrainingData(frames, None, tasks), spec=study.training,
            weighting=build_weighting("uniform", dict.fromkeys(tasks, 1.0)),
            runtime=runtime, seed=0, checkpoints=checkpoints,
        ).run()  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:

        def kept() -> None:
            every = Checkpoints(Path(folder) / str(next(numbers)), identity="", seconds=0.0)
            steps(PhaseCheckpoints(every, "whole", {}))

        _, with_them, without = in_turns(kept, lambda: steps(None), rounds=5)
    one = (with_them - without) / STEPS
    interval = 60 * study.execution.checkpoint_minutes
    detail = f"{1e3 * one:.0f} ms each, one every {interval:.0f} s of training"
    return [Figure("checkpoints in a training", 100 * one / interval, BAR, "%", detail)]
