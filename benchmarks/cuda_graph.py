"""Epochs of training with steps recorded as CUDA graphs against the same without.

Frames are random numbers at the sizes of `nyud-small`, labels included.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import gatesearch as gs
from benchmarks.figure import Figure
from benchmarks.loading import random_pack
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import Runtime, SplitData, Trainer, TrainingData, resolve_runtime
from gatesearch.training.weightings import build_weighting

ROUNDS = 3
EPOCHS = 3  # the first of which records


def measure() -> list[Figure]:
    if not torch.cuda.is_available():
        print("cuda_graph: skipped, needs a CUDA device", file=sys.stderr)
        return []
    study = gs.load_study("nyud-small", [f"training.epochs={EPOCHS}"])
    runtime = resolve_runtime("auto", "nhwc")
    with tempfile.TemporaryDirectory() as folder:
        pack = random_pack(study, Path(folder) / "random", train=512)
        frames = SplitData(
            pack, "train", indices=range(512), tasks=build_tasks(study.tasks),
            size=study.protocol.size,
        )  # fmt: skip
    frames.keep_on(runtime.device)
    figures = []
    for method in ("stl", "mtl", "cross_stitch", "mtan", "compact"):
        pairs = [
            (
                epoch_seconds(study, method, frames, replace(runtime, graphs=True)),
                epoch_seconds(study, method, frames, replace(runtime, graphs=False)),
            )
            for _ in range(ROUNDS)
        ]
        ratio = statistics.median(a / b for a, b in pairs)
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        detail = f"{1e3 * ours:.0f} ms against {1e3 * theirs:.0f} ms, 32 steps"
        figures.append(Figure(f"epoch of {method}, recorded", ratio, 1.0, "x", detail))
    return figures


def epoch_seconds(study: Study, method: str, frames: SplitData, runtime: Runtime) -> float:
    """Of the last epoch of a training; `compact` has half of all gates open."""
    model = gs.build_model(study, "interrogate" if method == "compact" else method, seed=0)
    if isinstance(model, GatedSupernet):
        model.open_shares(torch.full((len(model.tasks),), 0.5))
        model = extract(model)
    ends: list[float] = []
    data = TrainingData(frames, None, frames.tasks)
    Trainer(
        runtime.place(model), data, spec=study.training, runtime=runtime, seed=0,
        weighting=build_weighting(
            "uniform", dict.fromkeys(frames.tasks, 1.0), device=runtime.device
        ),
        on_epoch=lambda epoch, values: ends.append(time.perf_counter()),
    ).run()  # fmt: skip
    return ends[-1] - ends[-2]
