"""Backups of the database: made beside a writer, sound or not at all, and put back."""

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from gatesearch.errors import DataError, StudyRefusedError, UsageError
from gatesearch.store import backup as module
from gatesearch.store.backup import (
    BACKUPS,
    DATABASE,
    Backups,
    back_up,
    count_trials,
    damage,
    last_backup,
    restore,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with a trial in each state, one never begun, and a study of patterns beside."""
    folder = tmp_path_factory.mktemp("made")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / DATABASE}")
    free = optuna.create_study(study_name="tiny", storage=storage)
    bound = optuna.create_study(study_name="tiny 1.3xMTL", storage=storage)
    patterns = optuna.create_study(study_name="tiny patterns seed 0", storage=storage)
    states = optuna.trial.TrialState
    for study, state in [
        (free, states.COMPLETE), (free, states.FAIL), (free, states.PRUNED),
        (bound, states.COMPLETE), (patterns, states.COMPLETE),
    ]:  # fmt: skip
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("metrics" if study is patterns else "trial", 0)
        trial.set_user_attr("figures", {"curves": list(range(2000))})
        study.tell(trial, 1.0 if state == states.COMPLETE else None, state=state)
    free.ask().set_user_attr("trial", 4)
    free.tell(free.ask(), state=states.FAIL)
    storage.engine.dispose()
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copy(made / DATABASE, tmp_path)
    return tmp_path


def rows(path):
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def add(path, text="x"):
    """One more attribute of the study, committed."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, '1')",
            (text,),
        )


def test_a_backup_holds_the_database_and_the_one_before_is_kept(folder) -> None:
    first = rows(folder / DATABASE)
    assert back_up(folder) == folder / "study.db.backup"
    add(folder / DATABASE)
    back_up(folder)
    assert rows(folder / BACKUPS[0]) == rows(folder / DATABASE) != first
    assert rows(folder / BACKUPS[1]) == first
    assert sorted(contents(folder)) == [DATABASE, *BACKUPS]


def test_trials_are_counted_by_state_those_of_every_search(folder) -> None:
    expected = {"complete": 2, "failed": 1, "stopped": 1, "running": 1}
    assert count_trials(folder / DATABASE) == expected
    back_up(folder)
    found = last_backup(folder)
    assert (found.path, found.trials) == (folder / BACKUPS[0], 4)
    assert abs(found.made.timestamp() - (folder / DATABASE).stat().st_mtime) < 3600


@pytest.mark.parametrize("size", [0, 1, 99, 100, 4095, 4096, 4097, 0.3, 0.5, 0.9, -4096, -1])
def test_a_file_cut_short_is_damage(folder, size) -> None:
    path = folder / DATABASE
    whole = path.stat().st_size
    os.truncate(path, int(size * whole) if isinstance(size, float) else size % whole)
    assert damage(path) is not None
    assert damage(path, thorough=False) is not None


GARBAGE = {
    "notes": lambda data: b"precious notes" * 400,
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: random.Random(0).randbytes(len(data)),
    "noise behind a header": lambda data: data[:100] + random.Random(1).randbytes(len(data) - 100),
    "overwritten inside": lambda data: data[:4096] + b"\xa5" * 8192 + data[12288:],
    "schema not of UTF-8": lambda data: data.replace(b"CREATE TABLE", b"CREATE \xff\xfeBLE"),
    "overwritten inside JSON": lambda data: data.replace(b", 77, 78,", b", 7\x00, \xa58,"),
    "cut off inside JSON": lambda data: data.replace(b", 77, 78,", b", 77\x00 78,"),
    "zeros from the second page on": lambda data: data[:4096] + bytes(len(data) - 4096),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_damage_and_left_as_it_is(folder, kind) -> None:
    path = folder / DATABASE
    path.write_bytes(GARBAGE[kind](path.read_bytes()))
    before = contents(folder)
    assert damage(path)
    assert contents(folder) == before


def test_any_page_lost_is_damage_or_harmless(folder) -> None:
    path = folder / DATABASE
    data = path.read_bytes()
    dump = rows(path)
    for page in range(0, len(data), 4096):
        path.write_bytes(data[:page] + bytes(4096) + data[page + 4096 :])
        assert damage(path) or rows(path) == dump


def test_what_is_not_there_is_damage(tmp_path) -> None:
    assert damage(tmp_path / DATABASE) == "it is missing"
    (tmp_path / DATABASE).touch()
    assert damage(tmp_path / DATABASE) == "it is empty"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StudyRefusedError, match="must be a regular file, found a folder"):
        damage(tmp_path / "folder")


def test_a_sound_database_is_left_as_it_is(folder) -> None:
    before = contents(folder)
    for thorough in (True, False):
        assert damage(folder / DATABASE, thorough=thorough) is None
    assert contents(folder) == before


def test_a_locked_database_is_sound(folder, monkeypatch) -> None:
    connect = sqlite3.connect
    with closing(connect(folder / DATABASE, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"timeout": 0}))
        assert damage(folder / DATABASE) is None


# Commits pairs until it is killed; a small cache spills, so that the file is torn in between.
WRITER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(f"PRAGMA journal_mode={sys.argv[2]}")
database.execute("PRAGMA cache_size=2")
database.execute("CREATE TABLE IF NOT EXISTS pairs (n INTEGER, half INTEGER, filling TEXT)")
print("writing", flush=True)
n = database.execute("SELECT coalesce(max(n), 0) FROM pairs").fetchone()[0]
while True:
    n += 1
    time.sleep(float(sys.argv[3]))
    database.execute("BEGIN")
    for half in (0, 1):
        database.execute("INSERT INTO pairs VALUES (?, ?, ?)", (n, half, "y" * 30_000))
    database.execute("COMMIT")
    if n % 20 == 0:
        database.execute("DELETE FROM pairs WHERE n < ?", (n,))
"""


def writing(path, mode, *, pause=0.0):
    command = [sys.executable, "-c", WRITER, str(path), mode, str(pause)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert started.stdout.readline() == b"writing\n"
    return started


def whole_pairs(path):
    with closing(sqlite3.connect(path)) as database:
        odd = "SELECT n FROM pairs GROUP BY n HAVING count(*) <> 2"
        return database.execute(odd).fetchall() == []


@pytest.mark.slow("processes")
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_killed_writer_leaves_no_damage(folder, mode) -> None:
    path = folder / DATABASE
    left_behind = 0
    for attempt in range(12):
        with writing(path, mode) as writer:
            try:
                writer.wait(0.02 + 0.011 * attempt)
            except subprocess.TimeoutExpired:
                writer.send_signal(signal.SIGKILL)
        left = contents(folder)
        left_behind += len(left) > 1
        assert damage(path) is None
        shared = {f"{DATABASE}-shm"}  # memory that processes share, no content
        kept = contents(folder)
        assert {n: kept[n] for n in kept.keys() - shared} == {
            n: left[n] for n in left.keys() - shared
        }
        assert whole_pairs(path)
    assert left_behind, "no moment was hit at which a journal is needed"


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_backup_beside_a_writer_is_of_one_moment(folder, mode) -> None:
    with writing(folder / DATABASE, mode, pause=0.02) as writer:
        try:
            for _ in range(5):
                assert whole_pairs(back_up(folder))
                assert damage(folder / BACKUPS[0]) is None
        finally:
            writer.kill()


def test_a_damaged_database_replaces_no_backup(folder) -> None:
    back_up(folder)
    data = (folder / DATABASE).read_bytes()
    for make in GARBAGE.values():
        (folder / DATABASE).write_bytes(make(data))
        before = contents(folder)
        with pytest.raises(StudyRefusedError, match=r"is damaged .*gatesearch status"):
            back_up(folder)
        assert contents(folder) == before
    assert last_backup(folder).trials == 4


BACKING_UP = """
import sys
from pathlib import Path
from gatesearch.store.backup import back_up
print("going", flush=True)
while True:
    back_up(Path(sys.argv[1]))
"""


def test_there_is_a_sound_backup_whenever_one_is_killed_making_it(folder) -> None:
    back_up(folder)
    for attempt in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", BACKING_UP, str(folder)], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            try:
                process.wait(0.003 * attempt)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert last_backup(folder).trials == 4


def test_backups_keep_their_distance_and_the_end_makes_one(folder) -> None:
    now, warned = [100.0], []
    backups = Backups(folder, minutes=10, warn=warned.append, clock=lambda: now[0])

    def backed_up():
        found = [name for name in BACKUPS if (folder / name).exists()]
        for name in found:
            (folder / name).unlink()
        return bool(found)

    seen = []
    for moment in (100, 101, 699, 700, 1299, 1300):
        now[0] = moment
        backups.after_change()
        seen.append(backed_up())
    backups.close()
    assert seen == [True, False, False, True, False, True]
    assert backed_up()
    assert warned == []


LIMITED = """
import resource, sys
from pathlib import Path
from gatesearch.store.backup import Backups
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
backups = Backups(Path(sys.argv[1]), warn=print, minutes=0)
backups.after_change()
backups.close()
print("goes on")
"""


def test_a_full_disk_is_told_and_the_backup_before_stays(folder) -> None:
    back_up(folder)
    before = contents(folder)
    command = [sys.executable, "-c", LIMITED, str(folder), "50000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "goes on"
    assert all(line.startswith(f"cannot write {folder}/study.db.backup: ") for line in lines[:2])
    assert contents(folder) == before


def test_a_disk_that_fills_while_syncing_is_told(folder, monkeypatch) -> None:
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_sync", full)
    warned = []
    Backups(folder, warn=warned.append).close()
    assert "No space left on device" in warned[0]
    assert list(contents(folder)) == [DATABASE]


def test_a_damaged_database_is_kept_and_the_newest_sound_backup_takes_its_place(folder) -> None:
    back_up(folder)
    add(folder / DATABASE)
    back_up(folder)
    expected = rows(folder / BACKUPS[0])
    wrecked = b"garbage" * 1000
    (folder / DATABASE).write_bytes(wrecked)
    (folder / f"{DATABASE}-journal").write_bytes(b"left behind")
    done = restore(folder)
    assert done.damaged.name.startswith("study.db.damaged-20")
    assert done.damaged.read_bytes() == wrecked
    assert Path(f"{done.damaged}-journal").read_bytes() == b"left behind"
    assert done.backup.path == folder / BACKUPS[0]
    assert not (folder / f"{DATABASE}-journal").exists()
    assert rows(folder / DATABASE) == expected
    assert damage(folder / DATABASE) is None
    with pytest.raises(UsageError, match="is sound, nothing is to be restored"):
        restore(folder)


def test_a_damaged_backup_is_passed_over(folder) -> None:
    expected = rows(folder / DATABASE)
    back_up(folder)
    add(folder / DATABASE)
    back_up(folder)
    (folder / BACKUPS[0]).write_bytes(b"x" * 5000)
    (folder / DATABASE).unlink()
    done = restore(folder)
    assert (done.damaged, done.backup.path) == (None, folder / BACKUPS[1])
    assert rows(folder / DATABASE) == expected


@pytest.mark.parametrize("kind", ["none", "garbage", "another database"])
def test_without_a_sound_backup_nothing_is_touched(folder, kind) -> None:
    if kind == "garbage":
        (folder / BACKUPS[0]).write_bytes(b"x" * 5000)
    elif kind == "another database":
        with closing(sqlite3.connect(folder / BACKUPS[0])) as database:
            database.execute("CREATE TABLE recipes (text)")
    (folder / DATABASE).write_bytes(b"x" * 5000)
    before = contents(folder)
    assert last_backup(folder) is None
    with pytest.raises(DataError, match="no sound backup"):
        restore(folder)
    assert contents(folder) == before
