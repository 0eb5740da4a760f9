"""Measure how fast shipped networks run, several of them side by side.

Each network has its own process per runtime, so that no network affects the memory, threads or
compiler of another. The processes take turns and only one works at a time: if the machine slows
down meanwhile, all networks slow down alike and their ratios stay.
"""

import logging
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import torch

from gatesearch.errors import UsageError, unknown
from gatesearch.export.formats import write_network
from gatesearch.export.parts import write_part
from gatesearch.export.reader import read_exported, read_model
from gatesearch.export.runtimes import RUNTIMES, Run, Runtime, error_line
from gatesearch.export.shipped import Card
from gatesearch.plugins import Plugin, load_again, loaded_plugins

# Turns that each network takes.
ROUNDS = 5
# Runs before the first turn.
WARM_UP = 3
# Seconds for a worker to end by itself; torch's compiler leaves semaphores behind if it is killed.
GRACE = 5.0
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Figures:
    """Latency, throughput and memory of a network in a runtime.

    Attributes:
        median_ms: Median latency of a batch, milliseconds.
        p95_ms: 95th percentile of the latency of a batch, milliseconds.
        images_per_second: Images per batch / median latency.
        memory_mib: Growth of the process's peak memory since before the network was loaded, MiB;
            with torch.compile it includes compiling. On cuda the peak of allocated device memory.
        ratio: Median latency / that of the first network in the same runtime; None if that failed.
    """

    median_ms: float
    p95_ms: float
    images_per_second: float
    memory_mib: float
    ratio: float | None


@dataclass(frozen=True)
class Timing:
    """Figures of a network in a runtime, or the error with which the runtime failed.

    Attributes:
        file: The network's file.
        card: Its card, with its cost for one image.
        runtime: A name in `RUNTIMES`.
        figures: None if the runtime failed.
        error: Why it failed; empty if it did not.
    """

    file: Path
    card: Card
    runtime: str
    figures: Figures | None
    error: str = ""


@dataclass(frozen=True)
class Bench:
    """Networks that were timed side by side.

    Attributes:
        batch: Images per run, each of the size on the network's card.
        device: `cpu` or `cuda`.
        threads: Processor threads that an operator may use.
        rows: One per network and runtime: by runtime, then in the order of the files.
    """

    batch: int
    device: str
    threads: int
    rows: tuple[Timing, ...]


def time_models(
    files: Sequence[Path],
    *,
    runtimes: Sequence[str] = (),
    batch: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = 2.0,
    tasks: Sequence[str] = (),
    tell: Callable[[str], None] = lambda message: None,
) -> Bench:
    """Time networks that `gatesearch export` wrote; a runtime that fails is a row with the error.

    Args:
        files: A .safetensors runs in every runtime, an .onnx in onnxruntime.
        runtimes: Names in `RUNTIMES`; by default all that work on the device.
        batch: Images per run.
        device: One of `DEVICES`; `auto` is cuda where there is one.
        threads: Processor threads; by default as many as torch takes.
        seconds: Seconds of measuring per network and runtime.
        tasks: Tasks of which the networks are timed alone, cut out of a .safetensors each; by
            default all of a network.
        tell: Receives a line per step; compiling a network can take minutes.

    Raises:
        DataError: A file is missing.
        UsageError: A file cannot be read or run as asked, or an argument is not possible.
    """
    if batch < 1:
        raise UsageError(f"a batch must hold 1 image or more, found {batch}; use --batch 1")
    device = _resolve_device(device)
    names = _resolve_runtimes(runtimes, device)
    if tasks:
        with tempfile.TemporaryDirectory() as folder:
            parts = {
                write_part(file, tasks, Path(folder) / str(index)): file
                for index, file in enumerate(files)
            }
            timed = time_models(
                list(parts),
                runtimes=runtimes,
                batch=batch,
                device=device,
                threads=threads,
                seconds=seconds,
                tell=tell,
            )
        return replace(timed, rows=tuple(replace(r, file=parts[r.file]) for r in timed.rows))
    cards = [read_model(file).card for file in files]
    for file in files:
        if not set(names) & set(_runtimes_of(file)):
            raise UsageError(
                f"{file} runs in {', '.join(_runtimes_of(file))} alone, found runtime "
                f"{', '.join(names)} on {device}; leave --runtime and --device out, or name a "
                ".safetensors"
            )
    threads = threads or torch.get_num_threads()
    workers: list[Worker] = []
    grace = 0.0
    try:
        with _no_interrupts():
            # By runtime, so that networks that are compared take their turns one after another.
            for name in names:
                for file, card in zip(files, cards, strict=True):
                    if name in _runtimes_of(file):
                        workers.append(Worker(TimingJob(file, card, name, batch, device, threads)))
        with tempfile.TemporaryDirectory() as folder:
            for worker in workers:
                tell(f"loading {worker.job.file} in {worker.job.runtime}")
                worker.load(Path(folder))
            tell("measuring in turns")
            for _ in range(ROUNDS):
                for worker in workers:
                    worker.measure(seconds / ROUNDS)
        grace = GRACE
    finally:
        _end_all(workers, grace)
    timings = compare([worker.measurement for worker in workers])
    return Bench(batch, device, threads, timings)


def _resolve_device(name: str) -> str:
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UsageError(
            "device cuda needs a GPU and a torch built for it, found none; use --device cpu"
        )
    return ("cuda" if has_cuda else "cpu") if name == "auto" else name


def _resolve_runtimes(asked: Sequence[str], device: str) -> tuple[str, ...]:
    for name in asked:
        if name not in RUNTIMES:
            raise unknown("runtime", name, RUNTIMES)
    if device == "cpu":
        return tuple(asked or RUNTIMES)
    if "onnxruntime" in asked:
        raise UsageError(
            f"onnxruntime is timed on the processor, found device {device}; use --device cpu, or "
            "leave it out of --runtime"
        )
    return tuple(asked or (name for name in RUNTIMES if name != "onnxruntime"))


def _runtimes_of(file: Path) -> tuple[str, ...]:
    return ("onnxruntime",) if file.suffix == ".onnx" else tuple(RUNTIMES)


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
        memory_mib: As in `Figures`.
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


def _end_all(workers: Sequence[Worker], grace: float) -> None:
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
def _no_interrupts() -> Iterator[None]:
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


def compare(measurements: Sequence[Measurement]) -> tuple[Timing, ...]:
    """Compute each network's figures, and its ratio to the first network in the same runtime."""
    firsts: dict[str, float | None] = {}  # runtime -> median of its first network, seconds
    timings = []
    for measured in measurements:
        job = measured.job
        if measured.error:
            firsts.setdefault(job.runtime, None)
            timings.append(Timing(job.file, job.card, job.runtime, None, measured.error))
            continue
        median = float(np.median(measured.laps))
        first = firsts.setdefault(job.runtime, median)
        figures = Figures(
            median_ms=1e3 * median,
            p95_ms=1e3 * float(np.percentile(measured.laps, 95)),
            images_per_second=job.batch / median,
            memory_mib=measured.memory_mib,
            ratio=None if first is None else median / first,
        )
        timings.append(Timing(job.file, job.card, job.runtime, figures))
    return tuple(timings)
