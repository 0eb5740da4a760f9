"""Killed, interrupted, contested, out of disk, diverged: what is finished stays."""

import json
import signal

import pytest
import sqlalchemy

from gatesearch.errors import DataError
from gatesearch.store.database import explained
from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import TINY, contents, trained

pytestmark = pytest.mark.end_to_end


def params(record):
    return [dict(trial.params) for trial in record.trials]


def test_a_killed_contested_and_interrupted_study_ends_as_if_nothing_had_happened(tiny, cli):
    run = ("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 3)
    store = cli.folder / "runs" / "tiny"

    killed = cli.start(*run)
    killed.wait_for("trial 0: lambda_s")
    assert killed.end(signal.SIGKILL).code == -signal.SIGKILL
    assert read_store(store).trials == ()

    second = cli.start(*run)
    second.wait_for("trial 0 goes on")
    second.wait_for("trial 1: 1/2 epochs")
    second.process.send_signal(signal.SIGSTOP)
    before = contents(store)
    contested = cli(*run).refused(4)
    assert f"in use by process {second.process.pid} on " in contested
    assert "wait for it" in contested
    assert contents(store) == before
    interrupted = second.end(signal.SIGINT, signal.SIGCONT)
    assert interrupted.code == 130, interrupted.stderr
    assert "the same command continues" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert interrupted.stdout == ""
    assert params(read_store(store)) == params(read_store(tiny / "runs" / "tiny"))[:1]

    last = cli(*run, "--json")
    assert last.json["trials"] == {"complete": 3, "failed": 0, "pruned": 0}
    assert params(read_store(store)) == params(read_store(tiny / "runs" / "tiny"))
    assert len({json.dumps(drawn) for drawn in params(read_store(store))}) == 3
    # One single-task baseline and three trials, each once over all the starts.
    assert [line.split(":")[0] for line in trained(store)] == [
        "stl",
        "trial 0",
        "trial 1",
        "trial 2",
    ]


def test_a_full_disk_loses_nothing_finished(tiny, cli):
    # So wide that a network takes more than the database.
    run = ("run", "--study", TINY, "--data", tiny / "data", "--set", "model.width=0.25")
    assert cli(*run, "--n-trials", 0).code == 0
    store = cli.folder / "runs" / "tiny"
    before = read_store(store)
    done = cli(*run, "--n-trials", 1, largest_file=200_000)
    said = done.refused(3)
    assert "cannot write" in said
    assert "what is finished is kept. Make room" in said
    assert read_store(store) == before
    assert list(store.rglob("*.tmp*")) == []


def test_a_full_database_is_no_damage(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'study.db'}")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE kept (value)"))
        connection.execute(sqlalchemy.text("PRAGMA max_page_count = 2"))
        too_much = sqlalchemy.text("INSERT INTO kept VALUES (zeroblob(100000))")
        full = r"cannot write .*study\.db: database or disk is full"
        with pytest.raises(DataError, match=full), explained(tmp_path):
            connection.execute(too_much)
    engine.dispose()


def test_a_report_that_cannot_be_written_is_refused_before_training(cli):
    (cli.folder / "file").write_text("")
    said = cli("run", "--study", TINY, "--reports", "file/below").refused(3)
    assert "name another with --reports" in said
    assert [path.name for path in cli.folder.iterdir()] == ["file"]


def test_a_diverging_trial_fails_with_its_reason_and_the_study_goes_on(tiny, cli):
    # The learning rate of the gated network alone: the single-task baseline is sound.
    done = cli(
        *("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 2, "--json"),
        *("--set", "options.interrogate.training.lr=1e30"),
    )
    assert done.code == 0, done.stderr
    assert done.json["trials"] == {"complete": 0, "failed": 2, "pruned": 0}
    assert done.json["front"] == []
    assert [point["method"] for point in done.json["baselines"]] == ["stl"]
    for trial in read_store(cli.folder / "runs" / "tiny").trials:
        assert trial.state == "failed"
        assert "the loss of semseg became nan in epoch 1, step 2" in trial.reason
        assert set(trial.params) == {"lambda_s", "tau.semseg", "tau.depth"}
        assert f"warning: trial {trial.trial} failed: the loss of" in done.stderr
    assert (cli.folder / "reports" / "tiny.pdf").is_file()
