"""Jobs on Ray: it packs devices, spans machines, and retries after the loss of a node."""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from importlib.util import find_spec
from typing import Any

from gatesearch.errors import DataError, UsageError

# Of Ray's own, for a worker or a node that dies; the job goes on from its last checkpoint.
_RETRIES = 3


class RayExecutor(Executor):
    """An executor of tasks on Ray; all machines must see the store's folder and the data.

    Args:
        address: `://HOST:PORT` of a cluster; empty starts Ray on this machine.
        devices: CUDA devices of a task, where the cluster has any.

    Raises:
        UsageError: Ray is not installed.
        DataError: The cluster cannot be reached.
    """

    def __init__(self, address: str, *, devices: int = 1) -> None:
        if find_spec("ray") is None:
            raise UsageError("--executor ray needs Ray; install it: pip install 'gatesearch[ray]'")
        import ray

        self._ray = ray
        asking = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(f"ray{address}" if address else None, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise DataError(f"no Ray cluster at ray{address}: {error}") from error
        finally:
            # Ray has SIGTERM end the process at once.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, asking)
        gpus = devices if ray.cluster_resources().get("GPU", 0) else 0
        self._options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": _RETRIES}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give a job to the cluster."""
        outer: Future[Any] = Future()
        task: Any = self._ray.remote(**self._options)(fn)  # type: ignore[call-overload]
        inner = task.remote(*args, **kwargs).future()

        def ended(done: Future[Any]) -> None:
            error = done.exception()
            lost = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError)
            if error is None:
                outer.set_result(done.result())
            elif isinstance(error, lost):
                outer.set_exception(BrokenExecutor(str(error).splitlines()[0]))
            else:
                outer.set_exception(getattr(error, "cause", None) or error)

        inner.add_done_callback(ended)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; tasks still running end with their driver."""
        self._ray.shutdown()
