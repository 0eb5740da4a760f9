"""Killed at any moment: nothing finished is lost or done twice, and the end is the same.

`GATESEARCH_KILLS=30` has as many kills of each kind, in a search of twelve trials.
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import ARGUMENTS, KILLS, TINY, TRIALS, children, outcome

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def run(cli, tiny):
    return (*ARGUMENTS, "--data", tiny / "data")


def whole(cli, store, expected):
    """All is there at last: each trial once, exactly as many as asked for, the same front."""
    found = outcome(store)
    assert [trial[0] for trial in found[1]] == list(range(TRIALS))
    assert found == expected
    assert list(store.rglob("checkpoint-*")) == []
    told = cli("status", "--study", TINY, "--json").json
    assert told["trials"] == {"complete": TRIALS, "failed": 0, "stopped": 0, "running": 0}
    assert (told["unfinished"], told["damage"], told["alive"]) == (0, None, False)


@pytest.mark.parametrize(
    ("whom", "workers"),
    [("coordinator", 1), ("worker", 2), *([("both", 2)] if KILLS > 1 else [])],
)
def test_sigkill_at_any_moment(cli, run, expected, workers, whom) -> None:
    chance = random.Random(f"{workers} {whom}")
    store = cli.folder / "runs" / "tiny"
    kills = 0
    while kills < KILLS:
        running = cli.start(*run, "--workers", workers, fresh=True)
        # From the first line of a process to the middle of its third or fourth trial.
        time.sleep(chance.uniform(0.5, 14.0 if KILLS > 1 else 7.0))
        victims = children(running.process.pid) if whom != "coordinator" else []
        for victim in victims[: 1 if whom == "worker" else None]:
            os.kill(victim, signal.SIGKILL)
            kills += 1
        if whom != "worker":
            running.process.kill()
            kills += 1
        else:
            time.sleep(chance.uniform(0.0, 3.0))
            running.process.kill()
        running.process.communicate()
        if (store / "study.db").is_file() and (store / "status.json").is_file():
            numbers = [trial.trial for trial in read_store(store).trials]
            assert len(numbers) == len(set(numbers))
    done = cli(*run, "--workers", workers)
    assert done.code == 0, done.stderr
    whole(cli, store, expected)


@pytest.mark.parametrize("workers", [1, 2] if KILLS > 1 else [2])
def test_preemption_keeps_a_checkpoint_in_time(cli, run, expected, workers) -> None:
    store = cli.folder / "runs" / "tiny"
    for place in ("stl: 1/2", "trial 0: ", "trial 4: ") if KILLS > 1 else ("trial 1: ",):
        running = cli.start(*run, "--workers", workers)
        running.wait_for(place)
        begun = time.monotonic()
        done = running.end(signal.SIGTERM)
        assert time.monotonic() - begun < 30  # ten, on a machine with nothing else to do
        assert done.code == 130, done.stderr
        assert "Traceback" not in done.stderr
        assert "the same command continues" in done.stderr
    done = cli(*run, "--workers", workers)
    assert done.code == 0, done.stderr
    whole(cli, store, expected)
    # An orderly stop is no attempt in vain.
    assert all(trial.attempts <= 3 for trial in read_store(store).trials)


def test_a_second_signal_ends_at_once(own_tiny, cli) -> None:
    running = cli.start("run", "--study", TINY, "--n-trials", 5, "--workers", 2)
    running.wait_for("trial 4: lambda_s")
    workers = children(running.process.pid)
    for worker in workers:  # none can end in order
        os.kill(worker, signal.SIGSTOP)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert running.process.poll() is None
    begun = time.monotonic()
    done = running.end(signal.SIGINT)
    assert time.monotonic() - begun < 5
    assert done.code == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert workers
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert len(read_store(own_tiny / "runs" / "tiny").trials) == 3


def test_two_coordinators_at_the_same_instant(own_tiny, cli) -> None:
    runs = [cli.start("run", "--study", TINY, "--n-trials", 4) for _ in range(2)]
    done = [running.end() for running in runs]
    assert sorted(one.code for one in done) == [0, 4], [one.stderr for one in done]
    assert len(read_store(cli.folder / "runs" / "tiny").trials) == 4


@pytest.mark.parametrize("harm", ["cut short", "garbage", "gone"])
def test_a_damaged_database_comes_back_without_a_loss(
    cli, run, expected, undisturbed, harm
) -> None:
    shutil.copytree(undisturbed, cli.folder, dirs_exist_ok=True)
    store = cli.folder / "runs" / "tiny"
    database = store / "study.db"
    # As if the last backup had been made when three trials were done.
    with closing(sqlite3.connect(store / "study.db.backup")) as backup:
        late = (
            "SELECT trial_id FROM trials JOIN studies USING (study_id)"
            " WHERE number >= 3 AND study_name = 'tiny interrogate'"
        )
        for table in ("trial_values", "trial_params", "trial_user_attributes", "trials"):
            backup.execute(f"DELETE FROM {table} WHERE trial_id IN ({late})")
        backup.commit()
    data = database.read_bytes()
    if harm == "gone":
        database.unlink()
    else:
        database.write_bytes(data[: len(data) // 3] if harm == "cut short" else b"\xa5" * 5000)
    damaged = database.read_bytes() if harm != "gone" else None
    if harm == "gone":  # the others are refused in `test_refusals.py`
        assert "gatesearch status" in cli(*run).refused(4)
    told = cli("status", "--study", TINY)
    assert "has 3 trials" in " ".join(told.stderr.split())
    assert "--restore" in told.stderr
    assert cli("status", "--study", TINY, "--restore").code == 0
    if damaged is not None:
        (kept,) = store.glob("study.db.damaged-*")
        assert kept.read_bytes() == damaged
    done = cli(*run)
    assert done.code == 0, done.stderr
    assert "trial 3 was begun after the backup; its files are taken up" in done.stderr
    assert "1/2 epochs" not in done.stderr  # nothing was trained again
    whole(cli, store, expected)


def test_a_result_of_another_study_is_refused(tiny, own_tiny, cli) -> None:
    foreign = tiny / "runs" / "tiny" / "trials" / "0000" / "result.json"
    other = cli.folder / "other"
    run = ("run", "--study", TINY, "--out", other, "--n-trials", 1)
    running = cli.start(*run)
    running.wait_for("stl: Δ_MTL")
    running.end(signal.SIGKILL)
    (other / "trials" / "0000").mkdir(parents=True, exist_ok=True)
    shutil.copy(foreign, other / "trials" / "0000" / "result.json")
    assert "belongs to another study or trial" in cli(*run).refused(4)
    assert read_store(other).trials == ()


def test_no_room_for_a_checkpoint(own_tiny, cli) -> None:
    store = own_tiny / "runs" / "tiny"
    before = read_store(store)
    run = ("run", "--study", TINY, "--n-trials", 4, "--set", "execution.checkpoint_minutes=0.001")
    said = cli(*run, largest_file=300_000).refused(3)
    assert "cannot write" in said
    assert read_store(store) == before
    done = cli(*run, "--json")
    assert done.json["trials"]["complete"] == 4, done.stderr


def wait_for_attempt(folder, number):
    """Wait until that attempt at a job, counted from 0, has begun."""
    attempts = folder / "attempts.json"
    while not attempts.exists() or len(json.loads(attempts.read_text())["attempts"]) <= number:
        time.sleep(0.01)


def test_a_configuration_that_kills_its_process_is_given_up_and_can_be_retried(tiny, cli) -> None:
    store = cli.folder / "runs" / "tiny"
    run = ("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 2)
    first = ("--workers", 2, "--set", "execution.attempts=1")
    assert cli(*run[:-1], 0).code == 0  # the baselines
    running = cli.start(*run, *first)
    running.wait_for("trial 1: lambda_s")
    for attempt in range(2):
        wait_for_attempt(store / "trials" / "0000", attempt)
        tried = json.loads((store / "trials" / "0000" / "attempts.json").read_text())
        os.kill(tried["attempts"][attempt]["process"], signal.SIGKILL)
    done = running.end()
    assert done.code == 0, done.stderr
    complete, failed = {"complete": 1, "failed": 1, "pruned": 0}, read_store(store).trials[0]
    assert failed.reason.count("ended without a message") == 2
    assert cli(*run, "--json").json["trials"] == complete  # it is not tried again by itself
    done = cli(*run, "--retry-failed", "--json")
    assert done.json["trials"] == complete | {"complete": 2}, done.stderr
    assert dict(read_store(store).trials[2].params) == dict(failed.params)
    assert cli(*run, "--retry-failed", "--json").json["trials"] == complete | {"complete": 2}


def test_deaths_of_the_whole_run_do_not_count_against_what_it_trains(tiny, cli) -> None:
    store = cli.folder / "runs" / "tiny"
    run = ("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 1)
    folder = store / "baselines" / "stl-seed0"
    for attempt in range(3):  # one more than attempts
        running = cli.start(*run, "--set", "execution.attempts=2")
        wait_for_attempt(folder, attempt)
        running.end(signal.SIGKILL)
    done = cli(*run, "--set", "execution.attempts=2", "--json")
    assert done.code == 0, done.stderr
    assert done.json["trials"] == {"complete": 1, "failed": 0, "pruned": 0}
    assert "stl: the run died 3 times while it was trained" in done.stderr
    # A process of its own computes the same.
    mine, other = (read_store(s) for s in (store, tiny / "runs" / "tiny"))
    assert mine.trials[0].metrics["validation"] == other.trials[0].metrics["validation"]
