"""A store of 10,000 trials: `status`, and a `run` with nothing left to train, which reports."""

import json
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import gatesearch as gs
from benchmarks.fake_results import add_trial, fake_result, make_store
from benchmarks.figure import Figure, seconds
from gatesearch.store.integrity import sorted_trials
from gatesearch.study import Study
from gatesearch.trials.context import open_context

TRIALS = 10_000
BAR_RUN, BAR_STATUS = 15.0, 1.0
TABLES = ("trial_params", "trial_values", "trial_user_attributes")


def measure() -> list[Figure]:
    study = gs.load_study("scenes", ["report_frames=0"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(study, folder / "store")
        add_trial(store, study)
        context = open_context(study, data=folder, stored=None, emit=lambda event: None)
        store.keep("data", context.data)
        runtime = context.runtime
        kept = {"precision": runtime.precision, "memory_format": runtime.memory_format}
        store.keep("runtime", kept)
        _multiply(folder / "store" / "study.db", study)
        common = ["--study", "scenes", "--out", str(folder / "store")]
        command = [*common, "--data", name, "--reports", name, "--set", "report_frames=0"]
        run = _timed("run", *command, "--n-trials", str(TRIALS))
        status = _timed("status", *common)
        size = (folder / "store" / "study.db").stat().st_size / 2**20
    detail = f"{TRIALS} trials, {size:.0f} MiB, whole process"
    return [
        Figure("opens, resumes and reports", run, BAR_RUN, "s", detail),
        Figure("status", status, BAR_STATUS, "s", detail),
    ]


def _timed(*arguments: str) -> float:
    command = [sys.executable, "-m", "gatesearch", *arguments]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def _multiply(path: Path, study: Study) -> None:
    """Copy the only trial's rows; every copy has a number and a result of its own."""
    with closing(sqlite3.connect(path)) as database:
        (first,) = database.execute("SELECT min(trial_id) FROM trials").fetchone()
        results: dict[int, str] = {}
        columns = {t: _columns(database, t) for t in ("trials", *TABLES)}
        for number in range(1, TRIALS):
            own = first + number
            names = ", ".join(c for c in columns["trials"] if c not in ("trial_id", "number"))
            database.execute(
                f"INSERT INTO trials (trial_id, number, {names}) SELECT ?, ?, {names} FROM trials "
                "WHERE trial_id = ?",
                (own, number, first),
            )
            for table in TABLES:
                key = columns[table][0]
                names = ", ".join(c for c in columns[table] if c not in (key, "trial_id"))
                database.execute(
                    f"INSERT INTO {table} (trial_id, {names}) SELECT ?, {names} FROM {table} "
                    "WHERE trial_id = ?",
                    (own, first),
                )
            params = {"lambda_s": 1.0} | {f"tau.{task}": 0.5 for task in study.tasks}
            result = fake_result(study, "interrogate", number, params)
            results[number] = json.dumps(result.to_json())
        (search,) = database.execute("SELECT study_id FROM trials").fetchone()
        rows = sorted_trials(database.execute, {search: "interrogate"})
        for trial, (number, text) in zip(list(rows)[1:], results.items(), strict=True):
            sealed = {
                "trial": number,
                "begun": trial.seal_begun(number),
                "result": trial.seal_result(number, text),
            }
            database.executemany(
                "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = ?",
                [(json.dumps(value), first + number, name) for name, value in sealed.items()],
            )
        database.commit()


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
