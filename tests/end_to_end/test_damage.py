"""Whatever file of a finished run is damaged, no command crashes, hangs or answers wrongly."""

import os
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.end_to_end

CASES = int(os.environ.get("GATESEARCH_DAMAGES", "4"))


def test_damage_is_refused_or_mended_and_never_taken_for_truth(tmp_path, environment) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.damage", str(tmp_path), "--count", str(CASES)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"0 bad of {CASES}"
