"""How far a search is: what its coordinator tells, and what is found out without it."""

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.errors import DataError, StudyRefusedError, UsageError
from gatesearch.events import Log, Progress
from gatesearch.pareto import pareto_front
from gatesearch.store.backup import DATABASE, back_up
from gatesearch.store.lock import locked
from gatesearch.store.status import BOARD, StatusFile, TrialOutcome, read_status, restore_store


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(tmp_path, clock):
    return StatusFile(
        tmp_path, study="tiny", fingerprint="f00d", budget="1.3xMTL", wanted=10, clock=clock,
        storage="postgresql://server/optuna",
    )  # fmt: skip


def told(folder):
    return json.loads((folder / BOARD).read_text())


def database(folder, *, study="tiny", results=2):
    """A store's tables as far as they are counted."""
    with closing(sqlite3.connect(folder / DATABASE)) as opened, opened:
        opened.executescript(
            """
            CREATE TABLE trials (trial_id INTEGER PRIMARY KEY, state TEXT);
            CREATE TABLE trial_user_attributes (trial_id INTEGER, key TEXT, value_json TEXT);
            CREATE TABLE study_user_attributes (study_id INTEGER, key TEXT, value_json TEXT);
            """
        )
        for number in range(results + 2):
            state = "COMPLETE" if number < results else ["RUNNING", "FAIL"][number - results]
            opened.execute("INSERT INTO trials VALUES (?, ?)", (number, state))
            key = "trial" if state == "RUNNING" else "result"
            row = (number, key if state != "FAIL" else "x", "{}")
            opened.execute("INSERT INTO trial_user_attributes VALUES (?, ?, ?)", row)
        for key, value in [("name", f'"{study}"'), ("baseline/stl/uniform/0", "{}" + " " * 300)]:
            opened.execute("INSERT INTO study_user_attributes VALUES (1, ?, ?)", (key, value))


def test_a_run_tells_its_rate_from_the_first_trial_that_it_ends(board, tmp_path, clock) -> None:
    assert (told(tmp_path)["per_hour"], told(tmp_path)["wanted"]) == (None, 10)
    clock.now += 7200  # baselines are no trials
    board.baselines(2, 2)
    for _ in range(2):  # those that are known count once
        board.search([TrialOutcome(0, "complete", 1.0, 5.0), TrialOutcome(1, "failed")])
    assert told(tmp_path)["per_hour"] is None
    clock.now += 1800
    board.ended(TrialOutcome(2, "stopped"))
    board.ended(TrialOutcome(3, "complete", 2.0, 7.0))
    found = told(tmp_path)
    # two of ten in half an hour, six to come
    assert (found["per_hour"], found["seconds_left"]) == (pytest.approx(4), pytest.approx(5400))
    assert found["trials"] == {"complete": 2, "failed": 1, "stopped": 1, "running": 0}
    assert found["best"] == {"trial": 3, "delta_mtl": 2.0, "gflops": 7.0}
    assert (found["front"], found["baselines"]) == (2, {"done": 2, "wanted": 2})
    assert found["process"]["pid"] == os.getpid()


def test_workers_are_told_while_they_work(board, tmp_path, clock) -> None:
    board.begin("trial 7")
    board.begin("mtl", attempt=2)
    assert told(tmp_path)["trials"]["running"] == 1
    clock.now += 1
    progress = Progress("trial 7", 3, 9, "epochs", "depth 0.5")
    board.heard("trial 7", progress)
    clock.now += 0.9
    board.heard("mtl", Log("measuring"))  # too soon
    one, two = told(tmp_path)["workers"]
    assert [one[key] for key in ("name", "job", "attempt", "stage")] == [
        "worker 1", "trial 7", 1, "3/9 epochs depth 0.5",
    ]  # fmt: skip
    assert [two[key] for key in ("name", "job", "attempt", "stage")] == ["worker 2", "mtl", 2, ""]
    board.end("trial 7")
    board.heard("trial 7", progress)  # late
    board.begin("trial 8")
    found = told(tmp_path)["workers"]
    assert [(w["name"], w["job"], w["stage"]) for w in found] == [
        ("worker 2", "mtl", "measuring"), ("worker 1", "trial 8", ""),
    ]  # fmt: skip
    board.close()
    assert told(tmp_path)["workers"] == []


FIGURES = st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan])


@settings(deadline=None)  # it writes files
@given(st.lists(st.tuples(FIGURES, st.sampled_from([1.0, 2.0, 3.0]))))
def test_the_front_grows_to_that_of_all_trials(tmp_path_factory, points) -> None:
    folder = tmp_path_factory.mktemp("front")
    board = StatusFile(folder, study="tiny", fingerprint="f00d", wanted=1)
    for number, (gain, gflops) in enumerate(points):
        board.ended(TrialOutcome(number, "complete", gain, gflops))
    defined = [point for point in points if not math.isnan(point[0])]
    assert told(folder)["front"] == len(pareto_front(defined, [True, False]) if defined else [])
    best = max((gain for gain, _ in defined), default=None)
    assert (told(folder)["best"] or {"delta_mtl": None})["delta_mtl"] == best


def test_a_disk_that_takes_no_more_leaves_what_was_told(board, tmp_path, monkeypatch) -> None:
    before = told(tmp_path)
    monkeypatch.setattr("gatesearch.store.status.json.dumps", lambda _: "x" * 100_000)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
    board.ended(TrialOutcome(0, "failed"))
    assert told(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [BOARD]


def test_what_a_coordinator_tells_is_read_with_who_it_is(board, tmp_path) -> None:
    board.begin("trial 0")
    with locked(tmp_path):
        found = read_status(tmp_path)
        assert (found["alive"], found["holder"]["pid"]) == (True, os.getpid())
        assert (found["trials"]["running"], len(found["workers"])) == (1, 1)
    found = read_status(tmp_path)
    assert (found["alive"], found["holder"]) == (False, None)
    assert (found["trials"]["running"], found["workers"]) == (0, [])
    assert (found["wanted"], found["damage"]) == (10, None)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kept", [None, "", "{", "[]", '{"format": 99}'])
def test_without_its_word_the_database_is_counted(tmp_path, kept) -> None:
    database(tmp_path)
    if kept is not None:
        (tmp_path / BOARD).write_text(kept)
    before = {path.name for path in tmp_path.iterdir()}
    found = read_status(tmp_path)
    assert found["trials"] == {"complete": 2, "failed": 0, "stopped": 0, "running": 0}
    assert (found["study"], found["baselines"]["done"], found["wanted"]) == ("tiny", 1, None)
    assert (found["damage"], found["alive"]) == (None, False)
    assert {path.name for path in tmp_path.iterdir()} == before
    if kept is None:
        assert found["passed_over"] == f"{tmp_path / BOARD} is missing"


def test_trials_that_left_no_result_are_counted(tmp_path) -> None:
    database(tmp_path)
    both = ["spec", "result"]
    for number, files in enumerate([both, both, ["spec"], [], ["spec"]]):
        folder = tmp_path / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        for name in files:
            (folder / f"{name}.json").touch()
    assert read_status(tmp_path)["unfinished"] == 2
    # The database has the results of two trials, so that a lost file makes none unfinished.
    (tmp_path / "trials" / "0000" / "result.json").unlink()
    assert read_status(tmp_path)["unfinished"] == 2


def test_damage_is_told_with_the_backup_that_is_put_in_place(tmp_path) -> None:
    database(tmp_path)
    StatusFile(tmp_path, study="tiny", fingerprint="f00d", wanted=10)
    back_up(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"garbage" * 1000)
    found = read_status(tmp_path)
    assert found["damage"] == "file is not a database"
    assert (found["backup"]["trials"], found["wanted"]) == (2, 10)
    with locked(tmp_path):
        other = f"""
from pathlib import Path
from gatesearch.store.status import restore_store
restore_store(Path({str(tmp_path)!r}))
"""
        done = subprocess.run(
            [sys.executable, "-c", other], capture_output=True, text=True, check=False
        )
        assert f"StudyRefusedError: {tmp_path} is in use by process {os.getpid()}" in (
            done.stderr.replace("gatesearch.errors.", "")
        )
        with pytest.raises(StudyRefusedError):
            restore_store(tmp_path)
    assert restore_store(tmp_path).backup.trials == 2
    found = read_status(tmp_path)
    assert (found["damage"], found["backup"], found["trials"]["complete"]) == (None, None, 2)
    with pytest.raises(UsageError, match="is sound"):
        restore_store(tmp_path)


def test_a_database_that_is_gone_is_damage(tmp_path) -> None:
    StatusFile(tmp_path, study="tiny", fingerprint="f00d", wanted=10)
    found = read_status(tmp_path)
    assert (found["damage"], found["backup"]) == ("it is missing", None)
    with pytest.raises(DataError, match="no sound backup"):
        restore_store(tmp_path)


def test_no_store(tmp_path) -> None:
    for call in (read_status, restore_store):
        with pytest.raises(UsageError, match=r"no store in .*absent; run the study first"):
            call(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def changed(value, *path, to):
    """A copy of nested tables with one value changed."""
    if not path:
        return to
    first, *rest = path
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[first] = changed(copy[first], *rest, to=to)
    return copy


WRONG = [None, "x", -1, 1.5, [], {}, [1], {"a": 1}, True, float("nan"), float("inf"), 10**400]


@pytest.mark.parametrize(
    "path",
    [
        ("format",), ("study",), ("fingerprint",), ("tune",), ("tune", 0), ("budget",),
        ("storage",), ("wanted",), ("trials",), ("trials", "complete"), ("per_hour",),
        ("seconds_left",), ("best",), ("best", "trial"), ("best", "delta_mtl"), ("front",),
        ("baselines",), ("baselines", "done"), ("workers",), ("workers", 0),
        ("workers", 0, "since"), ("workers", 0, "attempt"), ("started",), ("updated",),
        ("process",), ("process", "pid"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_values_of_wrong_types_are_passed_over_with_a_word(tmp_path, path) -> None:
    database(tmp_path)
    board = StatusFile(tmp_path, study="tiny", fingerprint="f00d", tune=["mtan"], wanted=4)
    board.begin("trial 0")
    board.ended(TrialOutcome(0, "complete", 1.0, 2.0))
    whole = told(tmp_path)
    counted = 0
    for value in WRONG:
        (tmp_path / BOARD).write_text(json.dumps(changed(whole, *path, to=value)))
        found = read_status(tmp_path)
        if found["passed_over"]:
            assert found["passed_over"].startswith(f"{tmp_path / BOARD} is damaged: ")
            assert "\n" not in found["passed_over"]
            assert found["trials"]["complete"] == 2  # of the database
            counted += 1
        json.dumps(found)
    assert counted >= len(WRONG) - 5


@pytest.mark.parametrize(
    "data", [b"\xff", b"{", b"[]", b'{"a": ' + b"[" * 100_000, b"1" * 10_000], ids=lambda d: d[:9]
)
def test_a_status_that_is_no_table_is_passed_over_with_a_word(tmp_path, data) -> None:
    database(tmp_path)
    (tmp_path / BOARD).write_bytes(data)
    found = read_status(tmp_path)
    assert found["passed_over"].startswith(f"{tmp_path / BOARD} is damaged: ")
    assert found["trials"]["complete"] == 2


def test_a_damaged_status_beside_a_store_on_a_server_is_no_damage_of_the_store(tmp_path) -> None:
    (tmp_path / BOARD).write_text("{")
    found = read_status(tmp_path)
    assert (found["damage"], found["study"]) == (None, "")
