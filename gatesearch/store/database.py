"""The database of a store: opened, checked for damage, its complaints explained."""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from gatesearch.errors import DataError, StudyRefusedError
from gatesearch.store.backup import DATABASE, damage, damaged, last_backup
from gatesearch.store.lock import server_url

# Codes of a disk or folder that takes no more: a cure outside the store makes them go away.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_NO_ROOM_SQLITE = {"SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN"}


def open_database(folder: Path, url: str = "") -> RDBStorage:
    """The database in a store's folder, or on a server.

    Args:
        folder: The store's.
        url: `postgresql://...`; empty for SQLite in the folder.

    Raises:
        StudyRefusedError: It is damaged, and left as it is, or of another version of Optuna.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url:
        return RDBStorage(server_url(url).render_as_string(hide_password=False))
    _check(folder)
    try:
        return RDBStorage(f"sqlite:///{folder.absolute() / DATABASE}")
    except RuntimeError as error:  # tables of another version of Optuna
        raise StudyRefusedError(
            f"{folder / DATABASE} cannot be used: {str(error).splitlines()[0]}; name another "
            "folder with --out"
        ) from error


def close_database(storage: RDBStorage) -> None:
    """Give back its connections."""
    storage.remove_session()
    storage.engine.dispose()


def _check(folder: Path) -> None:
    """Find damage before anything is written: Optuna opens, and writes to, half a database."""
    path = folder / DATABASE
    fresh = not path.exists() or path.stat().st_size == 0
    # A killed first start leaves an empty file, which is no loss; one beside networks is.
    if fresh and last_backup(folder) is None and not (folder / "baselines").exists():
        return
    wrong = damage(path)
    if wrong is not None:
        raise damaged(path, wrong)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what a disk or database complains of into an error that names the cure.

    Raises:
        DataError: The disk is full or the folder cannot be written.
        StudyRefusedError: The database cannot be used.
    """
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        cause = _sqlite_error(error)
        # Extended codes such as SQLITE_IOERR_WRITE begin with their family.
        code = "_".join(getattr(cause, "sqlite_errorname", "").split("_")[:2])
        if code in _NO_ROOM_SQLITE:
            raise _no_room(folder / DATABASE, str(cause)) from error
        raise StudyRefusedError(
            f"{folder / DATABASE} cannot be used: {str(cause).splitlines()[0]}; if it is damaged, "
            "move it away and put a backup in its place, or name another folder with --out"
        ) from error
    except json.JSONDecodeError as error:
        raise damaged(folder / DATABASE, str(error)) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _no_room(Path(error.filename or folder), str(error.strerror)) from error


def _sqlite_error(error: BaseException) -> BaseException:
    """The database's own error, under those of SQLAlchemy and Optuna."""
    below = getattr(error, "orig", None) or error.__cause__
    return _sqlite_error(below) if below is not None else error


def _no_room(path: Path, what: str) -> DataError:
    return DataError(
        f"cannot write {path}: {what}; what is finished is kept. Make room or name another "
        "folder, then run the same command again"
    )
