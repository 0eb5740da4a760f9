"""Bring a store of gatesearch 0.1.0 to the form of this version, once.

`old_form` lists the differences between the two forms. Beside that, 0.1.0 kept trials without a
budget in the main Optuna study, and start networks in folders named after their kind; both are
moved. It kept no checksums, which are added to the database and to the files of trainings.

The database is changed in a copy, which then takes the old one's place whole; the old one is kept
beside it. Every step before that can be done twice, so that an upgrade that was cut off is
completed at the next start. Trained networks are moved, never changed. Trainings that were cut off
begin anew, because their checkpoints describe a training in another way.
"""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatesearch.checksums import with_checksum
from gatesearch.errors import DataError, StudyRefusedError, UsageError
from gatesearch.files import FileRefusedError, read_json, write_atomic
from gatesearch.results import Result
from gatesearch.store import names
from gatesearch.store.backup import DATABASE, check_database_files, damage, damaged
from gatesearch.store.integrity import is_sealed, seal, sorted_trials
from gatesearch.store.lock import locked
from gatesearch.store.old_form import (
    STARTS,
    holds_result,
    is_old_job,
    new_attribute,
    new_job,
    new_job_result,
    new_search_name,
)

OLD_COPY = f"{DATABASE}.0.1.0"

# Raised by values that no gatesearch 0.1.0 wrote.
_NOT_OF_0_1_0 = (
    StudyRefusedError, UsageError, LookupError, TypeError, ValueError, AttributeError,
)  # fmt: skip


def upgradable(folder: Path) -> bool:
    """Tell whether a folder holds a store of gatesearch 0.1.0.

    Raises:
        StudyRefusedError: Its database is no regular file.
    """
    path = folder / DATABASE
    check_database_files(path)
    if not path.exists() or path.stat().st_size == 0:
        return False
    try:
        with contextlib.closing(_connect(path)) as database:
            stored = dict(database.execute("SELECT key, value_json FROM study_user_attributes"))
        sealed = is_sealed(json.loads(stored.get(names.DEFINITION, "null")))
    # It is damaged: opening the store says how.
    except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError):
        return False
    return names.DEFINITION in stored and names.FORMAT not in stored and not sealed


def upgrade(folder: Path) -> None:
    """Bring a store of gatesearch 0.1.0 to the form of this version; leave any other as it is.

    Args:
        folder: The store's folder, which this process has locked.

    Raises:
        StudyRefusedError: The database is damaged, or no gatesearch 0.1.0 wrote it; nothing was
            changed.
        DataError: The folder cannot be written.
    """
    if not upgradable(folder):
        return
    path, aside = folder / DATABASE, folder / f".{DATABASE}.upgrade"
    fault = damage(path)
    if fault is not None:
        raise damaged(path, fault)
    for left in (aside, Path(f"{aside}-journal")):
        left.unlink(missing_ok=True)
    try:
        results = _rewrite_copy(path, aside, folder / "trials")
    except _NOT_OF_0_1_0 as error:
        raise StudyRefusedError(
            f"{folder} cannot be read as a store of gatesearch 0.1.0 ({error}); go on with the "
            "version that wrote it, or name another --out"
        ) from error
    except sqlite3.OperationalError as error:
        raise DataError(
            f"cannot write {aside}: {error}; make room or mend its folder, then run the same "
            "command again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error
    _rewrite_files(folder, results)
    _keep_copy(path, folder / OLD_COPY)
    aside.replace(path)


def upgrade_alone(folder: Path) -> None:
    """Lock a folder and upgrade its store, where that is still to be done.

    Raises:
        StudyRefusedError: As for `upgrade`, or another process holds the folder.
        DataError: The folder cannot be written.
    """
    if not upgradable(folder):
        return
    try:
        with locked(folder):
            upgrade(folder)
    except DataError as error:
        raise DataError(
            f"{folder} is a store of gatesearch 0.1.0, which this version must rewrite once before "
            f"it can be read ({error}); copy it to where it can be written"
        ) from error


def _rewrite_copy(path: Path, aside: Path, trials: Path) -> dict[str, Result]:
    """Write the database in its new form.

    Args:
        path: The old database.
        aside: The new one.
        trials: Folder of the trials.

    Returns:
        The results in it: old attribute, or number of a trial -> result.
    """
    results: dict[str, Result] = {}
    with (
        contextlib.closing(_connect(path)) as old,
        contextlib.closing(sqlite3.connect(aside)) as new,
    ):
        old.backup(new)
        main, name = new.execute(
            "SELECT study_id, study_name FROM studies JOIN study_user_attributes USING (study_id)"
            " WHERE key = ?",
            (names.DEFINITION,),
        ).fetchone()
        _rewrite_attributes(new, main, results)
        for study, whole_name in new.execute("SELECT study_id, study_name FROM studies").fetchall():
            search = whole_name.removeprefix(name).strip()
            if study != main and not whole_name.startswith(f"{name} "):
                continue
            method = _rewrite_results(new, study, results) or _method_begun(new, study, trials)
            new_name = f"{name} {new_search_name(search, method)}"
            if study != main:
                new.execute(
                    "UPDATE studies SET study_name = ? WHERE study_id = ?", (new_name, study)
                )
            elif method:
                _move_trials(new, main, new_name)
        _seal(new, main, name)
        new.commit()
    return results


def _seal(database: sqlite3.Connection, main: int, name: str) -> None:
    """Add checksums to all attributes of the store and to all of its trials."""
    searches = {
        study: whole_name.removeprefix(f"{name} ")
        for study, whole_name in database.execute("SELECT study_id, study_name FROM studies")
        if whole_name.startswith(f"{name} ")
    }
    objectives = dict(
        database.execute("SELECT study_id, count(*) FROM study_directions GROUP BY study_id")
    )
    known = {search: objectives[study] for study, search in searches.items()}
    database.execute(
        "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (?, ?, ?)",
        (main, names.SEARCHES, json.dumps(known)),
    )
    for number, key, text in database.execute(
        "SELECT study_user_attribute_id, key, value_json FROM study_user_attributes"
        " WHERE study_id = ?",
        (main,),
    ).fetchall():
        database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE study_user_attribute_id = ?",
            (json.dumps(seal(key, json.loads(text))), number),
        )
    ids = {
        (searches[study], index): trial
        for trial, study, index in database.execute("SELECT trial_id, study_id, number FROM trials")
        if study in searches
    }
    for trial in sorted_trials(database.execute, searches):
        attributes = trial.attributes
        changed: dict[str, Any] = {}
        if names.PATTERN_METRICS in attributes:
            metrics = attributes[names.PATTERN_METRICS]
            changed[names.PATTERN_METRICS] = trial.seal_metrics(metrics)
        if names.NUMBER in attributes:
            changed[names.BEGUN] = trial.seal_begun(attributes[names.NUMBER])
        if names.RESULT in attributes:
            text = json.dumps(attributes[names.RESULT])
            changed[names.RESULT] = trial.seal_result(attributes[names.NUMBER], text)
        for key, value in changed.items():
            trial_id = ids[trial.search, trial.index]
            database.execute(
                "DELETE FROM trial_user_attributes WHERE trial_id = ? AND key = ?", (trial_id, key)
            )
            database.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                (trial_id, key, json.dumps(value)),
            )


def _rewrite_attributes(
    database: sqlite3.Connection, main: int, results: dict[str, Result]
) -> None:
    rows = database.execute(
        "SELECT study_user_attribute_id, key, value_json FROM study_user_attributes"
        " WHERE study_id = ?",
        (main,),
    ).fetchall()
    values = {key: json.loads(text) for _, key, text in rows}
    for number, key, _ in rows:
        new_key, value = new_attribute(key, values[key], values[names.DEFINITION])
        if holds_result(key):
            results[key] = Result.from_json(value)
        database.execute(
            "UPDATE study_user_attributes SET key = ?, value_json = ?"
            " WHERE study_user_attribute_id = ?",
            (new_key, json.dumps(value), number),
        )
    database.execute(
        "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (?, ?, ?)",
        (main, names.FORMAT, json.dumps(names.VERSION)),
    )


def _rewrite_results(database: sqlite3.Connection, study: int, results: dict[str, Result]) -> str:
    """Rewrite the results of a search's trials; gives their method, empty where there are none."""
    method = ""
    for number, text in database.execute(
        "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes"
        " JOIN trials USING (trial_id) WHERE study_id = ? AND key = 'result'",
        (study,),
    ).fetchall():
        result = Result.from_json(json.loads(text))
        method, results[str(result.trial)] = result.method, result
        database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?",
            (json.dumps(result.to_json()), number),
        )
    return method


def _method_begun(database: sqlite3.Connection, study: int, trials: Path) -> str:
    """Return the method of a search without results, as the files of its trials say.

    Where none has files, nothing of it was ever trained: its trials are forgotten, and their
    numbers are given again.
    """
    begun = (
        "SELECT trial_id, value_json FROM trial_user_attributes JOIN trials USING (trial_id)"
        " WHERE study_id = ? AND key = 'trial'"
    )
    rows = database.execute(begun, (study,)).fetchall()
    for _, number in rows:
        job = _read_job(trials / f"{int(number):04d}" / "spec.json")
        if job:
            return str(job["spec"]["method"])
    for trial, _ in rows:
        database.execute("UPDATE trials SET state = 'FAIL' WHERE trial_id = ?", (trial,))
        database.execute(
            "DELETE FROM trial_user_attributes WHERE trial_id = ? AND key = 'trial'", (trial,)
        )
    return ""


def _move_trials(database: sqlite3.Connection, main: int, name: str) -> None:
    """Move the main study's trials into a study of their own."""
    search = database.execute("INSERT INTO studies (study_name) VALUES (?)", (name,)).lastrowid
    for table, columns in (
        ("study_directions", "direction, objective"),
        ("study_system_attributes", "key, value_json"),
    ):
        database.execute(
            f"INSERT INTO {table} (study_id, {columns})"
            f" SELECT ?, {columns} FROM {table} WHERE study_id = ?",
            (search, main),
        )
    database.execute("UPDATE trials SET study_id = ? WHERE study_id = ?", (search, main))


def _rewrite_files(folder: Path, results: Mapping[str, Result]) -> None:
    """Move the networks that trials start from, and rewrite what the folders of trainings hold.

    Files of trials that are in the database with their result are left: nothing reads them again.
    """
    for kind in STARTS:
        for source in sorted((folder / f"{kind}s").glob("seed*")):
            result = results.get(f"{kind}/{source.name.removeprefix('seed')}")
            if result is None:  # it was cut off
                shutil.rmtree(source)
                continue
            target = folder / "starts" / f"{result.method}-{result.part}-seed{result.seed}"
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
        with contextlib.suppress(OSError):  # it was never made, or holds something else
            (folder / f"{kind}s").rmdir()
    ended = {f"{r.trial:04d}" for r in results.values() if r.trial is not None}
    kept = {(r.method, r.weighting, r.part, r.seed) for r in results.values() if r.trial is None}
    for place in ("baselines", "starts", "trials"):
        for path in folder.glob(f"{place}/*/spec.json"):
            if path.parent.name in ended:
                continue
            job = _read_job(path)
            if not job or not is_old_job(_read(path)):
                continue
            spec = job["spec"]
            known = (spec["method"], spec["weighting"], spec["part"], spec["seed"]) in kept
            _rewrite_training(path, job, keep=known or place == "trials")


def _rewrite_training(path: Path, job: Mapping[str, Any], *, keep: bool) -> None:
    """Rewrite the files of one training.

    Args:
        path: Its `spec.json`.
        job: What that is to hold.
        keep: Whether its result is kept; without one it begins anew.
    """
    result = path.with_name("result.json")
    try:
        _write(result, new_job_result(_read(result) if keep else {}, job))
    except _NOT_OF_0_1_0:  # There is none that can be kept.
        for pattern in ("result.json", "attempts.json", "checkpoint-*", ".checkpoint-*"):
            for left in path.parent.glob(pattern):
                left.unlink()
    else:
        # They have no checksum, and the result has their number.
        path.with_name("attempts.json").unlink(missing_ok=True)
    # Last, because its form says whether all this is still to be done.
    _write(path, job)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database to be read; SQLite first takes back what a killed process left half done."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)


def _keep_copy(path: Path, copy: Path) -> None:
    if not copy.exists():
        partial = copy.with_name(f".{copy.name}")
        shutil.copyfile(path, partial)
        partial.replace(copy)


def _read_job(path: Path) -> dict[str, Any]:
    """Return the new contents of a training's `spec.json`; empty where it cannot be read."""
    job = _read(path)
    try:
        return new_job(job) if is_old_job(job) else job
    except _NOT_OF_0_1_0:
        return {}


def _read(path: Path) -> dict[str, Any]:
    """Read an object of JSON; empty where there is none."""
    try:
        return read_json(path, dict[str, Any])
    except (OSError, FileRefusedError):
        return {}


def _write(path: Path, table: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(with_checksum(table), indent=1).encode())
