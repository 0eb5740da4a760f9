"""Run jobs on Ray, which assigns devices, spans machines, and retries after the loss of a node."""

import json
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from gatesearch.errors import DataError, first_line
from gatesearch.events import Emit
from gatesearch.execution.jobs import STOP, Job
from gatesearch.execution.worker import work
from gatesearch.files import open_regular

# Number of times that Ray retries a job whose worker or node dies; it goes on from its last
# checkpoint.
_RETRIES = 3


class RayExecutor:
    """Runs jobs as tasks on Ray. All machines must see the store's folder and the data.

    Args:
        address: `://HOST:PORT` of a cluster; empty starts Ray on this machine.
        devices: Number of CUDA devices per task if the cluster has any.

    Raises:
        DataError: The cluster cannot be reached.
    """

    def __init__(self, address: str, *, devices: int = 1) -> None:
        import ray

        self._ray = ray
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(f"ray{address}" if address else None, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise DataError(f"no Ray cluster at ray{address}: {error}") from error
        finally:
            # Ray replaces the handler of SIGTERM by one that ends the process at once.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = devices if resources.get("GPU", 0) else 0
        self._options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": _RETRIES}

    def submit(self, job: Job, emit: Emit) -> "Future[None]":
        """Submit a job to the cluster; see `JobExecutor.submit`."""
        future: Future[None] = Future()
        task: Any = self._ray.remote(**self._options)(work)  # type: ignore[call-overload]
        ray_future = task.remote(json.dumps(job.to_json())).future()

        def translate(done: "Future[None]") -> None:
            error = done.exception()
            crashes = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError)
            if error is None:
                future.set_result(None)
            elif isinstance(error, crashes):
                future.set_exception(BrokenExecutor(first_line(error)))
            else:
                # Ray wraps the exception of a task.
                future.set_exception(getattr(error, "cause", None) or error)

        ray_future.add_done_callback(translate)
        return future

    def stop(self, jobs: Sequence[Job]) -> None:
        """Ask running jobs to stop, by a file in their folders that every machine sees."""
        for job in jobs:
            os.close(open_regular(job.folder / STOP, os.O_WRONLY | os.O_CREAT))

    def shutdown(self) -> None:
        """Disconnect from the cluster, which ends tasks that still run."""
        self._ray.shutdown()
