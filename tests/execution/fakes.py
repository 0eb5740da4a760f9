"""An executor that trains nothing: it writes results that a test makes up."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from gatesearch.events import Emit, Event
from gatesearch.execution.jobs import Job, keep_result
from gatesearch.execution.pool import WorkerPool
from gatesearch.methods import NetworkSpec
from gatesearch.results import Result
from gatesearch.stopping import Stop, never

# What becomes of a job: a result, kept in its folder, or what its worker ended with.
Outcome = Result | BaseException
Train = Callable[[Job], Outcome]


def result_of(job: Job, **figures) -> Result:
    """A complete result of a job, with the figures that matter to a test."""
    spec = job.spec
    validation = {"semseg": 20.0, "depth": 0.5} | figures.pop("validation", {})
    plain = {
        "method": spec.method, "seed": spec.seed, "trial": spec.trial, "part": spec.part,
        "weighting": spec.weighting, "budget": spec.budget, "params": dict(spec.params),
        "metrics": {"validation": validation}, "gflops": 1.0, "backbone_gflops": 0.5,
        "params_m": 0.1, "epochs": 2, "train_seconds": 1.0, "train_images": 12,
        "train_pflops": 1.0,
    }  # fmt: skip
    if spec.control is not None:
        plain |= {"of": spec.control.of, "control": spec.control.kind}
    return Result(**plain | figures)


@dataclass
class FakeExecutor:
    """Runs jobs when asked to: at once, or in the order in which a test ends them.

    Attributes:
        train: Says what becomes of a job.
        held: Whether jobs wait for `end`.
        submitted: Jobs in the order in which they came, again for each time.
        stopped: Jobs that were asked to stop.
    """

    train: Train = result_of
    held: bool = False
    submitted: list[Job] = field(default_factory=list)
    stopped: list[Job] = field(default_factory=list)
    was_shut_down: bool = False
    _waiting: dict[str, tuple[Job, Future[None]]] = field(default_factory=dict)

    def submit(self, job: Job, emit: Emit) -> "Future[None]":
        """Begin a job."""
        self.submitted.append(job)
        future: Future[None] = Future()
        self._waiting[job.spec.label] = (job, future)
        if not self.held:
            self.end(job.spec.label)
        return future

    def end(self, label: str, outcome: Outcome | None = None) -> None:
        """End a job that waits, as the test says or as `train` does."""
        job, future = self._waiting.pop(label)
        came_to = self.train(job) if outcome is None else outcome
        if isinstance(came_to, BaseException):
            future.set_exception(came_to)
        else:
            keep_result(job, came_to)
            future.set_result(None)

    @property
    def waiting(self) -> list[str]:
        """Labels of the jobs that have not ended."""
        return list(self._waiting)

    def stop(self, jobs: Sequence[Job]) -> None:
        """Ask running jobs to keep a checkpoint and end; they do, at once."""
        from gatesearch.training import Preempted

        self.stopped += jobs
        for label in self.waiting:
            self.end(label, Preempted())

    def shutdown(self) -> None:
        """End all workers."""
        self.was_shut_down = True


@dataclass
class Watching:
    """An observer that writes down what it is shown."""

    seen: list[tuple] = field(default_factory=list)

    def begin(self, job: str, *, attempt: int = 1) -> None:
        self.seen.append(("begin", job, attempt))

    def heard(self, job: str, event: Event) -> None:
        self.seen.append(("heard", job, event.message))

    def end(self, job: str) -> None:
        self.seen.append(("end", job))


def pool_of(
    executor, *, size: int = 1, told: list | None = None, stop: Stop = never, observer=None
) -> WorkerPool:
    """A pool, whose events go into a list."""
    emit = (lambda event: None) if told is None else told.append
    return WorkerPool(executor, size, emit, stop, Watching() if observer is None else observer)


def job_of(out: Path, trial: int = 0, **options) -> Job:
    """A job of a study that nobody reads."""
    plain = {
        "store": "a store", "definition": {"name": "made up"},
        "spec": NetworkSpec("interrogate", 0, trial, {"lambda_s": 1.0}), "start": None, "out": out,
        "data": out / "data", "sha256": "0" * 64,
        "runtime": {"precision": "fp32", "memory_format": "nchw"},
    }  # fmt: skip
    return Job(**plain | options)
