"""One process at a time: a lock on the store's folder, or on a PostgreSQL server.

Both are the system's, so that they end with their process however it ends. Nothing here needs
torch.
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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gatesearch.errors import DataError, StudyRefusedError, UsageError

if TYPE_CHECKING:
    import sqlalchemy

LOCK = "lock"

# Who asks `holder` has the lock for an instant, and a new holder writes its name a moment later.
_PATIENCE = 0.25  # seconds


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        pid: Number of the process on its host.
        host: Name of the machine.
        started: When it took the lock, ISO 8601.
    """

    pid: int
    host: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"


def myself() -> Holder:
    """This process, from now on."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), now)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the store's folder for one process; the system lets go when the process ends.

    The file stays: one that is removed could be locked by two, each its own.

    Args:
        folder: Made where it is missing.

    Raises:
        StudyRefusedError: Another process holds it; says which.
        DataError: The folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            if not _taken(descriptor):
                raise StudyRefusedError(
                    f"{folder} is in use by {_named(descriptor) or 'another process'}; wait for "
                    "it, or name another folder with --out"
                )
            name = json.dumps(asdict(myself())).encode() + b"\n"
            # Beyond the first line may be the rest of a longer one for a moment.
            os.pwrite(descriptor, name, 0)
            os.ftruncate(descriptor, len(name))
        except OSError as error:
            raise DataError(
                f"cannot write {folder}: {error.strerror}; name another folder with --out"
            ) from error
        stack.callback(_unname, descriptor)
        stack.enter_context(_own(descriptor))
        yield


def holder(folder: Path) -> Holder | None:
    """Who holds a store's folder now; None where nobody does.

    A holder that cannot be named has process 0.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(descriptor) or Holder(0, "", "")
    finally:
        os.close(descriptor)
    return None


@contextmanager
def advisory_lock(url: str, name: str) -> Iterator[None]:
    """Hold a name on a PostgreSQL server for one process; it ends with its connection.

    A host that is lost lets go after a minute, when the server has missed its keep-alives.

    Args:
        url: `postgresql://USER:PASSWORD@HOST/DATABASE`; names on two databases are two.
        name: What is held, such as a study's name.

    Raises:
        StudyRefusedError: Another process holds it; says which.
        UsageError: Not such a URL, or its driver is not installed.
        DataError: The server cannot be reached.
    """
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError

    me = myself()
    engine = sqlalchemy.create_engine(
        server_url(url),
        poolclass=sqlalchemy.NullPool,
        isolation_level="AUTOCOMMIT",
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
            shown = engine.url.render_as_string(hide_password=True)
            raise DataError(
                f"cannot use {shown}: {error.orig}; start the server, or mend --storage"
            ) from error
        if not taken:
            raise StudyRefusedError(
                f"'{name}' on {engine.url.host or 'the server'} is in use by "
                f"{other or 'another process'}; wait for it, or name another --storage"
            )
        driver = connection.connection.driver_connection
        assert driver is not None
        stack.enter_context(_own(driver.fileno()))
        yield


def server_url(url: str) -> "sqlalchemy.URL":
    """The URL of a PostgreSQL server, with the driver that we use.

    Raises:
        UsageError: Another kind of URL, or the driver is not installed.
    """
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise UsageError(
            "--storage takes postgresql://USER:PASSWORD@HOST/DATABASE, found "
            f"'{parsed.render_as_string() if parsed else url}'"
        )
    if find_spec("psycopg") is None:
        raise UsageError(
            "--storage postgresql://... needs psycopg; install it: pip install "
            "'gatesearch[postgresql]'"
        )
    return parsed.set(drivername="postgresql+psycopg")


def _server_holder(connection: "sqlalchemy.Connection", key: int) -> str | None:
    """`process PID on HOST since TIME`; the time is hidden between users of the server."""
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


def _taken(descriptor: int) -> bool:
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


def _named(descriptor: int) -> Holder | None:
    first = os.pread(descriptor, 4096, 0).split(b"\n")[0]
    try:
        return Holder(**json.loads(first))
    except (ValueError, TypeError):
        return None


def _unname(descriptor: int) -> None:
    with suppress(OSError):
        os.ftruncate(descriptor, 0)


# A forked child would keep what its parent holds, also after the parent's end.
_owned: set[int] = set()


@contextmanager
def _own(descriptor: int) -> Iterator[None]:
    _owned.add(descriptor)
    try:
        yield
    finally:
        _owned.discard(descriptor)


def _let_go() -> None:
    for descriptor in _owned:
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), descriptor, inheritable=False)
    _owned.clear()


os.register_at_fork(after_in_child=_let_go)
