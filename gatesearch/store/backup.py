"""Backups of the store's database, what is wrong with it, and how it comes back. Needs no torch.

While a process writes the database it must not open the file but through SQLite: closing it would
drop SQLite's locks.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gatesearch.errors import DataError, StudyRefusedError, UsageError

DATABASE = "study.db"
# Newest first.
BACKUPS = (f"{DATABASE}.backup", f"{DATABASE}.backup.1")
# What SQLite keeps beside a database, and mends it with.
_BESIDE = ("-journal", "-wal", "-shm")


@dataclass(frozen=True)
class Backup:
    """A sound backup.

    Attributes:
        path: The file.
        made: When.
        trials: Trials in it that came to a result.
    """

    path: Path
    made: datetime
    trials: int


@dataclass(frozen=True)
class Restored:
    """A store whose database was replaced by a backup.

    Attributes:
        damaged: Where the damaged database was moved; None where there was none.
        backup: What is in its place.
    """

    damaged: Path | None
    backup: Backup


class Backups:
    """Backups of a store as it changes.

    Args:
        folder: The store's folder.
        warn: Told when a backup could not be made; the search can go on.
        minutes: Least time between two backups.
        clock: Seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        warn: Callable[[str], None],
        minutes: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._warn = warn
        self._interval = 60.0 * minutes
        self._clock = clock
        self._due = -float("inf")

    def after_change(self) -> None:
        """Back up, unless the last one is young.

        Raises:
            StudyRefusedError: The database is damaged.
        """
        if self._clock() >= self._due:
            self.close()

    def close(self) -> None:
        """Back up.

        Raises:
            StudyRefusedError: The database is damaged.
        """
        try:
            back_up(self._folder)
        except DataError as error:
            self._warn(str(error))
        # Counted from the end, so that slow backups leave time for the search.
        self._due = self._clock() + self._interval


def back_up(folder: Path) -> Path:
    """Back up the database as it is at this moment, also while it is written to.

    The one before is kept. The new one takes its place whole and checked, or not at all.

    Args:
        folder: The store's folder.

    Raises:
        DataError: The folder takes no more.
        StudyRefusedError: The database is damaged; the backups are left as they are.
    """
    source, newest = folder / DATABASE, folder / BACKUPS[0]
    with _aside(newest) as aside:
        try:
            with _opened(source, "rw") as database, _opened(aside, "rwc") as copy:
                # Reading already, it need not wait for a pause between two changes.
                database.execute("BEGIN")
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                database.backup(copy)
        except sqlite3.OperationalError as error:
            raise _unwritten(newest, str(error)) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise damaged(source, str(error)) from error
        wrong = damage(aside)
        if wrong is not None:
            raise damaged(source, wrong)
        _sync(aside)
        if newest.exists():
            newest.replace(folder / BACKUPS[1])
        aside.replace(newest)
        _sync(folder)
    return newest


def damage(path: Path, *, thorough: bool = True) -> str | None:
    """What is wrong with a database; None if it is sound. Writes nothing.

    A transaction that a killed process left behind is no damage: SQLite takes it back when the
    database is next opened for writing.

    Args:
        path: The database.
        thorough: Every page is looked at, else only header and size.

    Raises:
        DataError: It cannot be opened.
    """
    if not path.exists():
        return "it is missing"
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        return _fault(path, "ro", thorough)
    except sqlite3.OperationalError as error:
        if not any(_beside(path)):
            raise DataError(f"cannot open {path}: {error}") from error
    # What was left behind can only be taken back by writing.
    with tempfile.TemporaryDirectory(prefix="gatesearch-") as folder:
        copy = Path(folder) / path.name
        for suffix in ("", *_beside(path)):
            with contextlib.suppress(FileNotFoundError):  # it may just have been taken back
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        try:
            return _fault(copy, "rw", thorough)
        except sqlite3.OperationalError as error:
            raise DataError(f"cannot open {path}: {error}") from error


def last_backup(folder: Path) -> Backup | None:
    """The newest sound backup of a store, None where there is none."""
    for name in BACKUPS:
        path = folder / name
        with contextlib.suppress(DataError, sqlite3.DatabaseError):
            if damage(path) is None:
                made = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
                ended = sum(n for state, n in count_trials(path).items() if state != "running")
                return Backup(path, made, ended)
    return None


def restore(folder: Path) -> Restored:
    """Put the newest sound backup in place of a damaged database, which is kept aside.

    The caller holds the lock of the folder.

    Args:
        folder: The store's folder.

    Raises:
        UsageError: The database is sound.
        DataError: There is no sound backup, or the folder cannot be written.
    """
    path = folder / DATABASE
    if damage(path) is None:
        raise UsageError(f"{path} is sound, nothing is to be restored; run the study as before")
    backup = last_backup(folder)
    if backup is None:
        raise DataError(f"no sound backup of {path}; start a new --out folder")
    with _aside(path) as aside:
        shutil.copyfile(backup.path, aside)
        _sync(aside)
        moved = None
        # Its journal goes first: left alone it would be played into the backup.
        kept = path.with_name(f"{DATABASE}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
        for suffix in (*_beside(path), *([""] if path.exists() else [])):
            Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
            moved = kept
        aside.replace(path)
        _sync(folder)
    return Restored(moved, backup)


def count_trials(path: Path) -> dict[str, int]:
    """Trials of every search of a store: `complete`, `failed`, `stopped`, `running`.

    Read from Optuna's tables, in milliseconds. What was never begun counts for nothing, nor do
    patterns of a one-shot supernet.

    Args:
        path: The database.
    """
    names = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "stopped", "RUNNING": "running"}
    with _opened(path, "ro") as database:
        found = database.execute(
            "SELECT state, count(*) FROM trials WHERE trial_id IN"
            " (SELECT trial_id FROM trial_user_attributes WHERE key IN ('trial', 'result'))"
            " GROUP BY state"
        ).fetchall()
    return dict.fromkeys(names.values(), 0) | {names[s]: n for s, n in found if s in names}


def read_attributes(path: Path) -> dict[str, Any]:
    """Attributes of a store, all but those of its searches; values that are long are None.

    Args:
        path: The database.
    """
    with _opened(path, "ro") as database:
        found = database.execute(
            "SELECT key, CASE WHEN length(value_json) < 200 THEN value_json ELSE 'null' END"
            " FROM study_user_attributes"
        ).fetchall()
    return {key: json.loads(value) for key, value in found}


def damaged(path: Path, what: str) -> StudyRefusedError:
    """The refusal of a damaged database, with its cure."""
    return StudyRefusedError(
        f"{path} is damaged ({what}) and was left as it is; `gatesearch status` with the same "
        "--study and --out names the last backup and restores it"
    )


def _fault(path: Path, mode: str, thorough: bool) -> str | None:
    """What SQLite or the file's size says.

    Raises:
        sqlite3.OperationalError: It cannot be opened so.
    """
    try:
        with _opened(path, mode) as database:
            # Reading keeps writers out until the end of the transaction, so that sizes agree.
            database.execute("BEGIN")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            pages, size = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "page_size")
            )
            there = path.stat().st_size
            if pages == 0:
                return f"it has no header in its {there:,} bytes"
            if there < pages * size and not Path(f"{path}-wal").exists():
                return f"its header says {pages * size:,} bytes, found {there:,}"
            if not thorough:
                return None
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
            return _garbled(database) if found == "ok" else found.splitlines()[-1]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            return None  # who writes it finds it sound
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return str(error)


def _garbled(database: sqlite3.Connection) -> str | None:
    """SQLite has no sums of its pages; but Optuna writes JSON in ASCII alone."""
    database.text_factory = bytes
    for kind in ("study", "trial"):
        table = f"{kind}_user_attributes"
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            continue
        for number, value in database.execute(f"SELECT {kind}_id, value_json FROM {table}"):
            if not isinstance(value, bytes) or not value.isascii() or b"\0" in value:
                return f"an attribute of {kind} {number} is no text"
    return None


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
        database.text_factory = lambda data: data.decode(errors="replace")
        yield database


def _beside(path: Path) -> tuple[str, ...]:
    return tuple(suffix for suffix in _BESIDE if Path(f"{path}{suffix}").exists())


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A file to be written and renamed to `path`; what is left of it is removed.

    Raises:
        DataError: The folder takes no more.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
    except OSError as error:
        raise _unwritten(path, error.strerror or str(error)) from error
    finally:
        for suffix in ("", *_BESIDE):
            with contextlib.suppress(OSError):
                Path(f"{aside}{suffix}").unlink()


def _unwritten(path: Path, what: str) -> DataError:
    return DataError(
        f"cannot write {path}: {what}; what is finished is kept. Make room, or mend its folder"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
