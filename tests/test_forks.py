"""Command lines in forks are those of fresh processes."""

import os
import signal
import subprocess

import pytest

from tests import forks
from tests.end_to_end.conftest import TINY, CommandLine

pytestmark = pytest.mark.slow("processes")


@pytest.fixture
def cli(tmp_path, environment):
    return CommandLine(tmp_path, environment)


@pytest.mark.parametrize(
    "words", [("studies",), ("run", "--study", "scene"), ("--n",), ("flops", "--study", TINY)]
)
def test_they_print_and_end_as_fresh_ones(cli, words) -> None:
    assert cli(*words) == cli(*words, fresh=True)


def test_they_are_killed_and_waited_for(tmp_path, environment) -> None:
    running = forks.start(("run", "--study", TINY), folder=tmp_path, environment=environment)
    assert running.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.01)
    assert os.getpgid(running.pid) == os.getpgid(0)
    assert os.path.samefile(f"/proc/{running.pid}/cwd", tmp_path)
    running.kill()
    assert running.communicate()[0] == ""
    assert running.wait() == running.poll() == -signal.SIGKILL
    running.send_signal(signal.SIGKILL)  # to nobody


def test_what_is_read_before_a_fork_cannot_be_changed(tmp_path, environment) -> None:
    with pytest.raises(ValueError, match=r"a fork cannot change \['OMP_NUM_THREADS'\]"):
        CommandLine(tmp_path, {**environment, "OMP_NUM_THREADS": "2"})("studies")
