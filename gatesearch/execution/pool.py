"""Jobs in work: handed to an executor, watched, and given back as results in the order they end."""

import json
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gatesearch.execution.executors import Processes, ThisProcess
from gatesearch.execution.jobs import EVENTS, RESULT, STOP, Attempts, Job, read_result
from gatesearch.execution.worker import perform, work
from gatesearch.methods.context import Context, Emit
from gatesearch.results import Result
from gatesearch.stopping import Stop
from gatesearch.store.status import StatusFile
from gatesearch.training import Preempted, RankError, TrainingError

# Seconds between two looks at what workers tell.
_GLANCE = 0.2


@dataclass
class RunningJob:
    """A job in work.

    Attributes:
        job: The job.
        crashes: Processes that ended under it in this run.
        told: Bytes of its events that were passed on.
    """

    job: Job
    crashes: int = 0
    told: int = 0


@dataclass
class WorkerPool:
    """All jobs in work.

    Attributes:
        executor: Does them.
        size: How many at a time.
        bench: For jobs that this process does itself.
        emit: Receives progress of all.
        stop: Whether to end in order.
        board: Tells who is at what.
    """

    executor: Executor
    size: int
    bench: Context
    emit: Emit
    stop: Stop
    board: StatusFile
    _works: dict[Future[Any], RunningJob] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """How many more jobs it takes."""
        return self.size - len(self._works)

    @property
    def jobs(self) -> list[Job]:
        """In work."""
        return [work.job for work in self._works.values()]

    def begin(self, job: Job) -> None:
        """Take a job."""
        job.write()
        for name in (EVENTS, STOP):
            (job.folder / name).unlink(missing_ok=True)
        self.board.begin(job.candidate.label, attempt=len(Attempts(job.folder)) + 1)
        self._submit(RunningJob(job))

    def results(self) -> Iterator[tuple[Job, Result]]:
        """Jobs and their results as they end, until none is in work; more may begin meanwhile.

        Raises:
            KeyboardInterrupt: It was asked to stop; checkpoints are kept.
            TrainingError: The processes of a job end again and again.
        """
        while self._works:
            done, _ = wait(self._works, timeout=_GLANCE, return_when=FIRST_COMPLETED)
            for future in self._works:
                self._relay(self._works[future])
            if self.stop():
                self._stop()
            for future in done:
                ended = self._works.pop(future)
                if self._came_to_result(future, ended):
                    result = read_result(ended.job)
                    assert result is not None
                    self.board.end(ended.job.candidate.label)
                    yield ended.job, result

    def _submit(self, ended: RunningJob) -> None:
        job = ended.job
        if isinstance(self.executor, ThisProcess):
            emit = partial(self._hear, job)
            own = partial(perform, job, self.bench, emit=emit, stop=self.stop)
            future = self.executor.submit(own)
        else:
            future = self.executor.submit(work, json.dumps(job.to_json()))
        self._works[future] = ended

    def _came_to_result(self, future: Future[Any], ended: RunningJob) -> bool:
        try:
            future.result()
        except BrokenExecutor as error:
            self._crashed(ended, error)
            return False
        except RankError as error:
            # Its worker lives, and has counted the attempt.
            self._again(ended, str(error).splitlines()[0])
            return False
        except Preempted as error:
            raise KeyboardInterrupt from error
        return True

    def _crashed(self, ended: RunningJob, error: BrokenExecutor) -> None:
        """Have it done again, unless that is hopeless."""
        label, ended.crashes = ended.job.candidate.label, ended.crashes + 1
        # A process that lives long enough to train counts its attempts itself.
        if ended.crashes > 3 * ended.job.execution.attempts:
            raise TrainingError(
                f"{label}: {ended.crashes} worker processes ended without a word, the last with: "
                f"{error}; see {ended.job.folder}"
            ) from error
        if not (ended.job.folder / RESULT).exists():
            self._again(ended, "its worker ended without a word")
        else:
            self._submit(ended)

    def _again(self, ended: RunningJob, why: str) -> None:
        """Have it done again, from its last checkpoint."""
        message = f"{ended.job.candidate.label}: {why}; it goes on where its last checkpoint is"
        self.emit({"event": "warning", "message": message})
        self._submit(ended)

    def _stop(self) -> None:
        """Wait until every job has kept its checkpoint."""
        if isinstance(self.executor, Processes):
            self.executor.stop()
        elif not isinstance(self.executor, ThisProcess):
            for job in self.jobs:  # on whichever machine
                (job.folder / STOP).touch()
        while wait(self._works, timeout=_GLANCE).not_done:
            pass
        raise KeyboardInterrupt

    def _relay(self, ended: RunningJob) -> None:
        """Pass on the whole lines that its worker has written since."""
        path = ended.job.folder / EVENTS
        if isinstance(self.executor, ThisProcess) or not path.exists():
            return
        with path.open("rb") as file:
            file.seek(ended.told)
            lines, found, _ = file.read().rpartition(b"\n")
        ended.told += len(lines) + len(found)
        for line in lines.splitlines():
            self._hear(ended.job, json.loads(line))

    def _hear(self, job: Job, event: dict[str, Any]) -> None:
        self.board.heard(job.candidate.label, event)
        self.emit(event)
