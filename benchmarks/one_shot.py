"""One training for the whole front against eight separate searches, on equal terms.

Eight searches, one under each of eight budgets spread evenly from MTL to STL, against eight points
of one supernet: the area that their validation figures dominate, and what their trainings cost.
Stores are kept in `$GATESEARCH_BENCH` (a temporary folder by default), where a stopped run goes on.
`$GATESEARCH_BENCH_STUDIES` names the studies (`scenes`), `$GATESEARCH_DATA` the data's folder, and
`$GATESEARCH_BENCH_SET` keys to change, such as `training.epochs=6 one_shot.epochs=12`.
"""

import math
import os
import tempfile
from pathlib import Path

import gatesearch as gs
from benchmarks.figure import Figure
from gatesearch.results import Result, StudyRecord, delta
from gatesearch.search.run import run
from gatesearch.study import Study

BAR_VOLUME, BAR_COST = 0.97, 0.25
POINTS = 8
TRIALS = 3  # of each separate search
SEEDS = (0, 1, 2)


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(os.environ.get("GATESEARCH_BENCH", temporary))
        data = Path(os.environ.get("GATESEARCH_DATA", str(work / "data")))
        changed = os.environ.get("GATESEARCH_BENCH_SET", "").split()
        figures = []
        for name in os.environ.get("GATESEARCH_BENCH_STUDIES", "scenes").split(","):
            for seed in SEEDS:
                base = gs.load_study(name, changed).model_copy(update={"seed": seed})
                figures += _compared(base, out=work / f"{name}-seed{seed}", data=data)
        return figures


def _compared(study: Study, *, out: Path, data: Path) -> list[Figure]:
    study = study.model_copy(update={"methods": ("stl", "mtl")})
    options = {"out": out, "data": data, "emit": lambda event: None}
    record = run(study, n_trials=0, **options)
    stl, mtl = record.baselines
    for i in range(POINTS):
        share = (i + 0.5) / POINTS
        budget = f"{mtl.gflops + share * (stl.gflops - mtl.gflops):.6g}G"
        run(study, n_trials=TRIALS, budgets=[budget], **options)
    record = run(study.model_copy(update={"tune": ("one_shot",)}), n_trials=POINTS, **options)
    cut = [r for r in record.trials if r.method == "one_shot"]
    separate = [r for r in record.trials if r.method == "interrogate"]
    # Trials share a warm-up, and points their supernet: each counts once.
    starts = {(start.method, start.part): start for start in record.starts}
    costs = [
        sum(r.train_pflops - r.reused_pflops for r in networks) + start.train_pflops
        for networks, start in (
            (cut, starts["one_shot", "supernet"]),
            (separate, starts.get(("interrogate", "warm-up"), Result("", 0))),
        )
    ]
    worst = min(_gain(record, r) for r in (*cut, *separate) if math.isfinite(_gain(record, r)))
    areas = [_area(record, networks, worst, stl.gflops) for networks in (cut, separate)]
    where = f"{study.name} seed {study.seed}"
    detail = (
        f"{areas[0]:.3f} / {areas[1]:.3f} % x GFLOPs above {worst:+.2f} %, {len(cut)} points "
        f"against {len(separate)} trials"
    )
    # A figure is met from below: what is missing of the separate searches' area.
    return [
        Figure(f"front missing, {where}", 1 - areas[0] / areas[1], 1 - BAR_VOLUME, "x", detail),
        Figure(
            f"one-shot training cost, {where}", costs[0] / costs[1], BAR_COST, "x",
            f"{costs[0]:.4f} / {costs[1]:.4f} PFLOPs",
        ),
    ]  # fmt: skip


def _gain(record: StudyRecord, result: Result) -> float:
    return delta(record, result, "validation")


def _area(record: StudyRecord, networks: list[Result], worst: float, most: float) -> float:
    points = [(_gain(record, r), r.gflops) for r in networks if math.isfinite(_gain(record, r))]
    return gs.hypervolume(points, (worst, most), [True, False])
