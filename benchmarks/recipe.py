"""InterroGate against multi-task learning and Cross-stitch, on real frames, with three seeds.

It is compared with MTL at 1.25 x MTL's FLOPs, where MTL trains so much longer that both trainings
cost the same; and with Cross-stitch at 0.8 x its FLOPs. Trials are the two of `GIVEN`; the best on
the validation part counts, and Δ_MTL is of the test part. `$GATESEARCH_BENCH_EPOCHS` (the study's
own by default) lists the lengths to compare at, as `60,120`: with several, how far a longer
training moves Δ_MTL is a figure too. Stores are kept in `$GATESEARCH_BENCH` (a temporary folder by
default), where a stopped run goes on. `$GATESEARCH_DATA` holds the prepared data.
"""

import itertools
import math
import os
import statistics
import tempfile
from pathlib import Path

import torch

import gatesearch as gs
from benchmarks.figure import Figure
from gatesearch.cost import count_macs
from gatesearch.methods import build_model
from gatesearch.methods.definitions import options_of
from gatesearch.methods.interrogate.method import INTERROGATE
from gatesearch.results import delta, front
from gatesearch.search.run import run
from gatesearch.study import Study
from gatesearch.trials.costs import costs

STUDY = "nyud-small"
SEEDS = (0, 1, 2)
AGAINST_MTL, AGAINST_CROSS_STITCH = 1.25, 0.8
# The study's own, and the best of eight trials of 30 epochs on validation
# (docs/explanation/recipe-figures.md).
GIVEN = """search.first=[
    {lambda_s=3.0, tau={semseg=1.0, depth=0.0, normals=0.0}},
    {lambda_s=3.11, tau={semseg=0.86, depth=0.90, normals=0.49}},
]"""


def measure() -> list[Figure]:
    own = str(gs.load_study(STUDY).training.epochs)
    lengths = [int(n) for n in os.environ.get("GATESEARCH_BENCH_EPOCHS", own).split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(os.environ.get("GATESEARCH_BENCH", temporary))
        data = Path(os.environ.get("GATESEARCH_DATA", str(work / "data")))
        found = {epochs: _gains(epochs, work, data) for epochs in lengths}
    figures = []
    for epochs, gains in found.items():
        for other in ("mtl", "cross_stitch"):
            differences = [ours - theirs for ours, theirs in gains[other]]
            mean, deviation = statistics.mean(differences), statistics.stdev(differences)
            # Met from below: against MTL the mean gain must exceed its deviation.
            value = deviation - mean if other == "mtl" else -mean
            pairs = ", ".join(f"{a:+.2f} / {b:+.2f}" for a, b in gains[other])
            detail = f"{mean:+.2f} ± {deviation:.2f} with {len(SEEDS)} seeds ({pairs})"
            figures.append(
                Figure(f"InterroGate, {epochs} epochs, {other}", value, 0.0, "%", detail)
            )
    for shorter, longer in itertools.pairwise(lengths):
        for column, who in enumerate(("InterroGate", "MTL")):
            before, after = (
                statistics.mean(pair[column] for pair in found[n]["mtl"]) for n in (shorter, longer)
            )
            name = f"{who}, {shorter} -> {longer} epochs"
            figures.append(Figure(name, abs(after - before), 0.5, "%", "Δ_MTL moved"))
    return figures


def _gains(epochs: int, work: Path, data: Path) -> dict[str, list[tuple[float, ...]]]:
    """Other method -> (Δ_MTL of InterroGate, of the other) of each seed, percent."""
    gains: dict[str, list[tuple[float, ...]]] = {"mtl": [], "cross_stitch": []}
    for seed in SEEDS:
        study = _study(epochs, seed)
        out = work / f"recipe-{epochs}-seed{seed}"
        methods = costs(study)
        limits = {
            "mtl": AGAINST_MTL * methods["mtl"].gflops,
            "cross_stitch": AGAINST_CROSS_STITCH * methods["cross_stitch"].gflops,
        }
        options = {"out": out, "data": data, "emit": lambda event: None}
        for limit in limits.values():
            count = len(study.search.first)
            record = run(study, n_trials=count, budgets=[f"{limit:.6g}G"], **options)
        for other, limit in limits.items():
            theirs = next(b for b in record.baselines if b.method == other)
            best = [trial for trial in front(record) if trial.gflops <= limit][-1]
            gains[other].append(tuple(delta(record, r, "test") for r in (best, theirs)))
    return gains


def _study(epochs: int, seed: int) -> Study:
    """The study, in which MTL trains for so many epochs that it costs as much as InterroGate."""
    study = gs.load_study(STUDY, [f"training.epochs={epochs}"])
    warmup, gates = options_of(study, INTERROGATE).phases(epochs)
    with torch.device("meta"):
        supernet = build_model(study, "interrogate", pretrained=False)
    whole = count_macs(supernet, (1, 3, *study.protocol.size), cross_check=False).gflops
    mtl = costs(study, ("mtl",))["mtl"].gflops
    cost = warmup + (gates - warmup) * whole / mtl + (epochs - gates) * AGAINST_MTL
    return gs.load_study(
        STUDY,
        [
            GIVEN, f"training.epochs={epochs}", f"options.mtl.training.epochs={math.ceil(cost)}",
            'methods=["stl", "mtl", "cross_stitch"]',
        ],
    ).model_copy(update={"seed": seed})  # fmt: skip
