"""Who does the jobs: this process, processes with a device each, or Ray.

All are `concurrent.futures.Executor`s that are given one function and one job as text. Nothing here
needs torch: a process must know its device before torch asks for it.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from typing import Any

from gatesearch.errors import UsageError
from gatesearch.stopping import Stop, heed, never

stopping: Stop = never  # a worker process puts its own here


class ThisProcess(Executor):
    """Does a job at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it; Ctrl-C passes through, any other failure is the future's."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """A process for each worker, with a device of its own; one that dies takes no other along.

    Args:
        workers: How many.
        devices: CUDA devices, dealt out in turn; none on a processor.
        each: Devices of one worker.
        threads: Of each worker.
    """

    def __init__(
        self, workers: int, *, devices: Sequence[str], each: int = 1, threads: int
    ) -> None:
        own = [[devices[(i * each + k) % len(devices)] for k in range(each)] if devices else None
               for i in range(workers)]  # fmt: skip
        self._setups = [(None if dealt is None else ",".join(dealt), threads) for dealt in own]
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._busy: list[Future[Any] | None] = [None] * workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give a job to a worker that has none.

        Raises:
            RuntimeError: All have one.
        """
        free = [i for i, job in enumerate(self._busy) if job is None or job.done()]
        if not free:
            raise RuntimeError(f"all {len(self._busy)} workers are busy")
        slot = free[0]
        try:
            future = self._pool(slot).submit(fn, *args, **kwargs)
        except BrokenProcessPool:  # it died since its last job
            self._pools[slot] = None
            future = self._pool(slot).submit(fn, *args, **kwargs)
        future.add_done_callback(lambda done: self._mourn(slot, done))
        self._busy[slot] = future
        return future

    def stop(self) -> None:
        """Ask all workers for an orderly end."""
        for child in multiprocessing.active_children():
            child.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: idle by now, or past all patience."""
        for child in multiprocessing.active_children():
            child.kill()
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(wait=wait, cancel_futures=cancel_futures)

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

    def _mourn(self, slot: int, done: "Future[Any]") -> None:
        if not done.cancelled() and isinstance(done.exception(), BrokenProcessPool):
            self._pools[slot] = None


def set_up(devices: str | None, threads: int) -> None:
    """Make this process a worker: its devices, its threads, its ear for signals."""
    global stopping
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    os.environ["OMP_NUM_THREADS"] = str(threads)
    stopping = heed()

    import torch

    torch.set_num_threads(threads)


def open_executor(
    name: str, workers: int, *, devices: int = 1
) -> "ThisProcess | Processes | Executor":
    """The executor of a run.

    Args:
        name: `process`, `ray`, or `ray://ADDRESS` of a cluster.
        workers: Jobs at a time; one process is this very one.
        devices: How many train one job together.

    Raises:
        UsageError: No such executor, or Ray is not installed.
    """
    if name == "ray" or name.startswith("ray://"):
        from gatesearch.execution.ray_executor import RayExecutor

        return RayExecutor(name.removeprefix("ray"), devices=devices)
    if name != "process":
        raise UsageError(f"--executor must be process, ray or ray://ADDRESS, found '{name}'")
    if workers == 1 and devices == 1:
        return ThisProcess()
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
