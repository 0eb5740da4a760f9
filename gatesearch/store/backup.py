"""Back up the store's database, find damage in it, and restore it. Needs no torch.

A process that writes the database must open its file through SQLite alone: when a process closes
any other handle of the file, the operating system drops the locks that SQLite holds on it.
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
from gatesearch.store.integrity import find_fault, is_sealed
from gatesearch.store.tidy import check_regular, exists

DATABASE = "study.db"
# Newest first.
BACKUPS = (f"{DATABASE}.backup", f"{DATABASE}.backup.1")
# Suffixes of the files that SQLite keeps beside a database, and recovers it with after a crash.
_SIDE_FILES = ("-journal", "-wal", "-shm")


@dataclass(frozen=True)
class Backup:
    """A backup without damage.

    Attributes:
        path: The file.
        made: When it was made.
        trials: Number of trials in it that have ended.
    """

    path: Path
    made: datetime
    trials: int


@dataclass(frozen=True)
class Restored:
    """A store whose database was replaced by a backup.

    Attributes:
        damaged: Path to which the damaged database was moved; None where it was missing.
        backup: The backup that is in its place now.
    """

    damaged: Path | None
    backup: Backup


class Backups:
    """Makes backups of a store as it changes.

    Args:
        folder: The store's folder.
        warn: Called with a message when a backup could not be written; the search can go on.
        minutes: Minimum time between two backups.
        clock: Returns the time in seconds.
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
        """Back up, unless the last backup is less than `minutes` old.

        Raises:
            StudyRefusedError: The database is damaged.
        """
        if self._clock() >= self._due:
            self.close()

    def close(self) -> None:
        """Back up now.

        Raises:
            StudyRefusedError: The database is damaged.
        """
        try:
            back_up(self._folder)
        except DataError as error:
            self._warn(str(error))
        # Counted from the end of a backup, so that slow backups leave time for the search.
        self._due = self._clock() + self._interval


def back_up(folder: Path) -> Path:
    """Back up the database as it is at this moment; another connection may write to it meanwhile.

    The new backup is written and checked under another name, and renamed only when it is complete.
    The previous backup is kept as `BACKUPS[1]`.

    Args:
        folder: The store's folder.

    Returns:
        Path of the new backup.

    Raises:
        DataError: The folder cannot be written.
        StudyRefusedError: The database is damaged; the backups are left as they are.
    """
    source, newest = folder / DATABASE, folder / BACKUPS[0]
    for path in (source, newest, folder / BACKUPS[1]):
        check_regular(path)
    with _replacement(newest) as unfinished:
        try:
            with _opened(source, "rw") as database, _opened(unfinished, "rwc") as copy:
                # An open read transaction spares the copy from waiting until nobody writes.
                database.execute("BEGIN")
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                database.backup(copy)
        except sqlite3.OperationalError as error:
            raise _unwritable(newest, str(error)) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise damaged(source, str(error)) from error
        fault = damage(unfinished)
        if fault is not None:
            raise damaged(source, fault)
        _sync(unfinished)
        if exists(newest):
            newest.replace(folder / BACKUPS[1])
        unfinished.replace(newest)
        _sync(folder)
    return newest


def damage(path: Path, *, thorough: bool = True) -> str | None:
    """Describe the damage of a database; None if there is none. The database is not written to.

    An unfinished transaction of a killed process is no damage: SQLite rolls it back when the
    database is next opened for writing.

    Args:
        path: The database.
        thorough: Check every page, and verify all checksums; otherwise only the header and the
            size of the file.

    Raises:
        DataError: The database cannot be opened.
        StudyRefusedError: It is a link, folder, pipe, socket or device.
    """
    check_database_files(path)
    if not path.exists():
        return "it is missing"
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        return _fault(path, "ro", thorough)
    except sqlite3.OperationalError as error:
        if not any(_side_files(path)):
            raise DataError(f"cannot open {path}: {error}") from error
    # An unfinished transaction is rolled back by writing, so that is done on a copy.
    with tempfile.TemporaryDirectory(prefix="gatesearch-") as folder:
        copy = Path(folder) / path.name
        for suffix in ("", *_side_files(path)):
            # Another process may just have rolled it back and removed the file.
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        try:
            return _fault(copy, "rw", thorough)
        except sqlite3.OperationalError as error:
            raise DataError(f"cannot open {path}: {error}") from error


def check_database_files(path: Path) -> None:
    """Refuse a database if it or a file that SQLite keeps beside it is no regular file.

    Raises:
        StudyRefusedError: One is a link, folder, pipe, socket or device.
    """
    for suffix in ("", *_SIDE_FILES):
        check_regular(Path(f"{path}{suffix}"))


def last_backup(folder: Path) -> Backup | None:
    """Find the newest backup of a store that is not damaged; None where there is none."""
    for name in BACKUPS:
        path = folder / name
        with contextlib.suppress(DataError, StudyRefusedError, sqlite3.DatabaseError):
            if damage(path) is None:
                made = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
                ended = sum(n for state, n in count_trials(path).items() if state != "running")
                return Backup(path, made, ended)
    return None


def restore(folder: Path) -> Restored:
    """Replace a damaged database by its newest sound backup.

    The damaged file is renamed to `study.db.damaged-TIME`. The caller holds the lock of the folder.

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
    with _replacement(path) as unfinished:
        shutil.copyfile(backup.path, unfinished)
        _sync(unfinished)
        moved_to = None
        damaged_path = path.with_name(f"{DATABASE}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
        # The journal is moved first: SQLite would apply one that is left alone to the backup.
        for suffix in (*_side_files(path), *([""] if exists(path) else [])):
            Path(f"{path}{suffix}").rename(f"{damaged_path}{suffix}")
            moved_to = damaged_path
        unfinished.replace(path)
        _sync(folder)
    return Restored(moved_to, backup)


def count_trials(path: Path) -> dict[str, int]:
    """Count the trials of all searches by state: `complete`, `failed`, `stopped`, `running`.

    They are read from Optuna's tables, in milliseconds. Trials that were never begun are not
    counted, and neither are the configurations that are tried on a one-shot supernet.

    Args:
        path: The database.
    """
    names = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "stopped", "RUNNING": "running"}
    with _opened(path, "ro") as database:
        rows = database.execute(
            "SELECT state, count(*) FROM trials WHERE trial_id IN"
            " (SELECT trial_id FROM trial_user_attributes WHERE key IN ('trial', 'result'))"
            " GROUP BY state"
        ).fetchall()
    return dict.fromkeys(names.values(), 0) | {names[s]: n for s, n in rows if s in names}


def read_attributes(path: Path) -> dict[str, Any]:
    """Read the attributes of a store; a value of 400 or more characters of JSON is read as None.

    Args:
        path: The database.
    """
    with _opened(path, "ro") as database:
        rows = database.execute(
            "SELECT key, CASE WHEN length(value_json) < 400 THEN value_json ELSE 'null' END"
            " FROM study_user_attributes"
        ).fetchall()
    stored = {key: json.loads(value) for key, value in rows}
    return {k: value["value"] if is_sealed(value) else value for k, value in stored.items()}


def damaged(path: Path, fault: str) -> StudyRefusedError:
    """Make the error for a damaged database; it names the fault and the cure."""
    shown = " ".join(fault.split())[:200]
    return StudyRefusedError(
        f"{path} is damaged ({shown}) and was left as it is; `gatesearch status` with the same "
        "--study and --out names the last backup and restores it"
    )


def _fault(path: Path, mode: str, thorough: bool) -> str | None:
    """Describe the fault that SQLite reports or that the file's size shows; None without one.

    Raises:
        sqlite3.OperationalError: The database cannot be opened in this mode.
    """
    try:
        with _opened(path, mode) as database:
            # An open read transaction keeps writers out, so that header and file size agree.
            database.execute("BEGIN")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            pages, size = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "page_size")
            )
            file_size = path.stat().st_size
            if pages == 0:
                return f"it has no header in its {file_size:,} bytes"
            if file_size < pages * size and not Path(f"{path}-wal").exists():
                return f"its header says {pages * size:,} bytes, found {file_size:,}"
            if not thorough:
                return None
            return _damage_inside(database)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            return None  # Another process writes it, and so could open it.
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return str(error)


def _damage_inside(database: sqlite3.Connection) -> str | None:
    """Check every page and every index of a database, and verify the checksums in it."""
    try:
        report = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if report != "ok":
            return report.splitlines()[-1]
        garbled = _garbled_attribute(database)
        if garbled or not _has_table(database, "studies"):
            return garbled
        return find_fault(database.execute)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            raise
        # Its schema is not that of Optuna any more.
        return str(error)


def _has_table(database: sqlite3.Connection, name: str) -> bool:
    query = "SELECT count(*) FROM sqlite_master WHERE name = ?"
    return bool(database.execute(query, (name,)).fetchone()[0])


def _garbled_attribute(database: sqlite3.Connection) -> str | None:
    """Find an attribute that Optuna cannot have written: its JSON is in ASCII alone.

    The attributes of gatesearch 0.1.0 have no checksums.
    """
    for kind in ("study", "trial"):
        table = f"{kind}_user_attributes"
        if not _has_table(database, table):
            continue
        for number, value in database.execute(
            f"SELECT {kind}_id, CAST(value_json AS BLOB) FROM {table}"
        ):
            if not isinstance(value, bytes) or not value.isascii() or b"\0" in value:
                return f"an attribute of {kind} {number} is no text"
    return None


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
        database.text_factory = lambda data: data.decode(errors="replace")
        yield database


def _side_files(path: Path) -> tuple[str, ...]:
    return tuple(suffix for suffix in _SIDE_FILES if exists(Path(f"{path}{suffix}")))


@contextlib.contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """Name a temporary file that the caller writes and renames to `path`; remove it if it is left.

    Raises:
        DataError: The folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # What has this name, a link perhaps, is removed and never written through.
        unfinished.unlink(missing_ok=True)
        yield unfinished
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    finally:
        for suffix in ("", *_SIDE_FILES):
            with contextlib.suppress(OSError):
                Path(f"{unfinished}{suffix}").unlink()


def _unwritable(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot write {path}: {reason}; what is finished is kept. Make room, or mend its folder"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
