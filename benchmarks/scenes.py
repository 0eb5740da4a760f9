"""`gatesearch run --study scenes --n-trials 6` from nothing: data, baselines, trials, report."""

import os
import subprocess
import sys
import tempfile

from benchmarks.figure import Figure, seconds

BAR_MINUTES = 5.0
BAR_GIB = 2.0
CORES = 2


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gatesearch", "run", "--study", "scenes"]
        command += ["--n-trials", "6", "--data", folder, "--out", f"{folder}/out"]
        command += ["--reports", folder]
        usages = []

        def run() -> None:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_two_cores
            )
            # wait4 alone tells the peak of this child and no other.
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise RuntimeError(f"{' '.join(command)} must end with 0, ended with {status >> 8}")
            usages.append(usage)

        taken = seconds(run)
    detail = f"whole process on {CORES} cores, peak resident memory"
    gib = usages[0].ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    return [
        Figure("scenes, 6 trials and all baselines", taken / 60, BAR_MINUTES, "min", detail),
        Figure("scenes, peak memory", gib, BAR_GIB, "GiB", detail),
    ]


def _two_cores() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
