"""A process that loads one shipped network in a runtime and times it when it is asked to."""

import logging
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import torch

from gatesearch.export.formats import write_network
from gatesearch.export.reader import read_exported
from gatesearch.export.runtimes import RUNTIMES, Run, Runtime, error_line
from gatesearch.export.shipped import Card
from gatesearch.plugins import Plugin, load_again, loaded_plugins

# Runs before the first turn.
WARM_UP = 3
# Seconds for a worker to end by itself; torch's compiler leaves semaphores behind if it is killed.
GRACE = 5.0


@dataclass(frozen=True)
class TimingJob:
    """A network to time in a runtime.

    Attributes:
        file: .safetensors or .onnx.
        card: The network's card.
        runtime: A name in `RUNTIMES`.
        batch: Images per run.
        device: `cpu` or `cuda`.
        threads: Processor threads.
    """

    file: Path
    card: Card
    runtime: str
    batch: int
    device: str
    threads: int


@dataclass(frozen=True)
class Measurement:
    """The measurement of a worker.

    Attributes:
        job: The job.
        laps: Seconds of each run; empty if there is an error.
        memory_mib: Growth of its peak memory, see `timing.Figures`.
        error: Why it failed; empty if it did not.
    """

    job: TimingJob
    laps: Sequence[float]
    memory_mib: float
    error: str = ""


class Worker:
    """A process that loads and runs one network.

    After an error it does nothing more, and the error is its measurement.

    Attributes:
        job: The job.
    """

    def __init__(self, job: TimingJob) -> None:
        self.job = job
        self._laps: list[float] = []
        self._memory_mib = 0.0
        self._error = ""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, RUNTIMES[job.runtime], job, loaded_plugins()), daemon=True
        )
        self._process.start()
        # While this end is open here, the death of the process does not end a `recv`.
        theirs.close()

    @property
    def measurement(self) -> Measurement:
        """What was measured until now."""
        laps = [] if self._error else self._laps
        return Measurement(self.job, laps, self._memory_mib, self._error)

    def load(self, folder: Path) -> None:
        """Load the network and run it a few times.

        Args:
            folder: Where an ONNX file is written if the runtime needs one.
        """
        try:
            file = _file_to_load(self.job, folder)
        except Exception as error:  # torch's exporter raises errors without a common base class
            self._error = error_line(error)
        else:
            self._ask(file)

    def measure(self, seconds: float) -> None:
        """Run the network for some seconds, once at least."""
        self._ask(seconds)

    def _ask(self, message: Path | float) -> None:
        if self._error:
            return
        try:
            self._pipe.send(message)
            reply = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(GRACE)
            self._error = (
                f"its process ended with code {self._process.exitcode}; -9 is mostly want of "
                "memory: use a smaller --batch"
            )
            return
        if isinstance(reply, str):
            self._error = reply
        else:
            laps, self._memory_mib = reply
            self._laps += laps

    def hang_up(self) -> None:
        """Let the process end once its current work is done."""
        self._pipe.close()

    def end(self, wait: float) -> None:
        """Wait some seconds for the process to end, then kill it."""
        self._process.join(wait)
        self._process.kill()
        self._process.join()


def _file_to_load(job: TimingJob, folder: Path) -> Path:
    if job.runtime != "onnxruntime" or job.file.suffix == ".onnx":
        return job.file
    # Written by this process, because the worker's memory is measured.
    written = Path(tempfile.mkdtemp(dir=folder)) / "network.onnx"
    write_network(read_exported(job.file), job.card, written, form="onnx")
    return written


def end_all(workers: Sequence[Worker], grace: float) -> None:
    """Let workers end within some seconds, then kill those that still run."""
    for worker in workers:
        worker.hang_up()
    deadline = monotonic() + grace
    for worker in workers:
        worker.end(max(0.0, deadline - monotonic()))


def _work(pipe: Connection, runtime: Runtime, job: TimingJob, plugins: Sequence[Plugin]) -> None:
    """Do a worker's job, in its process.

    Receives a file, loads it, and from then on sends (seconds of each run, peak MiB) or an error
    and receives for how many seconds to run.
    """
    logging.disable(logging.WARNING)
    try:
        load_again(plugins)
        file = pipe.recv()
        torch.set_num_threads(job.threads)
        shape = (job.batch, 3, *job.card.size)
        images = np.random.default_rng(0).random(shape, np.float32) * 255
        load = runtime(job.device)
        before = _peak_mib(reset=True)
        run = load(file, tuple(job.card.tasks), images)
        for _ in range(WARM_UP):
            run()
        laps: list[float] = []
        while True:
            if job.device == "cuda":
                pipe.send((laps, torch.cuda.max_memory_allocated() / 2**20))
            else:
                pipe.send((laps, _peak_mib() - before))
            laps = measure_laps(run, pipe.recv())
    except EOFError:  # The other end was closed by `hang_up`.
        return
    except Exception as error:  # Any error of a runtime becomes the error of its row.
        with suppress(OSError):
            pipe.send(error_line(error))


def measure_laps(run: Run, seconds: float) -> list[float]:
    """Run again and again for some seconds, at least once, and return the seconds of each run."""
    # One run that does not count: other processes have filled the caches in between.
    run()
    laps: list[float] = []
    end = perf_counter() + seconds
    while not laps or perf_counter() < end:
        start = perf_counter()
        run()
        laps.append(perf_counter() - start)
    return laps


def _peak_mib(*, reset: bool = False) -> float:
    """Read the peak resident memory of this process since the last call that reset it, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux getrusage starts a process with the peak of its parent.
        if reset:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(fields["VmHWM"].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which a terminal sends to them too.

    This process ends them instead, so that there is one message and not a traceback from each.
    """
    # Starting it lets interrupts through again, so it must run before they are blocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
