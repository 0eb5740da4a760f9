"""Locks that let one process at a time write to a store: on its folder, or on a PostgreSQL server.

When the process ends, in whatever way, the operating system frees the first and the server the
second. Needs no torch.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gatesearch.errors import DataError, StudyRefusedError
from gatesearch.files import FileRefusedError, open_regular, parse_json
from gatesearch.store.server import connection_url, unreachable
from gatesearch.store.tidy import refusing_files, tidy

if TYPE_CHECKING:
    import sqlalchemy

LOCK = "lock"

# Seconds for which `locked` tries. `holder` takes the lock for an instant, and a process that has
# just taken it writes its name a moment later.
_PATIENCE = 0.25


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        pid: Its process number on its host; 0 where the process is not known.
        host: Name of the machine.
        started: Time at which it took the lock, ISO 8601.
    """

    pid: int
    host: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"


def myself() -> Holder:
    """Describe this process as a holder from now on."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), now)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Take an exclusive lock on the store's folder; the system frees it when the process ends.

    Then nobody else writes to the store, so that it can be checked, and rid of what killed
    processes left (`tidy`).

    The lock file is never removed: of two processes, one could hold the removed file and the other
    a new one of the same name.

    Args:
        folder: The store's folder; it is made where it is missing.

    Raises:
        StudyRefusedError: Another process holds the lock, and the error names it; or there is a
            link or a pipe in the folder.
        DataError: The folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with refusing_files():
                descriptor = open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
            stack.callback(os.close, descriptor)
            if not _try_lock(descriptor):
                raise StudyRefusedError(
                    f"{folder} is in use by {_read_name(descriptor) or 'another process'}; wait "
                    "for it, or name another folder with --out"
                )
            name = json.dumps(asdict(myself())).encode() + b"\n"
            # Until the file is cut, the end of a longer earlier name may follow this line; readers
            # read the first line alone.
            os.pwrite(descriptor, name, 0)
            os.ftruncate(descriptor, len(name))
            stack.callback(_erase_name, descriptor)
            tidy(folder)
        except OSError as error:
            raise DataError(
                f"cannot write {folder}: {error.strerror}; name another folder with --out"
            ) from error
        stack.enter_context(_closed_in_forks(descriptor))
        yield


def holder(folder: Path) -> Holder | None:
    """Find the process that holds the lock on a store's folder now; None where none does.

    A holder that has not written its name has process number 0.

    Raises:
        StudyRefusedError: The lock is a link, folder, pipe, socket or device.
    """
    try:
        with refusing_files():
            descriptor = open_regular(folder / LOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_name(descriptor) or Holder(0, "", "")
    finally:
        os.close(descriptor)
    return None


@contextmanager
def advisory_lock(url: str, name: str) -> Iterator[None]:
    """Take an exclusive lock on a name on a PostgreSQL server, until the connection ends.

    If the host is lost, the server frees the lock after a minute of missed keep-alive messages.

    Args:
        url: `postgresql://USER:PASSWORD@HOST/DATABASE`; the same name on two databases has two
            locks.
        name: The name, such as that of a study.

    Raises:
        StudyRefusedError: Another process holds the lock; the error names it.
        UsageError: Another kind of URL, or the driver is not installed.
        DataError: The server cannot be reached.
    """
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    me = myself()
    engine = sqlalchemy.create_engine(
        connection_url(url),
        poolclass=sqlalchemy.NullPool,
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,  # there is no transaction, and perhaps no server any more
        connect_args={
            "application_name": f"{me.pid}@{me.host}"[:63],
            "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 "
            "-c tcp_keepalives_count=3",
        },
    )
    digest = hashlib.sha256(f"gatesearch {name}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(engine.connect())
            taken = connection.scalar(
                sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}
            )
            other = None if taken else _server_holder(connection, key)
        except DBAPIError as error:
            raise unreachable(url, error.orig) from error
        if not taken:
            raise StudyRefusedError(
                f"'{name}' on {engine.url.host or 'the server'} is in use by "
                f"{other or 'another process'}; wait for it, or name another --storage"
            )
        driver = connection.connection.driver_connection
        assert driver is not None
        stack.enter_context(_closed_in_forks(driver.fileno()))
        yield


def _server_holder(connection: "sqlalchemy.Connection", key: int) -> str | None:
    """Describe the holder of an advisory lock as `process PID on HOST since TIME`.

    The server hides the time from other users of its databases.
    """
    import sqlalchemy

    row = connection.execute(
        sqlalchemy.text(
            "SELECT application_name, backend_start FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (classid::bigint << 32) | objid::bigint = :key"
        ),
        {"key": key},
    ).first()
    if row is None:
        return None
    pid, _, host = row.application_name.partition("@")
    if row.backend_start is None:
        return f"process {pid} on {host}"
    since = row.backend_start.astimezone().isoformat(timespec="seconds")
    return f"process {pid} on {host} since {since}"


def _try_lock(descriptor: int) -> bool:
    """Try for `_PATIENCE` seconds to take the lock; tell whether it was taken."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        else:
            return True


def _read_name(descriptor: int) -> Holder | None:
    first_line = os.pread(descriptor, 4096, 0).split(b"\n")[0]
    try:
        return parse_json(first_line, Holder, Path(LOCK))
    except FileRefusedError:
        return None


def _erase_name(descriptor: int) -> None:
    with suppress(OSError):
        os.ftruncate(descriptor, 0)


# Descriptors of the locks that this process holds. A forked child inherits them, and would keep the
# locks after its parent has ended, so the child closes them.
_held: set[int] = set()


@contextmanager
def _closed_in_forks(descriptor: int) -> Iterator[None]:
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)


def _close_held() -> None:
    """Point each descriptor at /dev/null, which frees it without closing its number."""
    for descriptor in _held:
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), descriptor, inheritable=False)
    _held.clear()


os.register_at_fork(after_in_child=_close_held)
