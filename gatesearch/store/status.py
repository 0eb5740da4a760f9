"""How far a search is: a small file that its coordinator keeps, and all that can be told from it.

Needs neither torch nor Optuna, so that it is read in an instant, also beside a running search.
"""

import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gatesearch.errors import UsageError
from gatesearch.events import Event, Progress
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

BOARD = "status.json"
# Raised whenever the file changes its form.
FORMAT = 2
# Every page of a larger database takes longer to look at than a status may.
_THOROUGH = 32 * 2**20  # bytes
_EMPTY: Mapping[str, Any] = {
    "format": FORMAT,
    "study": "",
    "fingerprint": "",
    "tune": [],
    "budget": "",
    "storage": "",
    "wanted": None,
    "trials": {"complete": 0, "failed": 0, "stopped": 0, "running": 0},
    "per_hour": None,
    "seconds_left": None,
    "best": None,
    "front": None,
    "baselines": {"done": 0, "wanted": None},
    "workers": [],
    "started": None,
    "updated": None,
    "process": None,
}


@dataclass(frozen=True)
class TrialOutcome:
    """A trial that came to a result.

    Attributes:
        trial: Its number in the store.
        state: `complete`, `failed` or `stopped`.
        gain: Δ_MTL on validation, percent; NaN where there is none.
        gflops: Of its network.
    """

    trial: int
    state: str
    gain: float = math.nan
    gflops: float = 0.0


class StatusFile:
    """What a run tells of itself, in `status.json`.

    Whatever changes is written at once, words of trainings every second. A disk that takes no more
    leaves the file as it was. All calls come from one thread.

    Args:
        folder: The store's.
        study: Name of the study.
        fingerprint: Of its definition.
        tune: Methods whose hyperparameters are searched; empty for the usual one.
        budget: What bounds its trials; empty for nothing.
        storage: URL of the server that keeps the store, without a password; empty for SQLite.
        wanted: Trials of each search in all.
        clock: Seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        study: str,
        fingerprint: str,
        tune: Sequence[str] = (),
        budget: str = "",
        storage: str = "",
        wanted: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        me = myself()
        self._path = folder / BOARD
        self._clock = clock
        self._told = {
            **_EMPTY,
            "study": study,
            "fingerprint": fingerprint,
            "tune": list(tune),
            "budget": budget,
            "storage": storage,
            "wanted": wanted,
            "started": me.started,
            "process": {"pid": me.pid, "host": me.host},
        }
        self._counts = dict.fromkeys(("complete", "failed", "stopped"), 0)
        self._front: list[TrialOutcome] = []
        self._workers: dict[str, dict[str, Any]] = {}
        self._begun, self._before = clock(), 0
        self._write()

    def baselines(self, done: int, wanted: int) -> None:
        """Tell how many baselines are trained."""
        self._told["baselines"] = {"done": done, "wanted": wanted}
        self._write()

    def search(self, known: Iterable[TrialOutcome]) -> None:
        """Tell the trials that ended before this run; its rate counts from now."""
        for trial in known:
            self._count(trial)
        self._begun, self._before = self._clock(), self._finished
        self._write()

    def ended(self, trial: TrialOutcome) -> None:
        """Tell a trial that ended now."""
        self._count(trial)
        self._write()

    def begin(self, job: str, *, attempt: int = 1) -> None:
        """Tell that a worker begins.

        Args:
            job: What it trains, as `trial 7`.
            attempt: Which time that is.
        """
        taken = {worker["name"] for worker in self._workers.values()}
        free = next(n for n in range(1, len(taken) + 2) if f"worker {n}" not in taken)
        self._workers[job] = {
            "name": f"worker {free}",
            "job": job,
            "attempt": attempt,
            "since": _now(),
            "stage": "",
            "seen": _now(),
        }
        self._write()

    def heard(self, job: str, event: Event) -> None:
        """Tell what the worker of a job said."""
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
        """Tell that the worker of a job is done with it."""
        self._workers.pop(job, None)
        self._write()

    def close(self) -> None:
        """Tell that nobody works any more."""
        self._workers.clear()
        self._write()

    @property
    def _finished(self) -> int:
        return sum(self._counts.values())

    def _count(self, trial: TrialOutcome) -> None:
        self._counts[trial.state] += 1
        if trial.state != "complete" or not math.isfinite(trial.gain):
            return
        if not any(_dominates(other, trial) for other in self._front):
            kept = [other for other in self._front if not _dominates(trial, other)]
            self._front = [*kept, trial]

    def _write(self) -> None:
        self._written = self._clock()
        hours = (self._written - self._begun) / 3600
        done = self._finished - self._before
        left = max(0, self._told["wanted"] * max(1, len(self._told["tune"])) - self._finished)
        rate = done / hours if done and hours else None
        best = max(self._front, key=lambda trial: (trial.gain, -trial.gflops), default=None)
        self._told |= {
            "trials": {**self._counts, "running": sum(map(_is_trial, self._workers))},
            "per_hour": rate,
            "seconds_left": 3600 * left / rate if rate else None,
            "best": None
            if best is None
            else {"trial": best.trial, "delta_mtl": best.gain, "gflops": best.gflops},
            "front": len(self._front),
            "workers": list(self._workers.values()),
            "updated": _now(),
        }
        # Not synced: after a power cut the store knows better anyway.
        aside = self._path.with_name(f".{BOARD}.{os.getpid()}")
        try:
            aside.write_text(json.dumps(self._told))
            aside.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()


def read_status(folder: Path) -> dict[str, Any]:
    """How far the search of a store is, what is wrong with the store, and who works on it.

    Args:
        folder: The store's.

    Returns:
        What `status.json` holds, counted in the database where there is none, and beside it
        `alive`: whether a coordinator runs; `holder`: which; `unfinished`: trials that were begun
        and left no result; `damage`: what is wrong with the database; `backup`: its last sound
        backup, where there is damage.

    Raises:
        UsageError: There is no store in that folder.
    """
    check_store(folder)
    path, holds = folder / DATABASE, holder(folder)
    told = _board(folder)
    wrong = None
    if told is None or not told["storage"]:
        large = path.exists() and path.stat().st_size > _THOROUGH
        wrong = damage(path, thorough=not large)
    if told is None:
        told = dict(_EMPTY) if wrong else _counted(path)
    if holds is None:
        told |= {"workers": [], "trials": {**told["trials"], "running": 0}}
    backup = last_backup(folder) if wrong else None
    return told | {
        "alive": holds is not None,
        "holder": None if holds is None else asdict(holds),
        "unfinished": _unfinished(folder / "trials"),
        "damage": wrong,
        "backup": None
        if backup is None
        else {
            "path": str(backup.path),
            "made": backup.made.isoformat(timespec="seconds"),
            "trials": backup.trials,
        },
    }


def restore_store(folder: Path) -> Restored:
    """Put the last sound backup in place of a store's damaged database.

    Args:
        folder: The store's.

    Raises:
        UsageError: There is no store in that folder, or it is sound.
        StudyRefusedError: A coordinator holds it.
        DataError: There is no sound backup, or the folder cannot be written.
    """
    check_store(folder)
    with locked(folder):
        restored = restore(folder)
        # It tells of trials that may be gone.
        (folder / BOARD).unlink(missing_ok=True)
    return restored


def check_store(folder: Path) -> None:
    """Refuse a folder that no study was run in.

    Raises:
        UsageError: It holds no store.
    """
    if not any((folder / name).is_file() for name in (DATABASE, BOARD, *BACKUPS)):
        raise UsageError(f"no store in {folder}; run the study first: gatesearch run --study NAME")


def _board(folder: Path) -> dict[str, Any] | None:
    try:
        told = json.loads((folder / BOARD).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        return None
    return {**_EMPTY, **told}


def _counted(path: Path) -> dict[str, Any]:
    try:
        attributes, trials = read_attributes(path), count_trials(path)
    except (sqlite3.DatabaseError, ValueError):  # a first start that was killed
        return dict(_EMPTY)
    made = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return {
        **_EMPTY,
        "study": attributes.get("name", ""),
        "fingerprint": attributes.get("fingerprint", ""),
        "trials": trials,
        "baselines": {
            "done": sum(key.startswith("baseline/") for key in attributes),
            "wanted": None,
        },
        "updated": made.isoformat(timespec="seconds"),
    }


def _unfinished(trials: Path) -> int:
    return sum(not path.with_name("result.json").exists() for path in trials.glob("*/spec.json"))


def _dominates(one: TrialOutcome, other: TrialOutcome) -> bool:
    """Whether it is nowhere worse and somewhere better."""
    return (
        one.gain >= other.gain
        and one.gflops <= other.gflops
        and (one.gain, one.gflops) != (other.gain, other.gflops)
    )


def _is_trial(job: str) -> bool:
    return job.startswith("trial ")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
