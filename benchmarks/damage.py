"""Damage single files of a finished run in 2,000 ways, and count what was not caught.

The suite tries 300 of these cases; see `tests/end_to_end/damage.py` for what counts as bad.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.figure import Figure
from tests.end_to_end.damage import bad_cases

CASES = 2000


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        bad = bad_cases(Path(folder), range(CASES), lambda line: print(line, file=sys.stderr))
    return [Figure("damaged files not caught", len(bad), 0, "", f"of {CASES} cases")]
