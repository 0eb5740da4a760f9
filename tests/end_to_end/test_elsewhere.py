"""The same search on Ray, with its store on a PostgreSQL server, and on two devices."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import suppress

import pytest

from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import ARGUMENTS, TINY, TRIALS, children, outcome

pytestmark = pytest.mark.end_to_end

RUN = ("run", "--study", TINY, "--n-trials", 3)


def kill_at_work(running, trials):
    """Kill the process of one of these trials in the midst of it."""
    while running.process.poll() is None:
        for kept in trials.glob("*/attempts.json"):
            with suppress(FileNotFoundError, ProcessLookupError):
                process = json.loads(kept.read_text())["attempts"][-1]["process"]
                os.kill(process, signal.SIGSTOP)
                at_work = kept.exists() and not (kept.parent / "result.json").exists()
                os.kill(process, signal.SIGKILL if at_work else signal.SIGCONT)
                if at_work:
                    return
        time.sleep(0.05)


def test_ray_stops_in_order_and_goes_on_where_a_killed_worker_was(tiny, cli, expected) -> None:
    run = (*ARGUMENTS, "--data", tiny / "data", "--executor", "ray", "--workers", 2)
    long = ("--set", "training.epochs=9999", "--set", "execution.checkpoint_minutes=60")
    running = cli.start(*run, *long, "--out", "long")
    running.wait_for("/9999 epochs")
    assert running.end(signal.SIGTERM).code == 130
    (kept,) = cli.folder.glob("long/baselines/*/checkpoint-*.safetensors")
    assert kept.name == "checkpoint-1.safetensors"
    running = cli.start(*run)
    running.wait_for("trial 1: ")
    store = cli.folder / "runs" / "tiny"
    kill_at_work(running, store / "trials")
    done = running.end()
    assert done.code == 0, done.stderr
    assert outcome(store) == expected
    assert sum(trial.attempts for trial in read_store(store).trials) > TRIALS


def test_no_cluster(cli) -> None:
    said = cli(*RUN, "--executor", "ray://127.0.0.1:1").refused(3)
    assert "no Ray cluster at ray://127.0.0.1:1" in said


def test_a_store_on_a_server(tiny, cli, postgres_url, expected) -> None:
    elsewhere = (*ARGUMENTS, "--data", tiny / "data", "--storage", postgres_url)
    running = cli.start(*elsewhere)
    running.wait_for("trial 1: lambda_s")
    contested = cli(*elsewhere, "--out", "another").refused(4)
    assert f"process {running.process.pid} on " in contested
    running.end(signal.SIGKILL)
    done = cli(*elsewhere, "--json")
    assert done.json["trials"] == {"complete": TRIALS, "failed": 0, "pruned": 0}, done.stderr
    store = cli.folder / "runs" / "tiny"
    assert not (store / "study.db").exists()
    assert outcome(store, storage=postgres_url, name="tiny") == expected
    assert cli("report", "--study", TINY, "--storage", postgres_url).code == 0
    told = cli("status", "--study", TINY, "--json").json
    assert (told["trials"]["complete"], told["damage"]) == (TRIALS, None)


def test_a_trial_on_two_devices_survives_the_death_of_one(own_tiny, cli) -> None:
    here, there = own_tiny / "runs" / "tiny", own_tiny / "there"
    shutil.copytree(here, there)
    run = ("run", "--study", TINY, "--n-trials", 4, "--devices-per-trial", 2)
    run += ("--set", "execution.checkpoint_minutes=0.001", "--json")
    done = cli(*run)
    assert done.json["trials"]["complete"] == 4, done.stderr
    assert "trial 3: 2/2 epochs" in done.stderr
    running = cli.start(*run, "--out", there)
    running.wait_for("trial 3: lambda_s")
    while not list(there.rglob("checkpoint-*.safetensors")):
        time.sleep(0.01)
    (worker,) = children(running.process.pid)
    os.kill(max(children(worker)), signal.SIGKILL)
    done = running.end()
    assert done.json["trials"]["complete"] == 4, done.stderr
    assert re.search(r"trial 3: rank \d of 2 was killed by SIGKILL; it goes on", done.stderr)
    assert outcome(there) == outcome(here)
    assert [trial.attempts for trial in read_store(there).trials] == [1, 1, 1, 2]
    assert list(there.rglob("checkpoint-*")) == []


def test_trials_that_lag_behind_are_stopped(tiny, cli) -> None:
    rule = ("search.stop=median", "search.stop_every=1", "search.stop_after=1")
    done = cli(
        *("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 6, "--json"),
        *("--budget", "1.5xMTL"),
        *(word for item in rule for word in ("--set", item)),
    )
    assert done.code == 0, done.stderr
    counts = done.json["trials"]
    assert sum(counts.values()) == 6
    assert counts["pruned"] >= 1
    for trial in read_store(cli.folder / "runs" / "tiny").trials:
        assert (trial.state == "stopped") == ("the median of" in trial.reason)
        if trial.state == "stopped":
            assert trial.epochs == len(trial.curves["loss.depth"])
            assert not trial.metrics
