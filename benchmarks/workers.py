"""Trials per hour: two processes on two cores against one process on one core, and on both."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figure import Figure
from gatesearch.store.opening import read_store

BAR = 1 / 1.7
TRIALS = 6


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        _run(folder, "start", workers=1, threads=2, trials=0)
        hours = {
            (workers, threads): _run(folder, "start", workers, threads, TRIALS)
            for workers, threads in ((2, 1), (1, 1), (1, 2))
        }
    both = hours[2, 1]
    return [
        Figure(
            f"two workers over one, {threads} thread(s)", both / alone, BAR, "x",
            f"time of {TRIALS} trials of scenes: {both:.0f} s and {alone:.0f} s, start-up included",
        )
        for (workers, threads), alone in hours.items()
        if workers == 1
    ]  # fmt: skip


def _run(folder: str, start: str, workers: int, threads: int, trials: int) -> float:
    """Seconds of so many trials, on a copy of a store that has its baselines."""
    out = Path(folder) / (start if trials == 0 else f"{workers}-{threads}")
    if trials:
        subprocess.run(["cp", "-r", Path(folder) / start, out], check=True)
    command = [sys.executable, "-m", "gatesearch", "run", "--study", "scenes", "--methods", "stl"]
    command += ["--n-trials", str(trials), "--data", folder, "--out", str(out), "--reports", folder]
    command += ["--workers", str(workers), "--set", "report_frames=0"]
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert len(read_store(out).trials) == trials
    return time.perf_counter() - begun
