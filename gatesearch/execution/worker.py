"""The worker: trains the network of a job and keeps the result in its folder. Knows no store."""

import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from gatesearch.errors import StudyRefusedError, first_line
from gatesearch.events import Emit, Event, Warned, to_json
from gatesearch.execution import executors
from gatesearch.execution.jobs import EVENTS, STOP, Attempts, Job, keep_result, read_result
from gatesearch.files import FileRefusedError, open_regular
from gatesearch.methods import Context, NetworkSpec
from gatesearch.plugins import load_again
from gatesearch.results import Result
from gatesearch.stopping import Stop
from gatesearch.study import Study
from gatesearch.training import Checkpoints, RankError, Ranks, TrainingError, launch
from gatesearch.trials.context import open_context
from gatesearch.trials.early_stopping import Stopper
from gatesearch.trials.phase_training import TrainingControls
from gatesearch.trials.trial import train_network

LOCK = "lock"

# Seconds that a worker may take to end after the process of its run was killed.
_ORPHAN_SECONDS = 10.0


def work(text: str) -> None:
    """Do a job in a worker process.

    Args:
        text: `Job.to_json()` as JSON.

    Raises:
        Preempted: The job was asked to stop, and has kept a checkpoint.
        RankError: One of several processes that train together failed.
        StudyRefusedError: The data are not those with which the store was begun, or another process
            does the job.
        UsageError: A plugin cannot be loaded here.
    """
    job = Job.from_json(json.loads(text))
    load_again(job.plugins)
    job.folder.mkdir(parents=True, exist_ok=True)
    with _events_written(job) as emit:
        stop_file = job.folder / STOP

        def stop() -> bool:
            return executors.stopping() or stop_file.exists()

        perform(job, context_of(job), emit=emit, stop=stop)


@contextmanager
def _events_written(job: Job) -> Iterator[Emit]:
    """Append events to a file in the job's folder, which the process of the run reads."""
    with _open_file(job.folder / EVENTS) as file:

        def emit(event: Event) -> None:
            file.write(json.dumps(to_json(event), default=str).encode() + b"\n")

        yield emit


def context_of(job: Job) -> Context:
    """Open the context of a job's study; it is kept in memory for the next job.

    Raises:
        StudyRefusedError: The data are not those with which the store was begun.
    """
    runtime = json.dumps(dict(job.runtime))
    context = _context(json.dumps(job.definition), str(job.data), runtime, job.study_folder)
    sha256 = str(context.data["sha256"])
    if sha256 != job.sha256:
        raise StudyRefusedError(
            f"{job.data} holds other data here than where the run was begun: "
            f"{sha256[:12]}, expected {job.sha256[:12]}"
        )
    return context


@functools.lru_cache(maxsize=1)
def _context(definition: str, data: str, runtime: str, study_folder: str) -> Context:
    study = Study.from_definition(json.loads(definition))
    if study_folder:
        study = study.placed(Path(study_folder))
    stored = json.loads(runtime)
    return open_context(study, data=Path(data), stored=stored, emit=_ignore)


def perform(job: Job, context: Context, *, emit: Emit, stop: Stop) -> Result:
    """Do a job unless its result exists already: train, or go on from its last checkpoint.

    Args:
        job: The job.
        context: Context of its study.
        emit: Receives events.
        stop: Tells whether to keep a checkpoint and end.

    Returns:
        The result, which is also kept in the job's folder; that of a failed training has a reason.

    Raises:
        Preempted: The job was asked to stop, and has kept a checkpoint.
        RankError: One of several processes that train together failed; the job can be done again.
        StudyRefusedError: Another process does the job, or its folder holds another job's result.
    """

    def train() -> Result:
        if job.devices > 1:
            text = json.dumps(job.to_json())
            result: Result = launch(job.devices, _train_together, text, stop=stop)
            return result
        return _train(job, context, emit, stop, Ranks())

    return perform_once(job, train, emit=emit, stop=stop)


def perform_once(job: Job, train: Callable[[], Result], *, emit: Emit, stop: Stop) -> Result:
    """Have a job's network trained unless its result exists already; keep the result.

    Args:
        job: The job.
        train: Trains the network and keeps it in the job's folder.
        emit: Receives events.
        stop: Tells whether to keep a checkpoint and end.

    Raises:
        StudyRefusedError: Another process does the job, or its folder holds another job's result.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _job_lock(job.folder):
        result = read_result(job)
        if result is None:
            result = _attempt(job, train)
            keep_result(job, result)
        # Also those of a worker that was killed just after it had kept its result.
        _checkpoints(job, emit, stop).clear()
        return result


def _attempt(job: Job, train: Callable[[], Result]) -> Result:
    """Train, unless too many attempts were cut off before they kept another checkpoint."""
    attempts = Attempts(job.folder)
    causes = attempts.in_vain
    if len(causes) > job.execution.attempts:
        return failed(job.spec, "; ".join(causes), len(attempts))
    attempts.begin()
    try:
        result = train()
    except RankError as error:
        attempts.crash(first_line(error))
        raise
    except BaseException as error:
        attempts.end(f"{type(error).__name__}: {error}")
        raise
    return replace(result, attempts=len(attempts))


def _train(job: Job, context: Context, emit: Emit, stop: Stop, ranks: Ranks) -> Result:
    stopper = Stopper(context, job.single_task, job.rivals) if job.single_task else None
    controls = TrainingControls(_checkpoints(job, emit, stop), stopper, ranks)
    try:
        return train_network(
            job.spec, context, out=job.out, start=job.start, emit=emit, controls=controls
        )
    except (TrainingError, torch.OutOfMemoryError) as error:
        # All processes see the same losses and fail alike, but one may run out of memory alone. It
        # must raise then, so that the others are ended.
        if ranks.size > 1 and isinstance(error, torch.OutOfMemoryError):
            raise
        return failed(job.spec, str(error))


def _train_together(ranks: Ranks, text: str) -> Result:
    """Do a job as one of several processes; the first emits events and keeps the network."""
    job = Job.from_json(json.loads(text))
    load_again(job.plugins)
    with _events_written(job) as emit:
        return _train(
            job, context_of(job), emit if ranks.rank == 0 else _ignore, ranks.asked, ranks
        )


def _ignore(event: Event) -> None:
    pass


def failed(spec: NetworkSpec, reason: str, attempts: int = 1) -> Result:
    """Make the result of a training that failed."""
    return Result(
        spec.method, spec.seed, spec.trial, state="failed", reason=reason, part=spec.part,
        budget=spec.budget, params=dict(spec.params), weighting=spec.weighting, attempts=attempts,
        width=spec.width, control="" if spec.control is None else spec.control.kind,
        of=None if spec.control is None else spec.control.of,
    )  # fmt: skip


def _checkpoints(job: Job, emit: Emit, stop: Stop) -> Checkpoints:
    def tell(message: str) -> None:
        emit(Warned(f"{job.spec.label}: {message}"))

    seconds = 60 * job.execution.checkpoint_minutes
    return Checkpoints(job.folder, identity=job.identity, seconds=seconds, stop=stop, tell=tell)


def _open_file(path: Path) -> BinaryIO:
    """Open a file in a job's folder to append to it, unbuffered; make it where it is missing.

    Raises:
        StudyRefusedError: A link, a folder or a pipe is in its place.
    """
    try:
        descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except FileRefusedError as error:
        raise StudyRefusedError(str(error)) from error
    return os.fdopen(descriptor, "ab", buffering=0)


@contextmanager
def _job_lock(folder: Path) -> Iterator[None]:
    """Take an exclusive lock on the job's folder.

    A worker whose run died may hold it for up to 10 s; the operating system frees it on exit.
    """
    with _open_file(folder / LOCK) as file:
        deadline = time.monotonic() + _ORPHAN_SECONDS
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
