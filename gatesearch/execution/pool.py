"""Running jobs: handed to an executor, watched, and given back as results in the order they end."""

import json
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

from gatesearch.events import Emit, Event, Warned, from_json
from gatesearch.execution.executors import JobExecutor
from gatesearch.execution.jobs import EVENTS, RESULT, STOP, Attempts, Job, read_result
from gatesearch.results import Result
from gatesearch.stopping import Stop
from gatesearch.training import Preempted, RankError, TrainingError

# Seconds between two looks at what workers have emitted.
_POLL_SECONDS = 0.2


class Observer(Protocol):
    """Is shown which worker does what."""

    def begin(self, job: str, *, attempt: int = 1) -> None:
        """A worker begins a job, for the n-th time."""

    def heard(self, job: str, event: Event) -> None:
        """The worker of a job emitted an event."""

    def end(self, job: str) -> None:
        """The worker of a job is done with it."""


@dataclass
class RunningJob:
    """A job that a worker has.

    Attributes:
        job: The job.
        crashes: Worker processes that ended under it in this run.
        relayed: Bytes of its events that were passed on.
    """

    job: Job
    crashes: int = 0
    relayed: int = 0


@dataclass
class WorkerPool:
    """All running jobs.

    Attributes:
        executor: Runs them.
        size: How many at a time.
        emit: Receives events of all.
        stop: Whether to end in order.
        observer: Is shown which worker does what.
    """

    executor: JobExecutor
    size: int
    emit: Emit
    stop: Stop
    observer: Observer
    _running: dict[Future[None], RunningJob] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """How many more jobs it takes."""
        return self.size - len(self._running)

    @property
    def jobs(self) -> list[Job]:
        """The running jobs."""
        return [running.job for running in self._running.values()]

    def begin(self, job: Job) -> None:
        """Take a job."""
        job.write()
        for name in (EVENTS, STOP):
            (job.folder / name).unlink(missing_ok=True)
        self.observer.begin(job.spec.label, attempt=len(Attempts(job.folder)) + 1)
        self._submit(RunningJob(job))

    def results(self) -> Iterator[tuple[Job, Result]]:
        """Jobs and their results as they end, until none is running; more may begin meanwhile.

        Raises:
            KeyboardInterrupt: It was asked to stop; checkpoints are kept.
            TrainingError: The processes of a job end again and again.
        """
        while self._running:
            done, _ = wait(self._running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for running in self._running.values():
                self._relay(running)
            if self.stop():
                self._stop()
            for future in done:
                running = self._running.pop(future)
                if self._came_to_result(future, running):
                    result = read_result(running.job)
                    assert result is not None
                    self.observer.end(running.job.spec.label)
                    yield running.job, result

    def _submit(self, running: RunningJob) -> None:
        job = running.job
        future = self.executor.submit(job, lambda event: self._hear(job, event))
        self._running[future] = running

    def _came_to_result(self, future: Future[None], running: RunningJob) -> bool:
        try:
            future.result()
        except BrokenExecutor as error:
            self._crashed(running, error)
            return False
        except RankError as error:
            # Its worker lives, and has counted the attempt.
            self._submit_again(running, str(error).splitlines()[0])
            return False
        except Preempted as error:
            raise KeyboardInterrupt from error
        return True

    def _crashed(self, running: RunningJob, error: BrokenExecutor) -> None:
        """Have the job done again, unless its workers died too often."""
        label, running.crashes = running.job.spec.label, running.crashes + 1
        # A process that lives long enough to train counts its attempts itself.
        if running.crashes > 3 * running.job.execution.attempts:
            raise TrainingError(
                f"{label}: {running.crashes} worker processes ended without a word, the last with: "
                f"{error}; see {running.job.folder}"
            ) from error
        if not (running.job.folder / RESULT).exists():
            self._submit_again(running, "its worker ended without a word")
        else:
            self._submit(running)

    def _submit_again(self, running: RunningJob, why: str) -> None:
        """Have the job done again, from its last checkpoint."""
        label = running.job.spec.label
        self.emit(Warned(f"{label}: {why}; it goes on where its last checkpoint is"))
        self._submit(running)

    def _stop(self) -> None:
        """Wait until every job has kept its checkpoint."""
        self.executor.stop(self.jobs)
        while wait(self._running, timeout=_POLL_SECONDS).not_done:
            pass
        raise KeyboardInterrupt

    def _relay(self, running: RunningJob) -> None:
        """Pass on the whole lines that its worker has written since, where it writes any."""
        path = running.job.folder / EVENTS
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(running.relayed)
            lines, end, _ = file.read().rpartition(b"\n")
        running.relayed += len(lines) + len(end)
        for line in lines.splitlines():
            self._hear(running.job, from_json(json.loads(line)))

    def _hear(self, job: Job, event: Event) -> None:
        self.observer.heard(job.spec.label, event)
        self.emit(event)
