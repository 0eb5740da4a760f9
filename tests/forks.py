"""Command lines in forks of a process that has imported torch and all else that they import.

Starting Python and importing torch, pandas, Optuna and matplotlib takes a few seconds of a core,
hundreds of times in all tests. `Server` starts one process that imports them once, runs no command
itself, and forks for each command line. The fork then becomes what `python -m gatesearch` would be:
its folder, environment, streams, limits and signals, its `__main__` module and its exit are those
of a fresh process, and a worker that it spawns is a fresh process.

Only what is read while Python or those libraries start cannot differ from call to call, such as
`OMP_NUM_THREADS`. Whoever changes such a variable, or tests how Python starts, starts it afresh.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = (
    *("torch", "numpy", "PIL.Image", "safetensors.torch", "typer.rich_utils", "rich.progress"),
    *("alembic.command", "optuna.storages._rdb.models", "sqlalchemy.dialects.sqlite"),
    # What counts multiply-adds, and what measures.
    *("torch._dynamo", "torchvision.models", "fvcore.nn", "thop", "torchmetrics"),
    *("gatesearch.search.run", "gatesearch.report", "gatesearch.export"),
)
# Beginnings of the names of variables that are read by commands, not by imports.
FREE = ("PG", "GATESEARCH_")
LONGEST = 2**17  # bytes of a request; one packet


class Forked:
    """A command line in a fork; what tests use of `subprocess.Popen`.

    Attributes:
        pid: Its number.
        stdout: What it prints, as text.
        stderr: What it tells, as text.
        returncode: As of `Popen`; None while it runs.
    """

    def __init__(self, stdout, stderr, status):
        self.stdout, self.stderr = (os.fdopen(end, encoding="utf-8") for end in (stdout, stderr))
        self.returncode = None
        self._status = status
        self.pid = self._told()

    def _told(self):
        """Wait for the next number: first that of the process, then its exit code."""
        packet = self._status.recv(64)
        if not packet:
            raise ChildProcessError("the fork server has ended")
        return int(packet)

    def poll(self):
        return self._wait(0)

    def wait(self, timeout=None):
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired("gatesearch", timeout)
        return self.returncode

    def _wait(self, timeout):
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = self._told()
            self._status.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """Read what is left of both streams, and wait for the end."""
        texts = {}
        readers = [
            threading.Thread(target=lambda s=stream: texts.update({s: s.read()}), daemon=True)
            for stream in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("gatesearch", timeout)
        self.wait(timeout)
        for stream in texts:
            stream.close()
        return texts[self.stdout], texts[self.stderr]


class Server:
    """The process that forks; it ends with this one."""

    def __init__(self, environment):
        self._environment = dict(environment)
        self._control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(end.fileno())],
                cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL, pass_fds=[end.fileno()],
            )  # fmt: skip
        atexit.register(self.close)

    def close(self):
        self._control.close()
        self._process.wait()

    def start(self, arguments, *, folder, environment, largest_file=None):
        """Start `python -m gatesearch` with these arguments in a folder.

        Args:
            arguments: Words, of any type that has a text.
            folder: Its working directory.
            environment: All its variables; only those of `FREE` may differ from the server's.
            largest_file: Most bytes of a file that it may write; None for no limit.
        """
        other = {name for name, _ in self._environment.items() ^ environment.items()}
        if fixed := sorted(name for name in other if not name.startswith(FREE)):
            raise ValueError(f"a fork cannot change {fixed}; start a fresh process")
        request = {
            "arguments": [str(word) for word in arguments],
            "folder": str(folder),
            "environment": dict(environment),
            "largest_file": largest_file,
        }
        stdout, stderr = os.pipe(), os.pipe()
        status, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = (stdout[1], stderr[1], end.fileno())
        socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        end.close()
        for pipe in (stdout, stderr):
            os.close(pipe[1])
        return Forked(stdout[0], stderr[0], status)


@functools.cache
def _servers():
    """List the server of this process, once there is one."""
    return []


def start(arguments, *, folder, environment, largest_file=None):
    """Start `python -m gatesearch` in a fork of this process's server: see `Server.start`."""
    servers = _servers()
    if not servers:
        servers.append(Server(environment))
    return servers[0].start(
        arguments, folder=folder, environment=environment, largest_file=largest_file
    )


# --- in the server ------------------------------------------------------------------------------


def serve(control):
    """Fork for each request, and tell the exit code of each fork.

    Returns:
        In a fork, its request and descriptors; in the server, at its end, None.
    """
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    forks = {}
    while True:
        ready = select.select([control, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            _reap(forks)
        if control not in ready:
            continue
        packet, descriptors, _, _ = socket.recv_fds(control, LONGEST, 3)
        if not packet:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for status in forks.values():
                status.close()
            for end in (woken, wake):
                os.close(end)
            control.close()
            return json.loads(packet), descriptors
        for end in descriptors[:2]:
            os.close(end)
        forks[pid] = socket.socket(fileno=descriptors[2])


def _reap(forks):
    while forks:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with forks.pop(pid) as status, contextlib.suppress(BrokenPipeError):
            status.send(str(os.waitstatus_to_exitcode(code)).encode())


def become(request, descriptors):
    """Make this fork the process that was asked for."""
    # A shell started in the background has its children ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["gatesearch", *request["arguments"]]
    sys.path[0] = os.getcwd()
    importlib.import_module("numpy").random.seed()  # `random` does so by itself
    *outputs, status = descriptors
    for number, end in enumerate(outputs, start=1):
        os.dup2(end, number)
        os.close(end)
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    with socket.socket(fileno=status) as told:
        told.send(str(os.getpid()).encode())


def leave(code):
    """End as Python does, but do not take every module apart, which is most of a short command."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # forks need no copies of the pages of what lives as long as they do
    asked = serve(control)
    if asked is None:
        leave(0)
    become(*asked)
    try:
        runpy.run_module("gatesearch", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int):
            leave(end.code)
        raise


if __name__ == "__main__":
    main()
