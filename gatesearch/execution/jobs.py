"""A job: one training as plain JSON, and the files that its worker leaves in its folder.

| file | what |
|---|---|
| `spec.json` | the job itself, before anything else |
| `attempts.json` | every beginning of it: where, from which checkpoint, how it ended |
| `checkpoint-*.safetensors` | where its training stands; gone once there is a result |
| `events.jsonl` | events, where another process than the run's own trains |
| `stop` | while it is there, a worker on another machine is asked to stop |
| `model.*` | the network |
| `result.json` | the result; with it there, nothing is left to train |
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gatesearch.cost import Budget
from gatesearch.errors import StudyRefusedError
from gatesearch.files import write_atomic
from gatesearch.methods import NetworkSpec
from gatesearch.results import Result
from gatesearch.study import ExecutionSpec

SPEC = "spec.json"
RESULT = "result.json"
ATTEMPTS = "attempts.json"
EVENTS = "events.jsonl"
STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, for any process that sees the same files.

    Attributes:
        store: Identity of the store, so that no other's files are taken for its own.
        definition: `Study.definition()`.
        spec: The network.
        start: Result of what it starts from.
        out: The store's folder.
        data: Folder of packs.
        sha256: Of the pack that the store was begun with.
        runtime: Precision and memory format, likewise.
        execution: When to keep checkpoints, when to give up.
        single_task: Validation metrics of the single-task networks, where the trial may be stopped
            early; empty elsewhere.
        rivals: Judged epochs of earlier trials, likewise: (epoch, GFLOPs, Δ_MTL).
        devices: How many train it together.
        search: Name of a trial's search.
        objectives: How many objectives that has.
        drawn_from: Parameter of a trial -> Optuna's distribution as JSON.
    """

    store: str
    definition: Mapping[str, Any]
    spec: NetworkSpec
    start: Result | None
    out: Path
    data: Path
    sha256: str
    runtime: Mapping[str, str]
    execution: ExecutionSpec = field(default_factory=ExecutionSpec)
    single_task: Mapping[str, float] = field(default_factory=dict)
    rivals: Sequence[tuple[int, float, float]] = ()
    devices: int = 1
    search: str = ""
    objectives: int = 1
    drawn_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.spec.folder(self.out)

    @property
    def identity(self) -> str:
        """Digest of everything that its result depends on but code, data and chance."""
        what = [self.store, self.definition, asdict(self.spec)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "spec": asdict(self.spec),
            "start": None if self.start is None else self.start.to_json(),
            "out": str(self.out.absolute()),
            "data": str(self.data.absolute()),
            "execution": self.execution.model_dump(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Job":
        """The job that `to_json` wrote."""
        spec = dict(stored["spec"])
        spec["budgets"] = tuple(Budget(**budget) for budget in spec["budgets"])
        start = stored["start"]
        parsed = {
            "spec": NetworkSpec(**spec),
            "start": None if start is None else Result.from_json(start),
            "out": Path(stored["out"]),
            "data": Path(stored["data"]),
            "execution": ExecutionSpec(**stored["execution"]),
            "rivals": tuple(tuple(rival) for rival in stored["rivals"]),
        }
        return cls(**{**stored, **parsed})

    def write(self) -> None:
        """Write `spec.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / SPEC, self.to_json())


def read_spec(path: Path) -> Job | None:
    """The job of a baseline's or trial's `spec.json`, also where the store was moved since.

    None where the file is no such thing.
    """
    try:
        job = Job.from_json(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    job = replace(job, out=path.parents[2])
    return job if job.folder == path.parent else None


def keep_result(job: Job, result: Result) -> None:
    """Write `result.json`, whole or not at all."""
    kept = {"identity": job.identity, "result": result.to_json()}
    _write(job.folder / RESULT, kept)


def read_result(job: Job) -> Result | None:
    """The result in a job's folder; None where there is none of this very job.

    Raises:
        StudyRefusedError: There is one of another job, or a damaged one.
    """
    path = job.folder / RESULT
    kept = _read(path)
    if kept is None:
        return None
    if kept.get("identity") != job.identity:
        raise StudyRefusedError(
            f"{path} belongs to another study or trial than {job.spec.label} of this one; "
            "move it away, or name another folder with --out"
        )
    return Result.from_json(kept["result"])


def forget_result(job: Job) -> None:
    """Have a job done again: a failed baseline, which is tried at every start of a run."""
    for name in (RESULT, ATTEMPTS):
        (job.folder / name).unlink(missing_ok=True)


class Attempts:
    """The beginnings of a job, kept in its folder.

    Args:
        folder: The job's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ATTEMPTS
        self._all: list[dict[str, Any]] = list((_read(self._path) or {}).get("attempts", []))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def in_vain(self) -> list[str]:
        """Causes of the last attempts that were cut off and got no further than the one before."""
        here, causes = self._checkpoint(), []
        for attempt in reversed(self._all):
            if attempt["end"] is not None or attempt["from"] != here:
                break
            causes.append(
                f"process {attempt['process']} on {attempt['host']}, begun {attempt['started']}, "
                f"{attempt.get('crash', 'ended without a word (killed, or out of memory)')}"
            )
        return causes[::-1]

    def begin(self) -> None:
        """Count one more, from the newest checkpoint."""
        self._all.append(
            {
                "from": self._checkpoint(),
                "process": os.getpid(),
                "host": socket.gethostname(),
                "started": datetime.now().astimezone().isoformat(timespec="seconds"),
                "end": None,
            }
        )
        self._keep()

    def crash(self, how: str) -> None:
        """Say what cut the last one off."""
        self._all[-1]["crash"] = how
        self._keep()

    def end(self, why: str) -> None:
        """Say how the last one ended in order."""
        self._all[-1]["end"] = why
        self._keep()

    def _checkpoint(self) -> str:
        found = [p.name for p in self._path.parent.glob("checkpoint-*.safetensors")]
        return max(found, key=lambda name: (len(name), name), default="")

    def _keep(self) -> None:
        _write(self._path, {"attempts": self._all})


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(value, indent=1).encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StudyRefusedError(
            f"{path} is damaged ({error}); move it away, and the run goes on without it"
        ) from error
    if not isinstance(found, dict):
        raise StudyRefusedError(f"{path} is damaged: an object is expected; move it away")
    return found
