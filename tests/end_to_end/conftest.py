"""The command line as a process of its own, and stores that several tests read."""

import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gatesearch.results import front
from gatesearch.store.opening import read_store
from tests import forks

ROOT = forks.ROOT
TINY = str(Path(__file__).with_name("tiny.toml"))
PATIENCE = 300  # seconds; a whole run takes ten on an idle core
KILLS = int(os.environ.get("GATESEARCH_KILLS", "1"))
TRIALS = 12 if KILLS > 1 else 4
# Draws that depend on nothing but their number; checkpoints after nearly every step.
ARGUMENTS = (
    *("run", "--study", TINY, "--n-trials", TRIALS, "--set", "search.sampler=random"),
    *("--set", "execution.checkpoint_minutes=0.001", "--set", "execution.attempts=1000"),
)


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        return json.loads(self.stdout.splitlines()[-1])

    def refused(self, code):
        """One screen of plain words on standard error, and the code."""
        assert self.code == code, self.stderr
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        assert len(self.stderr.splitlines()) <= 24
        return self.stderr


@dataclass
class Running:
    """A run that was started and is watched by its lines."""

    process: subprocess.Popen | forks.Forked
    lines: list[str] = field(default_factory=list)

    def wait_for(self, text):
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"ended without '{text}':\n{''.join(self.lines)}")

    def end(self, *signals):
        for number in signals:
            self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return Done(self.process.returncode, stdout, "".join(self.lines) + stderr)


def obey_modes():
    """Make the modes of files hold for the program that this process becomes, even as root."""
    if os.geteuid() == 0:
        drop, overrides = 24, (1, 2)  # PR_CAPBSET_DROP; CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        for capability in overrides:
            if ctypes.CDLL(None, use_errno=True).prctl(drop, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "root keeps its right to write anywhere")


class CommandLine:
    """`python -m gatesearch` in a folder of its own."""

    def __init__(self, folder, environment):
        self.folder = folder
        self.environment = environment

    def start(self, *arguments, largest_file=None, bound_by_modes=False, fresh=False):
        """Start it in a fork, or in a fresh process of Python: see `tests/forks.py`."""
        if not fresh and not bound_by_modes:  # capabilities are lost where a program begins
            process = forks.start(
                arguments,
                folder=self.folder,
                environment=self.environment,
                largest_file=largest_file,
            )
            return self._watched(process)

        def limit():
            # A shell started in the background has its children ignore SIGINT.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            if bound_by_modes:
                obey_modes()

        process = subprocess.Popen(
            [sys.executable, "-m", "gatesearch", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )
        return self._watched(process)

    def _watched(self, process):
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.daemon = True
        watchdog.start()
        process.watchdog = watchdog
        return Running(process)

    def __call__(self, *arguments, **limits):
        running = self.start(*arguments, **limits)
        done = running.end()
        running.process.watchdog.cancel()
        return done


@pytest.fixture
def cli(tmp_path, environment):
    return CommandLine(tmp_path, environment)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, environment):
    """The folder in which the tiny study ran to three trials without any trouble; only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    # Afresh: other tests compare what forks make of it.
    done = CommandLine(folder, environment)("run", "--study", TINY, "--n-trials", 3, fresh=True)
    assert done.code == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, environment, tiny):
    """The folder of the run that other tests kill or interrupt, here left alone; only read it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = CommandLine(folder, environment)(*ARGUMENTS, "--data", tiny / "data")
    assert done.code == 0, done.stderr
    return folder


@pytest.fixture
def expected(undisturbed):
    return outcome(undisturbed / "runs" / "tiny")


@pytest.fixture
def own_tiny(tiny, tmp_path):
    """A copy of that folder for tests that change it."""
    return shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)


def outcome(store, **server):
    """All results of a search and the bytes of its networks."""
    record = read_store(store, **server)
    networks = {p.parent.name: p.read_bytes() for p in store.glob("trials/*/model.safetensors")}
    return (
        [(r.method, r.metrics, r.gflops) for r in record.baselines],
        [(r.trial, r.state, dict(r.params), r.metrics, r.gflops, r.curves) for r in record.trials],
        [r.trial for r in front(record)],
        networks,
    )


def children(pid):
    """Worker processes of a run, or of a worker; not multiprocessing's own helper."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def contents(folder):
    """Relative path -> digest of every file but lock, log and status, which reading may change."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "log.jsonl", "status.json")
    }


def trained(store):
    """Events of the log that say a training has ended."""
    lines = [json.loads(line) for line in (store / "log.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["event"] in ("trial", "baseline")]
