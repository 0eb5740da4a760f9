"""Jobs: one training each, as plain JSON, and the files in a job's folder.

| file | contents |
|---|---|
| `spec.json` | the job; it is written first |
| `attempts.json` | attempts at the job: process, first checkpoint, end |
| `checkpoint-*.safetensors` | checkpoints of its training; removed when there is a result |
| `events.jsonl` | events, if another process than the run's own trains |
| `stop` | while this file exists, a worker on another machine is asked to stop |
| `model.*` | the network |
| `result.json` | the result; once it exists, the job is done |

`spec.json`, `attempts.json` and `result.json` carry a checksum of their values.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, NonNegativeInt, PlainValidator, PositiveInt

# That of `typing` is not known to pydantic before Python 3.12.
from typing_extensions import TypedDict

from gatesearch.checksums import with_checksum, without_checksum
from gatesearch.errors import StudyRefusedError
from gatesearch.files import FileRefusedError, parse_json, read_json, write_atomic
from gatesearch.methods import NetworkSpec
from gatesearch.plugins import Plugin
from gatesearch.results import Result
from gatesearch.study import ExecutionSpec

SPEC = "spec.json"
RESULT = "result.json"
ATTEMPTS = "attempts.json"
EVENTS = "events.jsonl"
STOP = "stop"

# End of an attempt whose process died together with its run.
_WITH_RUN = "died with its run"


def _parse_start(stored: Any) -> Result | None:
    if not isinstance(stored, dict | None):
        raise ValueError("must be a result or null")
    return None if stored is None else Result.from_json(stored)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, which any process that sees the same files can do.

    Attributes:
        store: Identity of the store; a job of another store is never taken for one of this.
        definition: `Study.definition()`.
        spec: The network to train.
        start: Result of the network that it starts from; None without one.
        out: The store's folder.
        data: Folder of packs.
        sha256: SHA-256 of the pack with which the store was begun.
        runtime: `precision` and `memory_format` with which the store was begun.
        execution: Time between checkpoints, and number of attempts.
        single_task: Task -> validation metric of the single-task networks if the trial may be
            stopped early; otherwise empty.
        rivals: (epoch, GFLOPs, Δ_MTL) of judged epochs of earlier trials if the trial may be
            stopped early; otherwise empty.
        devices: Number of devices that train the network together.
        search: Name of the trial's search; empty for a baseline or a start network.
        objectives: Number of objectives of that search.
        drawn_from: Parameter of the trial -> distribution that it was drawn from, as JSON.
        study_folder: Folder of the study's file, which paths of its data are relative to; empty for
            a study without one.
        plugins: Plugins of the run's process, which a worker loads first.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    store: str
    definition: Mapping[str, Any]
    spec: NetworkSpec
    start: Annotated[Result | None, PlainValidator(_parse_start)]
    out: Path
    data: Path
    sha256: str
    runtime: Mapping[str, str]
    execution: ExecutionSpec = field(default_factory=ExecutionSpec)
    single_task: Mapping[str, float] = field(default_factory=dict)
    rivals: Sequence[tuple[int, float, float]] = ()
    devices: PositiveInt = 1
    search: str = ""
    objectives: PositiveInt = 1
    drawn_from: Mapping[str, str] = field(default_factory=dict)
    study_folder: str = ""
    plugins: tuple[Plugin, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of the job's files."""
        return self.spec.folder(self.out)

    @property
    def identity(self) -> str:
        """Digest of store, definition and network; results of other jobs have another one."""
        parts = [self.store, self.definition, self.spec.to_json()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Convert the job to plain JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "spec": self.spec.to_json(),
            "start": None if self.start is None else self.start.to_json(),
            "out": str(self.out.absolute()),
            "data": str(self.data.absolute()),
            "execution": self.execution.model_dump(),
            "plugins": [asdict(plugin) for plugin in self.plugins],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Job":
        """Read the job that `to_json` wrote."""
        start = stored["start"]
        parsed = {
            "spec": NetworkSpec.from_json(stored["spec"]),
            "start": None if start is None else Result.from_json(start),
            "out": Path(stored["out"]),
            "data": Path(stored["data"]),
            "execution": ExecutionSpec(**stored["execution"]),
            "rivals": tuple(tuple(rival) for rival in stored["rivals"]),
            "plugins": tuple(Plugin(**plugin) for plugin in stored.get("plugins", ())),
        }
        return cls(**{**stored, **parsed})

    def write(self) -> None:
        """Write `spec.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / SPEC, self.to_json())


def read_spec(path: Path) -> Job | None:
    """Read the `spec.json` of a baseline or trial; `out` is set to the folder that it is now in.

    Returns:
        The job; None if the file is missing, or not in the folder of its network.

    Raises:
        StudyRefusedError: The file is damaged, or no regular file.
    """
    stored = _read(path, Job)
    if stored is None:
        return None
    job = replace(Job.from_json(stored), out=path.parents[2])
    return job if job.folder == path.parent else None


def keep_result(job: Job, result: Result) -> None:
    """Write `result.json`, whole or not at all."""
    _write(job.folder / RESULT, {"identity": job.identity, "result": result.to_json()})


@dataclass(frozen=True)
class _StoredResult:
    """Contents of `result.json` beside the checksum."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    identity: str
    result: dict[str, Any]


def read_result(job: Job) -> Result | None:
    """Read the result in a job's folder; None where there is none.

    Raises:
        StudyRefusedError: The result is another job's, or damaged.
    """
    path = job.folder / RESULT
    stored = _read(path, _StoredResult)
    if stored is None:
        return None
    if stored["identity"] != job.identity:
        raise StudyRefusedError(
            f"{path} belongs to another study or trial than {job.spec.label} of this one; "
            "move it away, or name another folder with --out"
        )
    try:
        result = Result.from_json(stored["result"])
    except StudyRefusedError as error:
        raise _damaged(path, f"is damaged: {error}") from error
    spec = job.spec
    expected = (spec.method, spec.seed, spec.budget, job.folder)
    folder = NetworkSpec.of(result).folder(job.out)
    if (result.method, result.seed, result.budget, folder) != expected or dict(
        result.params
    ) != dict(spec.params):
        raise _damaged(path, f"holds the result of {result.name}, not that of {spec.label}")
    return result


def forget_result(job: Job) -> None:
    """Remove a job's result and attempts, so that it is done again.

    Failed baselines are tried again at every start of a run.
    """
    for name in (RESULT, ATTEMPTS):
        (job.folder / name).unlink(missing_ok=True)


# An attempt at a job: the file name of the checkpoint that it started from (empty without one),
# process and host, time, exception with which it ended (None while it works, and where it was cut
# off), and the cause that cut it off.
Attempt = TypedDict(
    "Attempt",
    {
        "from": str,
        "process": NonNegativeInt,
        "host": str,
        "started": str,
        "end": str | None,
        "crash": NotRequired[str],
    },
)


@dataclass(frozen=True)
class _StoredAttempts:
    """Contents of `attempts.json` beside the checksum."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    attempts: list[Attempt]


class Attempts:
    """The attempts at a job, kept in its folder.

    Args:
        folder: The job's folder.

    Raises:
        StudyRefusedError: The file that keeps them is damaged, or no regular file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ATTEMPTS
        stored = _read(self._path, _StoredAttempts)
        self._all: list[Attempt] = [] if stored is None else stored["attempts"]

    def __len__(self) -> int:
        return len(self._all)

    @property
    def in_vain(self) -> list[str]:
        """Causes of the latest attempts that were cut off before they kept another checkpoint.

        Only attempts count whose process died alone, while its run went on: the network that it
        trained may be the cause. An attempt that was cut off together with its run has an end
        (`end_with_run`).
        """
        newest, causes = self._checkpoint(), []
        for attempt in reversed(self._all):
            if attempt["end"] is not None or attempt["from"] != newest:
                break
            causes.append(
                f"process {attempt['process']} on {attempt['host']}, begun {attempt['started']}, "
                f"{attempt.get('crash', 'ended without a message (killed, or out of memory)')}"
            )
        return causes[::-1]

    @property
    def ended_with_run(self) -> int:
        """Number of latest attempts that died with their run before they kept another checkpoint.

        Attempts among them whose process died alone are not counted.
        """
        newest, count = self._checkpoint(), 0
        for attempt in reversed(self._all):
            if attempt["end"] not in (None, _WITH_RUN) or attempt["from"] != newest:
                break
            count += attempt["end"] == _WITH_RUN
        return count

    def end_with_run(self) -> None:
        """Note, before a run begins the job, that an attempt still open died with an earlier run.

        Loss of power, or a signal to all processes, is no fault of the network that was trained.
        """
        if self._all and self._all[-1]["end"] is None and "crash" not in self._all[-1]:
            self.end(_WITH_RUN)

    def begin(self) -> None:
        """Add an attempt, which starts from the newest checkpoint."""
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

    def crash(self, cause: str) -> None:
        """Note the cause that cut the last attempt off."""
        self._all[-1]["crash"] = cause
        self._keep()

    def end(self, reason: str) -> None:
        """Note the exception with which the last attempt ended; it then was not cut off."""
        self._all[-1]["end"] = reason
        self._keep()

    def _checkpoint(self) -> str:
        """Return the file name of the newest checkpoint; empty without one."""
        names = [p.name for p in self._path.parent.glob("checkpoint-*.safetensors")]
        return max(names, key=lambda name: (len(name), name), default="")

    def _keep(self) -> None:
        _write(self._path, {"attempts": self._all})


def _write(path: Path, table: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(with_checksum(table), indent=1).encode())


def _read(path: Path, schema: type[object]) -> dict[str, Any] | None:
    """Read and validate what `_write` wrote; None where there is none.

    Args:
        path: The file.
        schema: Type of the table. The table itself is returned, with its numbers as they were.

    Raises:
        StudyRefusedError: The file is damaged, or no regular file.
    """
    try:
        table = without_checksum(read_json(path, dict[str, Any]))
        parse_json(json.dumps(table), schema, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(path, f"is damaged: {error}") from error
    except (FileRefusedError, StudyRefusedError) as error:
        fault = error.fault if isinstance(error, FileRefusedError) else f"is damaged: {error}"
        raise _damaged(path, fault) from error
    return table


def _damaged(path: Path, fault: str) -> StudyRefusedError:
    cure = "" if "move it away" in fault else "; move it away, and the run goes on without it"
    return StudyRefusedError(f"{path} {fault}{cure}")
