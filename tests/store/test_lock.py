"""Who holds a study: one of two, by name, and nobody once the process is dead."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from gatesearch.errors import DataError, StudyRefusedError
from gatesearch.store.lock import LOCK, advisory_lock, holder, locked
from gatesearch.store.server import server_url

HOLD = """
import sys
from pathlib import Path
from gatesearch.store.lock import advisory_lock, locked
with advisory_lock(*sys.argv[1:]) if len(sys.argv) > 2 else locked(Path(sys.argv[1])):
    print("held", "torch" in sys.modules, "optuna" in sys.modules, flush=True)
    sys.stdin.read()
"""

# Both children are told one instant of the machine's clock, try then, and say who got in.
RACE = """
import os, sys, time
from pathlib import Path
from gatesearch.errors import StudyRefusedError
from gatesearch.store.lock import locked
for attempt in range(int(sys.argv[2])):
    folder = Path(sys.argv[1]) / str(attempt)
    print("ready", flush=True)
    instant = float(sys.stdin.readline())
    while time.monotonic() < instant:
        pass
    try:
        with locked(folder):
            print("won", os.getpid(), flush=True)
            sys.stdin.readline()
    except StudyRefusedError as error:
        print("lost", error, flush=True)
        sys.stdin.readline()
"""


@contextmanager
def process(code, *arguments):
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def holding(*arguments):
    with process(HOLD, *arguments) as started:
        assert started.stdout.readline() == "held False False\n"
        yield started


def gone(started, number=signal.SIGKILL):
    started.send_signal(number)
    started.wait()


def test_the_second_is_told_who_holds_it_until_it_is_dead(tmp_path) -> None:
    with holding(tmp_path) as other:
        named = holder(tmp_path)
        assert named is not None
        assert (named.pid, named.host) == (other.pid, socket.gethostname())
        said = rf"in use by process {other.pid} on {named.host} since {named.started[:10]}"
        with pytest.raises(StudyRefusedError, match=said) as refused, locked(tmp_path):
            pytest.fail("held twice")
        assert refused.value.code == 4
        gone(other)
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()
    assert holder(tmp_path) is None
    assert (tmp_path / LOCK).exists()


def test_who_asks_does_not_stand_in_the_way(tmp_path) -> None:
    asking = f"""
from pathlib import Path
from gatesearch.store.lock import holder
print("asking", flush=True)
while True:
    holder(Path({str(tmp_path)!r}))
"""
    with process(asking) as other:
        other.stdout.readline()
        for _ in range(100):
            with locked(tmp_path):
                assert holder(tmp_path).pid == os.getpid()
        assert other.poll() is None


def test_nobody_holds_what_is_not_there(tmp_path) -> None:
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_holder_of_unknown_name_still_holds(tmp_path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_text("process 7 on elsewhere since ever\n")
        assert holder(tmp_path).pid == 0
        with pytest.raises(StudyRefusedError, match="in use by another process"), locked(tmp_path):
            pytest.fail("held twice")


def test_a_forked_child_does_not_outlive_the_lock(tmp_path) -> None:
    forking = f"""
import os, sys, time
from pathlib import Path
from gatesearch.store.lock import locked
with locked(Path({str(tmp_path)!r})):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
"""
    with process(forking) as parent:
        child = int(parent.stdout.readline())
        try:
            assert holder(tmp_path).pid == parent.pid
            gone(parent)
            deadline = time.monotonic() + 30  # the child lets go as soon as it first runs
            while holder(tmp_path) is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert holder(tmp_path) is None
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.slow("processes")
def test_of_two_at_the_same_instant_one_wins(tmp_path) -> None:
    pairs = 20
    with process(RACE, tmp_path, pairs) as one, process(RACE, tmp_path, pairs) as two:
        for _ in range(pairs):
            for each in (one, two):
                assert each.stdout.readline() == "ready\n"
            instant = time.monotonic() + 0.02
            for each in (one, two):
                each.stdin.write(f"{instant}\n")
                each.stdin.flush()
            said = [each.stdout.readline() for each in (one, two)]
            assert sorted(line.split()[0] for line in said) == ["lost", "won"]
            winner = next(line.split()[1] for line in said if line.startswith("won"))
            loser = next(line for line in said if line.startswith("lost"))
            assert f"in use by process {winner} on " in loser
            for each in (one, two):
                each.stdin.write("\n")
                each.stdin.flush()


def test_a_folder_that_cannot_be_made_names_the_cure(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(DataError, match=r"cannot write .*; name another folder with --out"):  # noqa: SIM117
            with locked(folder):
                pytest.fail("held")


def test_a_full_disk_names_the_cure(tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gatesearch.store.lock.os.pwrite", full)
    with pytest.raises(DataError, match="No space left on device; name another"), locked(tmp_path):
        pytest.fail("held")


def test_one_process_holds_a_name_on_a_server(postgres_url) -> None:
    with holding(postgres_url, "scenes") as other:
        said = rf"'scenes' on .* is in use by process {other.pid} on {socket.gethostname()} since 2"
        with pytest.raises(StudyRefusedError, match=said), advisory_lock(postgres_url, "scenes"):
            pytest.fail("held twice")
        with advisory_lock(postgres_url, "nyud"), holding(postgres_url, "pascal"):
            pass
        gone(other)
    until = time.monotonic() + 10
    while True:
        try:
            with advisory_lock(postgres_url, "scenes"):
                return
        except StudyRefusedError:
            assert time.monotonic() < until


def test_optuna_asks_and_tells_on_a_server_that_is_held(postgres_url) -> None:
    import optuna

    with advisory_lock(postgres_url, "asked"):
        storage = optuna.storages.RDBStorage(
            server_url(postgres_url).render_as_string(hide_password=False)
        )
        study = optuna.create_study(study_name="asked", storage=storage)
        for number in range(3):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1))
            assert trial.number == number
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
        storage.engine.dispose()


def test_a_server_that_is_not_there(tmp_path) -> None:
    url = f"postgresql://me:secret@/postgres?host={tmp_path}"
    with pytest.raises(DataError, match="Start the server or mend its URL") as caught:  # noqa: SIM117
        with advisory_lock(url, "scenes"):
            pytest.fail("held")
    assert "secret" not in str(caught.value)
