"""Whatever file of a finished run is damaged, no command crashes, hangs or answers wrongly."""

import os
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.end_to_end

CASES = int(os.environ.get("GATESEARCH_DAMAGES", "6"))


def check(folder, environment, *, first, count):
    numbers = ("--first", str(first), "--count", str(count))
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.damage", str(folder), *numbers],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"0 bad of {count}"


# Two classes, because pytest-xdist gives each to a process of its own.
class TestFirstHalf:
    def test_damage_is_refused_or_mended_and_never_taken_for_truth(self, tmp_path, environment):
        check(tmp_path, environment, first=0, count=CASES // 2)


class TestSecondHalf:
    def test_damage_is_refused_or_mended_and_never_taken_for_truth(self, tmp_path, environment):
        check(tmp_path, environment, first=CASES // 2, count=CASES // 2)
