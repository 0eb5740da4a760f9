"""Who runs the jobs: this process, processes with a device each, or Ray (`ray_executor`).

Nothing here imports torch at the top: a worker process must know its device before torch asks for
it.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from typing import TYPE_CHECKING, Protocol

from gatesearch.errors import UsageError
from gatesearch.events import Emit
from gatesearch.stopping import Stop, heed, never

if TYPE_CHECKING:
    from gatesearch.execution.jobs import Job

stopping: Stop = never  # a worker process puts its own here


class JobExecutor(Protocol):
    """Runs jobs."""

    def submit(self, job: "Job", emit: Emit) -> "Future[None]":
        """Begin a job; its result is in its folder when the future is done.

        Args:
            job: The job.
            emit: Receives its events, where no other process writes them into the job's folder.
        """
        ...

    def stop(self, jobs: Sequence["Job"]) -> None:
        """Ask running jobs to keep a checkpoint and end."""

    def shutdown(self) -> None:
        """End all workers, idle by now or not."""


class ThisProcess:
    """Does a job at once, in this process.

    Args:
        perform: Does it; Ctrl-C passes through, any other failure is the future's.
    """

    def __init__(self, perform: "Callable[[Job, Emit], object]") -> None:
        self._perform = perform

    def submit(self, job: "Job", emit: Emit) -> "Future[None]":
        """See `JobExecutor.submit`."""
        future: Future[None] = Future()
        try:
            self._perform(job, emit)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self, jobs: Sequence["Job"]) -> None:
        """Nothing runs here while somebody can ask."""

    def shutdown(self) -> None:
        """There are no workers."""


class Processes:
    """A process for each worker, with a device of its own; one that dies takes no other along.

    Args:
        workers: How many.
        devices: CUDA devices, dealt out in turn; none on a processor.
        each: Devices of one worker.
        threads: Of each worker.
        work: Does a job, given as JSON; importable by its name.
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
        dealt = [[devices[(i * each + k) % len(devices)] for k in range(each)] if devices else None
                 for i in range(workers)]  # fmt: skip
        self._setups = [(None if own is None else ",".join(own), threads) for own in dealt]
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._running: list[Future[None] | None] = [None] * workers
        self._work = work or _work

    def submit(self, job: "Job", emit: Emit) -> "Future[None]":
        """Give a job to a worker that has none.

        Raises:
            RuntimeError: All have one.
        """
        free = [i for i, running in enumerate(self._running) if running is None or running.done()]
        if not free:
            raise RuntimeError(f"all {len(self._running)} workers are busy")
        slot, text = free[0], json.dumps(job.to_json())
        try:
            future = self._pool(slot).submit(self._work, text)
        except BrokenProcessPool:  # it died since its last job
            self._pools[slot] = None
            future = self._pool(slot).submit(self._work, text)
        future.add_done_callback(lambda done: self._forget_broken(slot, done))
        self._running[slot] = future
        return future

    def stop(self, jobs: Sequence["Job"]) -> None:
        """Ask all workers for an orderly end."""
        for child in multiprocessing.active_children():
            child.terminate()

    def shutdown(self) -> None:
        """End the processes: idle by now, or past all patience."""
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
    """Make this process a worker: its devices, its threads, its answer to signals."""
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
    """The executor of a run.

    Args:
        name: `process`, `ray`, or `ray://ADDRESS` of a cluster.
        workers: Jobs at a time; one is done by this very process.
        devices: How many train one job together.
        perform: Does a job in this process.

    Raises:
        UsageError: No such executor, or Ray is not installed.
    """
    if name == "ray" or name.startswith("ray://"):
        from gatesearch.execution.ray_executor import RayExecutor

        return RayExecutor(name.removeprefix("ray"), devices=devices)
    if name != "process":
        raise UsageError(f"--executor must be process, ray or ray://ADDRESS, found '{name}'")
    if workers == 1 and devices == 1:
        return ThisProcess(perform)
    there, threads = visible_devices(), max(1, (os.cpu_count() or 1) // workers)
    if 0 < len(there) < devices:
        raise UsageError(
            f"--devices-per-trial must be at most the devices there are, {len(there)}; "
            f"found {devices}"
        )
    return Processes(workers, devices=there, each=devices, threads=threads)


def visible_devices() -> list[str]:
    """CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [item for item in named.split(",") if item.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]
