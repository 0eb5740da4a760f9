"""Whoever does a job: trains, leaves the result in the job's folder, and never sees the store."""

import fcntl
import functools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gatesearch.errors import StudyRefusedError
from gatesearch.execution import executors
from gatesearch.execution.jobs import EVENTS, STOP, Attempts, Job, keep_result, read_result
from gatesearch.methods.context import Context, Emit, open_context
from gatesearch.methods.early_stopping import Stopper
from gatesearch.methods.specification import NetworkSpec
from gatesearch.results import Result
from gatesearch.stopping import Stop
from gatesearch.study import Study
from gatesearch.training import Checkpoints, RankError, Ranks, TrainingError, launch
from gatesearch.trials.trial import train_network

# Seconds that a process whose coordinator was killed takes to follow it.
_PATIENCE = 10.0


def work(text: str) -> None:
    """Do a job in a process that does nothing else.

    Args:
        text: `Job.to_json()` as JSON.

    Raises:
        Preempted: It was asked to stop; a checkpoint is kept.
        RankError: As for `perform`.
        StudyRefusedError: The data are not those that the store was begun with.
    """
    job = Job.from_json(json.loads(text))
    job.folder.mkdir(parents=True, exist_ok=True)
    with _telling(job) as emit:
        asked = job.folder / STOP
        stop = lambda: executors.stopping() or asked.exists()  # noqa: E731
        perform(job, context_of(job), emit=emit, stop=stop)


@contextmanager
def _telling(job: Job) -> Iterator[Emit]:
    """Have events go into a file, which the coordinator reads."""
    with (job.folder / EVENTS).open("ab", buffering=0) as file:

        def emit(event: dict[str, Any]) -> None:
            file.write(json.dumps(event, default=str).encode() + b"\n")

        yield emit


def context_of(job: Job) -> Context:
    """Data, tasks and runtime of a job's study, kept for the next one.

    Raises:
        StudyRefusedError: The data are not those that the store was begun with.
    """
    runtime = json.dumps(dict(job.runtime))
    bench = _bench(json.dumps(job.definition), str(job.data), runtime)
    if bench.data["sha256"] != job.sha256:
        raise StudyRefusedError(
            f"{job.data} holds other data here than where the run was begun: "
            f"{bench.data['sha256'][:12]}, expected {job.sha256[:12]}"
        )
    return bench


@functools.lru_cache(maxsize=1)
def _bench(definition: str, data: str, runtime: str) -> Context:
    study = Study.from_definition(json.loads(definition))
    return open_context(study, data=Path(data), stored=json.loads(runtime), emit=lambda event: None)


def perform(job: Job, bench: Context, *, emit: Emit, stop: Stop) -> Result:
    """Do a job: train, or go on from its last checkpoint, unless its result is there already.

    Args:
        job: The job.
        bench: Of its study.
        emit: Receives progress.
        stop: Whether to keep a checkpoint and end.

    Returns:
        The result that is kept in its folder; of a training that failed, the reason.

    Raises:
        Preempted: It was asked to stop.
        RankError: One of several processes that train together failed; to be done again.
        StudyRefusedError: Another process does it, or its folder holds another job's result.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _alone(job.folder):
        known = read_result(job)
        if known is not None:
            return known
        result = _done(job, bench, emit, stop)
        keep_result(job, result)
        _checkpoints(job, emit, stop).clear()
        return result


def _done(job: Job, bench: Context, emit: Emit, stop: Stop) -> Result:
    attempts, candidate = Attempts(job.folder), job.candidate
    causes = attempts.in_vain
    if len(causes) > job.execution.attempts:
        return failed(candidate, "; ".join(causes), len(attempts))
    attempts.begin()
    try:
        if job.devices > 1:
            result = launch(job.devices, _together, json.dumps(job.to_json()), stop=stop)
        else:
            result = _trained(job, bench, emit, stop, Ranks())
    except RankError as error:
        attempts.crash(str(error).splitlines()[0])
        raise
    except BaseException as error:
        attempts.end(f"{type(error).__name__}: {error}")
        raise
    return replace(result, attempts=len(attempts))


def _trained(job: Job, bench: Context, emit: Emit, stop: Stop, ranks: Ranks) -> Result:
    try:
        return train_network(
            job.candidate, bench, out=job.out, start=job.start, emit=emit,
            checkpoints=_checkpoints(job, emit, stop),
            judge=Stopper(bench, job.stl, job.rivals) if job.stl else None,
            ranks=ranks,
        )  # fmt: skip
    except (TrainingError, torch.OutOfMemoryError) as error:
        # Of several processes all see the same losses, but one alone may lack memory.
        if ranks.size > 1 and isinstance(error, torch.OutOfMemoryError):
            raise
        return failed(job.candidate, str(error))


def _together(ranks: Ranks, text: str) -> Result:
    """One of several processes that do a job together; the first tells and keeps."""
    job = Job.from_json(json.loads(text))
    with _telling(job) as emit:
        told = emit if ranks.rank == 0 else _nobody
        return _trained(job, context_of(job), told, ranks.asked, ranks)


def _nobody(event: dict[str, Any]) -> None:
    pass


def failed(candidate: NetworkSpec, reason: str, attempts: int = 1) -> Result:
    """The result of a training that gave none."""
    return Result(
        candidate.method, candidate.seed, candidate.trial, state="failed", reason=reason,
        part=candidate.part, budget=candidate.budget, params=dict(candidate.params),
        weighting=candidate.weighting,
        attempts=attempts,
    )  # fmt: skip


def _checkpoints(job: Job, emit: Emit, stop: Stop) -> Checkpoints:
    def tell(message: str) -> None:
        emit({"event": "warning", "message": f"{job.candidate.label}: {message}"})

    seconds = 60 * job.execution.checkpoint_minutes
    return Checkpoints(job.folder, identity=job.identity, seconds=seconds, stop=stop, tell=tell)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a job's folder, which an orphan may for a moment; the system lets go of it."""
    with (folder / "lock").open("a") as file:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StudyRefusedError(
                        f"another process is training in {folder}; end it, or wait for it"
                    ) from error
                time.sleep(0.1)
        yield
