"""Calls a function of a frame's number for many frames, in this process or in several.

Worker processes are started afresh: they import what the function needs, compute with one thread
and see no CUDA device. They end when this process ends, and at once on Ctrl-C.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, TypeVar

from gatesearch.errors import DataError, UsageError, one_line
from gatesearch.plugins import load_again, loaded_plugins

R = TypeVar("R")

# Seconds of work in this process after which it is known how long the rest takes.
_TRIAL_SECONDS = 1.0
# Seconds of remaining work from which worker processes, which take some to start, are worth it.
_WORTH_SECONDS = 8.0
_COMMAND = "from gatesearch.datasets.frame_pool import serve; serve()"
# The name under which Python's own worker processes load the main script again.
_MAIN_AGAIN = "__mp_main__"

_is_worker = False


def cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def call_for_each(
    function: Callable[[int], R], numbers: Sequence[int], *, processes: int | None
) -> Iterator[R]:
    """Yield what a function returns for each number, in whatever order it is ready.

    Args:
        function: Must be picklable, unless it is called in this process alone.
        numbers: Arguments.
        processes: 1 for this process, more for as many others. None begins in this process, and
            goes on in one process per core if that saves time and the function is picklable.

    Raises:
        UsageError: The function is not picklable; processes are started inside such a process.
        DataError: A worker process died.
        Exception: The first that the function raised.
    """
    if processes is not None:
        if processes < 1:
            raise UsageError(f"processes must be at least 1, found {processes}")
        if processes == 1:
            yield from map(function, numbers)
        else:
            yield from _in_processes(_pickled(function), function, numbers, processes)
        return
    started = time.monotonic()
    for done, number in enumerate(numbers, start=1):
        yield function(number)
        seconds = time.monotonic() - started
        left = numbers[done:]
        if cores() > 1 and seconds > _TRIAL_SECONDS:
            if seconds / done * len(left) > _WORTH_SECONDS:
                with suppress(UsageError):
                    code = _pickled(function)
                    yield from _in_processes(code, function, left, cores())
                    return
            yield from map(function, left)
            return


def _pickled(function: Callable[[int], Any]) -> bytes:
    if _is_worker:
        raise UsageError(
            "worker processes run the main script again, and found it starting processes itself; "
            'put what it does under `if __name__ == "__main__":`'
        )
    try:
        return pickle.dumps(function)
    except Exception as error:  # an open set
        raise UsageError(
            "what several processes do must be picklable, as by a DataLoader's workers, found "
            f"something that is not ({one_line(error)}); define its classes and functions at the "
            "top of a module, or set processes=1"
        ) from error


def _in_processes(
    code: bytes, function: Callable[[int], R], numbers: Sequence[int], processes: int
) -> Iterator[R]:
    """Yield results of worker processes, each of which is served by a thread."""
    pending = iter(numbers)
    lock = threading.Lock()
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    workers = [_start() for _ in range(min(processes, len(numbers)))]
    stopped = threading.Event()

    def serve_one(worker: "subprocess.Popen[bytes]") -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        number: int | None = None
        try:
            worker.stdin.write(_setup(code))
            while not stopped.is_set():
                with lock:
                    number = next(pending, None)
                if number is None:
                    return
                pickle.dump(number, worker.stdin)
                worker.stdin.flush()
                results.put(pickle.load(worker.stdout))
        except Exception as error:  # it died, or its answer cannot be read
            with suppress(subprocess.TimeoutExpired):
                worker.wait(1)
            results.put((False, _Died(number, worker.returncode, one_line(error))))

    threads = [
        threading.Thread(target=serve_one, args=(worker,), daemon=True) for worker in workers
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in numbers:
            succeeded, result = results.get()
            if isinstance(result, _Died):
                raise result.error(function)
            if not succeeded:
                raise result
            yield result
    finally:
        stopped.set()
        for worker in workers:
            worker.kill()
        for worker, thread in zip(workers, threads, strict=True):
            worker.wait()
            if thread.ident is not None:
                thread.join()
            for pipe in (worker.stdin, worker.stdout):
                with suppress(OSError):  # what is still buffered for a dead process
                    if pipe is not None:
                        pipe.close()


class _Died:
    """The end of a worker process that should have gone on."""

    def __init__(self, number: int | None, code: int | None, message: str) -> None:
        self._number, self._code, self._message = number, code, message

    def error(self, function: Callable[[int], Any]) -> DataError:
        name = getattr(function, "name", str)(self._number)
        end = "out of memory, perhaps" if self._code == -signal.SIGKILL else self._message
        return DataError(
            f"the process that made frame {name} ended with {self._code} ({end}); look at its "
            "files, or use fewer processes"
        )


def _start() -> "subprocess.Popen[bytes]":
    # With -P the current folder is searched for modules only if it is here: files that happen to
    # lie there must not run.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def _setup(code: bytes) -> bytes:
    """What a worker reads first: plugins, the main script if it is needed, and the function."""
    script = getattr(sys.modules["__main__"], "__file__", None) if b"__main__" in code else None
    return pickle.dumps((loaded_plugins(), script, code))


def serve() -> None:
    """Work as a worker process: read numbers from standard input, write results to output."""
    global _is_worker
    _is_worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    numbers, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a frame's code prints may come between the results
    try:
        function, error = _function(numbers), None
    except EOFError:
        return
    except BaseException as raised:
        function, error = None, raised
    while True:
        try:
            number = pickle.load(numbers)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            if function is None:
                assert error is not None
                raise error
            answer = True, function(number)
        except BaseException as raised:
            answer = False, _portable(raised)
        results.write(pickle.dumps(answer))
        results.flush()


def _function(stream: IO[bytes]) -> Callable[[int], Any]:
    import torch

    torch.set_num_threads(1)
    plugins, script, code = pickle.load(stream)
    load_again(plugins)
    if script is not None:
        import runpy
        import types

        main = types.ModuleType(_MAIN_AGAIN)
        main.__dict__.update(runpy.run_path(script, run_name=_MAIN_AGAIN))
        sys.modules["__main__"] = sys.modules[_MAIN_AGAIN] = main
    function: Callable[[int], Any] = pickle.loads(code)
    return function


def _portable(error: BaseException) -> BaseException:
    """Return an error that this process can send: itself, or one with the same text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
