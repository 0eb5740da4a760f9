"""The status of a run: the file `status.json`, written by the run's coordinator, and its reader.

The coordinator is the process that executes `gatesearch run`. Needs neither torch nor Optuna, so
that a status is read at once, also while the search runs.
"""

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gatesearch.errors import UsageError
from gatesearch.events import Event, Progress
from gatesearch.files import FileRefusedError, parse_json, read_json, write_atomic
from gatesearch.store.backup import (
    BACKUPS,
    DATABASE,
    Restored,
    count_trials,
    damage,
    last_backup,
    read_attributes,
    restore,
)
from gatesearch.store.lock import holder, locked, myself
from gatesearch.store.tidy import entries_of, exists, is_regular

BOARD = "status.json"
# Raised by 1 whenever the format of the file changes.
FORMAT = 3
# Longest time that is shown as time left, seconds: a thousand years.
MOST_SECONDS = 1000 * 366 * 86400
# Size in bytes up to which every page of a database is checked for damage; checking a larger one
# takes too long for a status.
_MOST_CHECKED = 32 * 2**20
_EMPTY: Mapping[str, Any] = {
    "format": FORMAT,
    "study": "",
    "fingerprint": "",
    "tune": [],
    "budget": "",
    "seeds": [],
    "with_controls": None,
    "headroom": 0,
    "storage": "",
    "wanted": None,
    "n_trials": None,
    "trials": {"complete": 0, "failed": 0, "stopped": 0, "running": 0},
    "per_hour": None,
    "seconds_left": None,
    "best": None,
    "front": None,
    "baselines": {"done": 0, "wanted": None},
    "controls": {"done": 0, "wanted": None},
    "workers": [],
    "started": None,
    "updated": None,
    "process": None,
}


@dataclass(frozen=True)
class TrialOutcome:
    """A trial that ended.

    Attributes:
        trial: Its number in the store.
        state: `complete`, `failed` or `stopped`.
        gain: Δ_MTL on the validation part, percent; NaN where it was not measured.
        gflops: GFLOPs of its network.
    """

    trial: int
    state: str
    gain: float = math.nan
    gflops: float = 0.0


class StatusFile:
    """Writes the status of a run to `status.json`.

    Every change is written at once, except events of trainings: those at most once per second. If
    the disk cannot be written, the file stays as it was. All calls must come from one thread.

    Args:
        folder: The store's folder.
        study: Name of the study.
        fingerprint: Fingerprint of its definition.
        tune: Methods whose hyperparameters are searched; empty for the default method.
        budget: Budgets that bound the trials, joined by `+`; empty without any.
        seeds: Seeds as the user gave them; empty for the study's own.
        with_controls: Whether the user asked for controls; None leaves it to their cost.
        headroom: Number of drawn patterns that the user asked for.
        storage: URL of the server that keeps the store, without a password; empty for SQLite.
        wanted: Total number of trials of all searches.
        n_trials: Total of each search as the user gave it; None for the methods' own.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        study: str,
        fingerprint: str,
        tune: Sequence[str] = (),
        budget: str = "",
        seeds: Sequence[int] = (),
        with_controls: bool | None = None,
        headroom: int = 0,
        storage: str = "",
        wanted: int,
        n_trials: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        me = myself()
        self._path = folder / BOARD
        self._clock = clock
        self._status = {
            **_EMPTY,
            "study": study,
            "fingerprint": fingerprint,
            "tune": list(tune),
            "budget": budget,
            "seeds": list(seeds),
            "with_controls": with_controls,
            "headroom": headroom,
            "storage": storage,
            "wanted": wanted,
            "n_trials": n_trials,
            "started": me.started,
            "process": {"pid": me.pid, "host": me.host},
        }
        self._counts = dict.fromkeys(("complete", "failed", "stopped"), 0)
        self._counted: set[int] = set()
        self._front: list[TrialOutcome] = []
        self._workers: dict[str, dict[str, Any]] = {}
        self._search_start, self._ended_before = clock(), 0
        self._write()

    def baselines(self, done: int, wanted: int) -> None:
        """Set how many baselines are trained, of how many."""
        self._status["baselines"] = {"done": done, "wanted": wanted}
        self._write()

    def controls(self, done: int, wanted: int) -> None:
        """Set how many controls and repetitions of trials are trained, of how many."""
        self._status["controls"] = {"done": done, "wanted": wanted}
        self._write()

    def search(self, known: Iterable[TrialOutcome]) -> None:
        """Begin the search: add trials of earlier runs, and measure the rate of trials from now.

        Args:
            known: Those that were added before are passed over.
        """
        for trial in known:
            self._count(trial)
        self._search_start, self._ended_before = self._clock(), self._ended_trials
        self._write()

    def ended(self, trial: TrialOutcome) -> None:
        """Add a trial that ended now."""
        self._count(trial)
        self._write()

    def begin(self, job: str, *, attempt: int = 1) -> None:
        """Add a worker that begins a job.

        Args:
            job: Label of the job, as `trial 7`.
            attempt: Number of this attempt at the job, from 1.
        """
        taken = {worker["name"] for worker in self._workers.values()}
        number = next(n for n in range(1, len(taken) + 2) if f"worker {n}" not in taken)
        self._workers[job] = {
            "name": f"worker {number}",
            "job": job,
            "attempt": attempt,
            "since": _now(),
            "stage": "",
            "seen": _now(),
        }
        self._write()

    def heard(self, job: str, event: Event) -> None:
        """Show the event that the worker of a job sent."""
        worker = self._workers.get(job)
        if worker is None:
            return
        stage = event.message
        if isinstance(event, Progress):
            stage = f"{event.done}/{event.total} {event.unit} {stage}".strip()
        worker.update(stage=stage, seen=_now())
        if self._clock() - self._written >= 1:
            self._write()

    def end(self, job: str) -> None:
        """Remove the worker of a job that ended."""
        self._workers.pop(job, None)
        self._write()

    def close(self) -> None:
        """Remove all workers, at the end of the run."""
        self._workers.clear()
        self._write()

    @property
    def _ended_trials(self) -> int:
        return sum(self._counts.values())

    def _count(self, trial: TrialOutcome) -> None:
        if trial.trial in self._counted:
            return
        self._counted.add(trial.trial)
        self._counts[trial.state] += 1
        if trial.state != "complete" or not math.isfinite(trial.gain):
            return
        if not any(_dominates(other, trial) for other in self._front):
            remaining = [other for other in self._front if not _dominates(trial, other)]
            self._front = [*remaining, trial]

    def _write(self) -> None:
        self._written = self._clock()
        hours = (self._written - self._search_start) / 3600
        done = self._ended_trials - self._ended_before
        left = max(0, self._status["wanted"] - self._ended_trials)
        rate = done / hours if done and hours else None
        best = max(self._front, key=lambda trial: (trial.gain, -trial.gflops), default=None)
        self._status |= {
            "trials": {**self._counts, "running": sum(map(_is_trial, self._workers))},
            "per_hour": rate,
            "seconds_left": min(3600 * left / rate, MOST_SECONDS) if rate else None,
            "best": None
            if best is None
            else {"trial": best.trial, "delta_mtl": best.gain, "gflops": best.gflops},
            "front": len(self._front),
            "workers": list(self._workers.values()),
            "updated": _now(),
        }
        # Not synced to disk: after a power cut, the store itself holds everything that matters.
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(self._status).encode(), durable=False)


def read_status(folder: Path) -> dict[str, Any]:
    """Read the progress of a run, the process that runs it, and the soundness of its store.

    Args:
        folder: The store's folder.

    Returns:
        The contents of `status.json`, or counts from the database where that file is missing; and
        `alive`: whether a coordinator runs; `holder`: its process; `unfinished`: number of trials
        that were begun and left no result; `damage`: the fault of the database, None where it is
        sound; `backup`: its last sound backup, where it is damaged; `passed_over`: the fault of
        `status.json`, None where it is whole or of an earlier version.

    Raises:
        UsageError: There is no store in that folder.
        StudyRefusedError: The database or the lock is no regular file.
    """
    check_store(folder)
    path, coordinator = folder / DATABASE, holder(folder)
    passed_over = None
    try:
        status = _read_board(folder)
    except FileRefusedError as error:
        status, passed_over = None, str(error)
    fault = None
    # Without `status.json` a database that is not here may be on a server.
    local = exists(path) or passed_over is None
    if local and (status is None or not status["storage"]):
        large = is_regular(path) and path.stat().st_size > _MOST_CHECKED
        fault = damage(path, thorough=not large)
    if status is None:
        status = dict(_EMPTY) if fault or not local else _counted(path)
        if passed_over is None and not exists(folder / BOARD):
            passed_over = f"{folder / BOARD} is missing"
    if coordinator is None:
        status |= {"workers": [], "trials": {**status["trials"], "running": 0}}
    backup = last_backup(folder) if fault else None
    ended = sum(number for state, number in status["trials"].items() if state != "running")
    return status | {
        "alive": coordinator is not None,
        "holder": None if coordinator is None else asdict(coordinator),
        "passed_over": passed_over,
        "unfinished": _count_unfinished(folder / "trials", ended=ended),
        "damage": fault,
        "backup": None
        if backup is None
        else {
            "path": str(backup.path),
            "made": backup.made.isoformat(timespec="seconds"),
            "trials": backup.trials,
        },
    }


def restore_store(folder: Path) -> Restored:
    """Replace a store's damaged database by its last sound backup.

    Args:
        folder: The store's folder.

    Raises:
        UsageError: There is no store in that folder, or it is sound.
        StudyRefusedError: A coordinator runs.
        DataError: There is no sound backup, or the folder cannot be written.
    """
    check_store(folder)
    with locked(folder):
        restored = restore(folder)
        # It counts trials that the backup may not hold.
        (folder / BOARD).unlink(missing_ok=True)
    return restored


def holds_store(folder: Path) -> bool:
    """Tell whether a study was run in a folder."""
    return any(exists(folder / name) for name in (DATABASE, BOARD, *BACKUPS))


def check_store(folder: Path) -> None:
    """Refuse a folder in which no study was run.

    Raises:
        UsageError: It holds no store.
    """
    if not holds_store(folder):
        raise UsageError(f"no store in {folder}; run the study first: gatesearch run --study NAME")


def _read_board(folder: Path) -> dict[str, Any] | None:
    """Read `status.json`; None where it is missing or of another format.

    Raises:
        FileRefusedError: It is damaged, or no regular file.
    """
    path = folder / BOARD
    try:
        status = read_json(path, dict[str, Any])
    except FileNotFoundError:
        return None
    if status.get("format") in range(1, FORMAT):
        return None
    # Imported only here: a status must come at once, and pydantic takes a while.
    from gatesearch.store.status_form import StatusForm

    parse_json(json.dumps(status), StatusForm, path)
    return status


def _counted(path: Path) -> dict[str, Any]:
    """Count trials and baselines in the database, in the form of `status.json`."""
    try:
        attributes, trials = read_attributes(path), count_trials(path)
    # The first start was killed before it was set up.
    except (sqlite3.DatabaseError, ValueError, TypeError):
        return dict(_EMPTY)
    made = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return {
        **_EMPTY,
        "study": str(attributes.get("name", "")),
        "fingerprint": str(attributes.get("fingerprint", "")),
        "trials": trials,
        "baselines": {
            "done": sum(key.startswith("baseline/") for key in attributes),
            "wanted": None,
        },
        "controls": {
            "done": sum(key.startswith("control/") for key in attributes),
            "wanted": None,
        },
        "updated": made.isoformat(timespec="seconds"),
    }


def _count_unfinished(trials: Path, *, ended: int) -> int:
    """Count trials that were begun and have no result; a lost file of one that ended is none."""
    begun = [path for path in entries_of(trials) if exists(path / "spec.json")]
    without_result = sum(not exists(path / "result.json") for path in begun)
    return min(without_result, max(0, len(begun) - ended))


def _dominates(one: TrialOutcome, other: TrialOutcome) -> bool:
    """Tell whether one is at least as good as the other in both objectives and better in one."""
    return (
        one.gain >= other.gain
        and one.gflops <= other.gflops
        and (one.gain, one.gflops) != (other.gain, other.gflops)
    )


def _is_trial(job: str) -> bool:
    return job.startswith("trial ")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
