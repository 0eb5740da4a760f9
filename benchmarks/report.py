"""`gatesearch report` on stores of 40 and of 1,000 trials, the whole process."""

import subprocess
import sys
import tempfile
from pathlib import Path

import gatesearch as gs
from benchmarks.fake_results import add_trial, fake_predictions, make_store
from benchmarks.figure import Figure, seconds
from gatesearch.results import front

BAR_SECONDS = 10.0
TRIALS = (40, 1000)


def measure() -> list[Figure]:
    return [_report(trials) for trials in TRIALS]


def _report(trials: int) -> Figure:
    study = gs.load_study("scenes")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "store"
        store = make_store(study, out)
        for _ in range(trials):
            add_trial(store, study)
        shown = front(store.record())
        fake_predictions(study, out, [*study.methods, *(f"trial {r.trial}" for r in shown)])
        command = [sys.executable, "-m", "gatesearch", "report", "--study", "scenes"]
        command += ["--out", str(out), "--reports", folder]
        taken = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    detail = f"{trials} trials, {len(shown)} on the front"
    return Figure(f"report of a {trials}-trial store", taken, BAR_SECONDS, "s", detail)
