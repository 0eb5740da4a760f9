"""Hand jobs to an executor, watch them, and yield their results in the order in which they end."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

from gatesearch.errors import first_line
from gatesearch.events import Emit, Event, Warned, from_json
from gatesearch.execution.executors import JobExecutor
from gatesearch.execution.jobs import EVENTS, RESULT, STOP, Attempts, Job, read_result
from gatesearch.files import MIB, FileRefusedError, open_regular
from gatesearch.results import Result
from gatesearch.stopping import Stop
from gatesearch.training import Preempted, RankError, TrainingError

# Seconds between two readings of the workers' events.
_POLL_SECONDS = 0.2
# Most bytes of a worker's events that are passed on in one reading.
_MOST_RELAYED = 16 * MIB


class Observer(Protocol):
    """An observer of workers, which are named by the label of their job."""

    def begin(self, job: str, *, attempt: int = 1) -> None:
        """Note that a worker begins a job; `attempt` counts from 1."""

    def heard(self, job: str, event: Event) -> None:
        """Note an event that the worker of a job emitted."""

    def end(self, job: str) -> None:
        """Note that a job has ended with a result."""


@dataclass
class RunningJob:
    """A job that was handed to the executor.

    Attributes:
        job: The job.
        crashes: Number of worker processes that ended unexpectedly during the job in this run.
        relayed: Number of bytes of its event file that were passed on.
        warned: Whether a warning was emitted because its event file is damaged.
    """

    job: Job
    crashes: int = 0
    relayed: int = 0
    warned: bool = False


@dataclass
class WorkerPool:
    """The running jobs of a run.

    Attributes:
        executor: Runs the jobs.
        size: Number of jobs at a time.
        emit: Receives the events of all jobs.
        stop: Tells whether the run was asked to stop.
        observer: Follows what each worker does.
    """

    executor: JobExecutor
    size: int
    emit: Emit
    stop: Stop
    observer: Observer
    _running: dict[Future[None], RunningJob] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Number of jobs that can begin now."""
        return self.size - len(self._running)

    @property
    def jobs(self) -> list[Job]:
        """The running jobs."""
        return [running.job for running in self._running.values()]

    def begin(self, job: Job) -> None:
        """Begin a job."""
        job.write()
        for name in (EVENTS, STOP):
            (job.folder / name).unlink(missing_ok=True)
        attempts = Attempts(job.folder)
        attempts.end_with_run()
        self.observer.begin(job.spec.label, attempt=len(attempts) + 1)
        self._submit(RunningJob(job))

    def results(self) -> Iterator[tuple[Job, Result]]:
        """Yield jobs with their results as they end, until no job runs; the caller may begin more.

        Raises:
            KeyboardInterrupt: The run was asked to stop; checkpoints are kept.
            TrainingError: The processes of a job end unexpectedly again and again.
        """
        while self._running:
            done, _ = wait(self._running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for running in self._running.values():
                self._relay(running)
            if self.stop():
                self._stop()
            for future in [begun for begun in self._running if begun in done]:
                running = self._running.pop(future)
                if self._has_result(future, running):
                    result = read_result(running.job)
                    assert result is not None
                    self.observer.end(running.job.spec.label)
                    yield running.job, result

    def _submit(self, running: RunningJob) -> None:
        job = running.job
        future = self.executor.submit(job, lambda event: self._pass_on(job, event))
        self._running[future] = running

    def _has_result(self, future: Future[None], running: RunningJob) -> bool:
        """Tell whether a job that ended has a result; submit it again if its process crashed."""
        try:
            future.result()
        except BrokenExecutor as error:
            self._submit_after_crash(running, error)
            return False
        except RankError as error:
            # The worker itself did not crash, and it has counted the attempt.
            self._submit_again(running, first_line(error))
            return False
        except Preempted as error:
            raise KeyboardInterrupt from error
        return True

    def _submit_after_crash(self, running: RunningJob, error: BrokenExecutor) -> None:
        """Submit a job again whose worker process died, unless too many have died.

        Raises:
            TrainingError: Too many have died.
        """
        label, running.crashes = running.job.spec.label, running.crashes + 1
        # A worker that lives long enough to train counts the attempts (`Attempts`) and gives up.
        # This limit is for workers that die earlier.
        if running.crashes > 3 * running.job.execution.attempts:
            raise TrainingError(
                f"{label}: {running.crashes} worker processes ended without a message, the last "
                f"with: {error}; see {running.job.folder}"
            ) from error
        if not (running.job.folder / RESULT).exists():
            self._submit_again(running, "its worker ended without a message")
        else:
            self._submit(running)

    def _submit_again(self, running: RunningJob, reason: str) -> None:
        """Submit a job again, which goes on from its last checkpoint."""
        label = running.job.spec.label
        self.emit(Warned(f"{label}: {reason}; it goes on from its last checkpoint"))
        self._submit(running)

    def _stop(self) -> None:
        """Ask all jobs to stop, wait until each has kept its checkpoint, and end the run."""
        self.executor.stop(self.jobs)
        while wait(self._running, timeout=_POLL_SECONDS).not_done:
            pass
        raise KeyboardInterrupt

    def _relay(self, running: RunningJob) -> None:
        """Pass on the complete lines that a worker has added to its event file, if it has one.

        Nothing depends on events, so that lines that cannot be read are passed over.
        """
        path = running.job.folder / EVENTS
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                file.seek(running.relayed)
                data = file.read(_MOST_RELAYED)
        except FileNotFoundError:
            return
        except FileRefusedError as error:
            self._warn_of_events(running, str(error))
            return
        lines, end, _ = data.rpartition(b"\n")
        if not end and len(data) == _MOST_RELAYED:
            lines = data
        running.relayed += len(lines) + len(end)
        for line in lines.splitlines():
            try:
                event = from_json(json.loads(line))
            except (ValueError, RecursionError):
                self._warn_of_events(running, f"{path} has damaged lines")
            else:
                self._pass_on(running.job, event)

    def _warn_of_events(self, running: RunningJob, fault: str) -> None:
        if not running.warned:
            label = running.job.spec.label
            self.emit(Warned(f"{label}: {fault}; the events of its worker are passed over"))
        running.warned = True

    def _pass_on(self, job: Job, event: Event) -> None:
        self.observer.heard(job.spec.label, event)
        self.emit(event)
