"""Whatever file of a finished run is damaged, no command crashes, hangs or answers wrongly."""

import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT

CASES, PARTS = 300, 4


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return tmp_path_factory.mktemp("damage")


@pytest.mark.parametrize("part", range(PARTS))
def test_damage_to_any_file_is_refused_or_mended_and_never_taken_for_truth(
    part, trees, environment
):
    count = CASES // PARTS
    numbers = ("--first", str(part * count), "--count", str(count))
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.damage", str(trees), *numbers],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
