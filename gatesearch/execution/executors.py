"""Executors run jobs: in this process, in processes with a device each, or on Ray (`ray_executor`).

This module does not import torch when it is loaded: a worker process imports it, and must choose
its CUDA devices before torch is imported.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from gatesearch.errors import UsageError
from gatesearch.events import Emit, Warned
from gatesearch.stopping import Stop, heed, never

if TYPE_CHECKING:
    from gatesearch.execution.jobs import Job

# Tells whether this worker process was asked to stop; `set_up` sets it.
stopping: Stop = never


class JobExecutor(Protocol):
    """An executor of jobs."""

    def submit(self, job: "Job", emit: Emit) -> "Future[None]":
        """Begin a job.

        Args:
            job: The job.
            emit: Receives the job's events if it runs in this process. Other processes write them
                into the job's folder.

        Returns:
            A future that is done when the job's result is in its folder, or with its exception.
        """
        ...

    def stop(self, jobs: Sequence["Job"]) -> None:
        """Ask running jobs to keep a checkpoint and end."""

    def shutdown(self) -> None:
        """End all workers, also those that still run a job."""


class ThisProcess:
    """Runs each job in this process; `submit` returns when the job has ended.

    A training that dies here takes the run with it, and nothing tells whether it was the cause. So
    a job during which the run died more often than `execution.attempts` without another checkpoint
    runs in a worker process. If that dies alone, the network was the cause.

    Args:
        perform: Runs a job. KeyboardInterrupt passes through; other exceptions go to the future.
        worker: Runs such jobs.
    """

    def __init__(
        self, perform: "Callable[[Job, Emit], object]", worker: "JobExecutor | None" = None
    ) -> None:
        self._perform, self._worker = perform, worker

    def submit(self, job: "Job", emit: Emit) -> "Future[None]":
        """See `JobExecutor.submit`."""
        from gatesearch.execution.jobs import Attempts

        deaths = Attempts(job.folder).ended_with_run
        if self._worker is not None and deaths > job.execution.attempts:
            emit(
                Warned(
                    f"{job.spec.label}: the run died {deaths} times while it was trained, before "
                    "it kept another checkpoint; a process of its own trains it now, which shows "
                    "whether it is the cause. If not, lower execution.checkpoint_minutes"
                )
            )
            return self._worker.submit(job, emit)
        future: Future[None] = Future()
        try:
            self._perform(job, emit)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self, jobs: Sequence["Job"]) -> None:
        """Ask the worker process to stop; no other job is running when this can be called."""
        if self._worker is not None:
            self._worker.stop(jobs)

    def shutdown(self) -> None:
        """End the worker process."""
        if self._worker is not None:
            self._worker.shutdown()


class Processes:
    """Runs jobs in worker processes with devices of their own; if one dies, the others go on.

    Args:
        workers: Number of worker processes.
        devices: CUDA devices, given to the workers in turn; empty on a processor.
        each: Number of devices per worker.
        threads: Number of threads per worker.
        work: Runs a job, given as JSON; must be importable by its name.
    """

    def __init__(
        self,
        workers: int,
        *,
        devices: Sequence[str],
        each: int = 1,
        threads: int,
        work: Callable[[str], None] | None = None,
    ) -> None:
        visible = [
            ",".join(devices[(i * each + k) % len(devices)] for k in range(each))
            if devices
            else None
            for i in range(workers)
        ]
        self._setups = [(names, threads) for names in visible]
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._running: list[Future[None] | None] = [None] * workers
        self._work = work or _work

    def submit(self, job: "Job", emit: Emit) -> "Future[None]":
        """Give a job to a free worker.

        Raises:
            RuntimeError: All workers are busy.
        """
        free = [i for i, running in enumerate(self._running) if running is None or running.done()]
        if not free:
            raise RuntimeError(f"all {len(self._running)} workers are busy")
        slot, text = free[0], json.dumps(job.to_json())
        try:
            future = self._pool(slot).submit(self._work, text)
        except BrokenProcessPool:  # The process died after its last job.
            self._pools[slot] = None
            future = self._pool(slot).submit(self._work, text)
        future.add_done_callback(lambda done: self._forget_broken(slot, done))
        self._running[slot] = future
        return future

    def stop(self, jobs: Sequence["Job"]) -> None:
        """Ask all workers to keep a checkpoint and end, by SIGTERM."""
        for child in multiprocessing.active_children():
            child.terminate()

    def shutdown(self) -> None:
        """Kill the processes; by now they are idle, or did not end when they were asked."""
        for child in multiprocessing.active_children():
            child.kill()
        for pool in self._pools:
            if pool is not None:
                pool.shutdown()

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        pool = self._pools[slot]
        if pool is None:
            pool = ProcessPoolExecutor(
                max_workers=1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=set_up,
                initargs=self._setups[slot],
            )
            self._pools[slot] = pool
        return pool

    def _forget_broken(self, slot: int, done: "Future[None]") -> None:
        if not done.cancelled() and isinstance(done.exception(), BrokenProcessPool):
            self._pools[slot] = None


def _work(text: str) -> None:
    from gatesearch.execution.worker import work

    work(text)


def set_up(devices: str | None, threads: int) -> None:
    """Make this process a worker: set its devices, its threads, and how it reacts to signals.

    Args:
        devices: `CUDA_VISIBLE_DEVICES`; None leaves it as it is.
        threads: Number of threads of the processor.
    """
    global stopping
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    os.environ["OMP_NUM_THREADS"] = str(threads)
    stopping = heed()

    import torch

    torch.set_num_threads(threads)


def open_executor(
    name: str,
    workers: int,
    *,
    devices: int = 1,
    perform: "Callable[[Job, Emit], object]",
) -> JobExecutor:
    """Open the executor of a run.

    Args:
        name: `process`, `ray`, or `ray://ADDRESS` of a cluster.
        workers: Number of jobs at a time. With `process`, 1 worker and 1 device, jobs run in this
            process.
        devices: Number of devices that train one network together.
        perform: Runs a job in this process.

    Raises:
        UsageError: Unknown executor, too few devices, or Ray is not installed.
        DataError: The Ray cluster cannot be reached.
    """
    check_executor(name, devices=devices)
    if name != "process":
        from gatesearch.execution.ray_executor import RayExecutor

        return RayExecutor(name.removeprefix("ray"), devices=devices)
    if workers == 1 and devices == 1:
        return ThisProcess(perform, _worker_like_this())
    threads = max(1, (os.cpu_count() or 1) // workers)
    return Processes(workers, devices=visible_devices(), each=devices, threads=threads)


def check_executor(name: str, *, devices: int) -> None:
    """Refuse an executor that cannot be opened here, before a store is made.

    Args:
        name: As for `open_executor`.
        devices: Number of devices that train one network together.

    Raises:
        UsageError: Unknown executor, too few devices, or Ray is not installed.
    """
    if name == "ray" or name.startswith("ray://"):
        if find_spec("ray") is None:
            raise UsageError("--executor ray needs Ray; install it: pip install 'gatesearch[ray]'")
        return
    if name != "process":
        raise UsageError(f"--executor must be process, ray or ray://ADDRESS, found '{name}'")
    available = len(visible_devices()) if devices > 1 else 0
    if 0 < available < devices:
        raise UsageError(
            f"--devices-per-trial must be at most the devices there are, {available}; found "
            f"{devices}"
        )


def _worker_like_this() -> Processes:
    """Make an executor of one worker that computes as this process does, to the bit."""
    import torch

    return Processes(1, devices=(), threads=torch.get_num_threads())


def visible_devices() -> list[str]:
    """List the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None:
        return [item for item in variable.split(",") if item.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]
