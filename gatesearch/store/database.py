"""Open the database of a store, check it for damage, and explain its errors."""

import contextlib
import errno
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.storages import RDBStorage

from gatesearch.errors import DataError, StudyRefusedError, first_line
from gatesearch.store.backup import DATABASE, damage, damaged, last_backup
from gatesearch.store.integrity import find_fault
from gatesearch.store.server import connection_url, shown, unreachable, without_secrets
from gatesearch.store.tidy import exists

# Error codes of a disk or folder that cannot be written; the cure lies outside the store.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# A connection that was lost within a transaction raises PendingRollbackError when it is used again.
_DATABASE_ERRORS = (
    sqlalchemy.exc.DBAPIError,
    sqlalchemy.exc.PendingRollbackError,
    optuna.exceptions.StorageInternalError,
)
_UNWRITABLE_SQLITE = {"SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN"}


def open_database(folder: Path, url: str = "") -> RDBStorage:
    """Open the database in a store's folder, or on a server.

    Args:
        folder: The store's folder.
        url: `postgresql://...`; empty for SQLite in the folder.

    Raises:
        StudyRefusedError: The database is damaged, or was written by another version of Optuna.
            It is not changed.
    """
    # Optuna's warnings quote statements of SQL; errors are raised.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not url:
        _check(folder)
    try:
        return _open_server(url) if url else _open_file(folder / DATABASE)
    except RuntimeError as error:  # The tables are those of another version of Optuna.
        place = f"the store on {shown(url)}" if url else str(folder / DATABASE)
        raise StudyRefusedError(
            f"{place} cannot be used: {first_line(error)}; name another "
            + ("--storage" if url else "folder with --out")
        ) from error


def _open_server(url: str) -> RDBStorage:
    text = connection_url(url).render_as_string(hide_password=False)
    return RDBStorage(text.replace("{", "{{").replace("}", "}}"))  # Optuna fills in a version


def _open_file(path: Path) -> RDBStorage:
    """Open an SQLite database by its path, never as a part of a URL, which would be decoded."""
    # Without `..`, from which SQLAlchemy and the system go to different folders behind a link.
    real = path.parent.resolve() / path.name
    return RDBStorage(
        "sqlite://",
        engine_kwargs={
            "creator": lambda: sqlite3.connect(real, check_same_thread=False),
            "poolclass": sqlalchemy.QueuePool,
        },
    )


def close_database(storage: RDBStorage) -> None:
    """Close the connections to the database."""
    storage.remove_session()
    storage.engine.dispose()


def _check(folder: Path) -> None:
    """Refuse a damaged database before Optuna opens it, which would write even to half of one."""
    path = folder / DATABASE
    fault = damage(path)
    if fault is None:
        return
    empty = not exists(path) or path.stat().st_size == 0
    # A first start that was killed leaves an empty file, and nothing is lost. Where there are
    # backups or trained networks, an empty file is damage.
    if empty and last_backup(folder) is None and not (folder / "baselines").exists():
        return
    raise damaged(path, fault)


def check_server(storage: RDBStorage, study: str, url: str) -> None:
    """Refuse a store on a server if a value in it was changed.

    Args:
        storage: The database.
        study: Name of the study.
        url: URL of the server.

    Raises:
        StudyRefusedError: The checksums are not those of the values.
    """
    snapshot = storage.engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as connection:
        fault = find_fault(connection.exec_driver_sql, study)
    if fault is not None:
        raise damaged_on_server(url, fault)


def damaged_on_server(url: str, fault: str) -> StudyRefusedError:
    """Make the error for a store on a server that was damaged."""
    return StudyRefusedError(
        f"the store on {shown(url)} is damaged ({without_secrets(fault, url)}) and was left as it "
        "is; put back a backup of the server, or name another --storage"
    )


@contextlib.contextmanager
def explained(folder: Path, url: str = "") -> Iterator[None]:
    """Turn errors of the disk and the database into errors that name the cure.

    Args:
        folder: The store's folder.
        url: URL of the server that keeps the store; empty for SQLite in the folder.

    Raises:
        DataError: The disk is full, the folder cannot be written, or the server cannot be reached
            or was lost.
        StudyRefusedError: The database cannot be used.
    """
    try:
        yield
    except _DATABASE_ERRORS as error:
        cause = _driver_error(error)
        if url:
            raise _server_error(url, cause) from error
        # Extended codes such as SQLITE_IOERR_WRITE begin with the code of their family.
        code = "_".join(getattr(cause, "sqlite_errorname", "").split("_")[:2])
        if code in _UNWRITABLE_SQLITE:
            raise _unwritable(folder / DATABASE, str(cause)) from error
        raise StudyRefusedError(
            f"{folder / DATABASE} cannot be used: {first_line(cause)}; if it is damaged, "
            "move it away and put a backup in its place, or name another folder with --out"
        ) from error
    except json.JSONDecodeError as error:
        raise damaged(folder / DATABASE, str(error)) from error
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise _unwritable(Path(error.filename or folder), str(error.strerror)) from error


def _driver_error(error: BaseException) -> BaseException:
    """Find the error of the database itself, which SQLAlchemy and Optuna wrap in theirs."""
    cause = getattr(error, "orig", None) or error.__cause__
    return _driver_error(cause) if cause is not None else error


def _server_error(url: str, cause: BaseException) -> DataError | StudyRefusedError:
    """Make the error for a server; only one that answered can refuse its tables."""
    from psycopg import DataError as ValueRefused
    from psycopg import IntegrityError, NotSupportedError, ProgrammingError

    refusals = (ProgrammingError, IntegrityError, NotSupportedError, ValueRefused)
    # Errors of the URL itself are ProgrammingErrors too, but have no code of a server.
    if not isinstance(cause, refusals) or cause.sqlstate is None:
        return unreachable(url, cause)
    reason = without_secrets(str(cause), url)
    return StudyRefusedError(
        f"the store on {shown(url)} cannot be used: {reason}; have its administrator mend that, or "
        "name another --storage"
    )


def _unwritable(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot write {path}: {reason}; what is finished is kept. Make room or name another "
        "folder, then run the same command again"
    )
