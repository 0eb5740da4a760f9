"""Damage single files of a finished run in 2,000 ways, and count what was not caught.

The suite tries 300 of these cases; see `tests/end_to_end/damage.py` for what counts as bad.
"""

import os
import subprocess
import sys
import tempfile

from benchmarks.figure import Figure

CASES = 2000


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        # A process of its own, because cases fork it: it must not have started any thread.
        done = subprocess.run(
            [sys.executable, "-m", "tests.end_to_end.damage", folder, "--count", str(CASES)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    print(done.stdout, file=sys.stderr)
    return [Figure("damaged files not caught", int(last.split()[0]), 0, "", f"of {CASES} cases")]
