"""How fast shipped networks run, several of them side by side.

Every network lives in a process of its own for each runtime, so that none finds memory, threads or
a compiler as another left them. The processes are asked in turns and only one works at a time: a
machine that grows slower slows all of them, and ratios stay.
"""

import logging
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from gatesearch.errors import UsageError, unknown
from gatesearch.export.formats import write_network
from gatesearch.export.reader import read_model
from gatesearch.export.runtimes import RUNTIMES, Load, Run, said
from gatesearch.export.shipped import Card
from gatesearch.pruning import load_compact

ROUNDS = 5
WARM_UP = 3
# Seconds for a worker to end by itself; killed, torch's compiler leaves semaphores behind.
GRACE = 5.0
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Figures:
    """What a network takes in a runtime.

    Attributes:
        median_ms: Latency of a batch, milliseconds.
        p95_ms: Its 95th percentile, milliseconds.
        images_per_second: Batch / median.
        memory_mib: Growth of the process's peak memory since before the network was loaded, MiB; of
            torch.compile with what compiling takes. On cuda the peak of allocated device memory.
        ratio: Median over that of the first network in the same runtime; none where that failed.
    """

    median_ms: float
    p95_ms: float
    images_per_second: float
    memory_mib: float
    ratio: float | None


@dataclass(frozen=True)
class Timing:
    """A network in a runtime.

    Attributes:
        file: Where it lies.
        card: What it is, with its cost for one image.
        runtime: A name in `RUNTIMES`.
        figures: None where the runtime failed.
        error: Why it failed, or an empty string.
    """

    file: Path
    card: Card
    runtime: str
    figures: Figures | None
    error: str = ""


@dataclass(frozen=True)
class Bench:
    """Networks side by side.

    Attributes:
        batch: Images a run, each of its card's size.
        device: `cpu` or `cuda`.
        threads: Of the processor, that an operator may use.
        rows: By runtime, within it in the order of the files.
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
    tell: Callable[[str], None] = lambda said: None,
) -> Bench:
    """Time networks that `gatesearch export` wrote; a runtime that fails is a row with the error.

    Args:
        files: .safetensors run in every runtime, .onnx in onnxruntime.
        runtimes: Names in `RUNTIMES`; all that work on the device by default.
        batch: Images a run.
        device: One of `DEVICES`; `auto` is cuda where there is one.
        threads: Of the processor; as many as torch takes by default.
        seconds: Of measuring, for each network and runtime.
        tell: Is told what goes on; compiling a network can take minutes.

    Raises:
        DataError: A file is missing.
        UsageError: A file cannot be read, or run as asked; a name or number that cannot be.
    """
    if batch < 1:
        raise UsageError(f"a batch must hold 1 image or more, found {batch}; use --batch 1")
    device = _device(device)
    names = _names(runtimes, device)
    cards = [read_model(file).card for file in files]
    for file in files:
        if not set(names) & set(_able(file)):
            raise UsageError(
                f"{file} runs in {', '.join(_able(file))} alone, found runtime {', '.join(names)} "
                f"on {device}; leave --runtime and --device out, or name a .safetensors"
            )
    threads = threads or torch.get_num_threads()
    workers: list[_Worker] = []
    grace = 0.0
    try:
        with _no_interrupts():
            # Networks that are compared take turns one after the other.
            for name in names:
                for file, card in zip(files, cards, strict=True):
                    if name in _able(file):
                        workers.append(_Worker(_Job(file, card, name, batch, device, threads)))
        with tempfile.TemporaryDirectory() as folder:
            for worker in workers:
                tell(f"loading {worker.job.file} in {worker.job.runtime}")
                worker.load(Path(folder))
            tell("measuring in turns")
            for _ in range(ROUNDS):
                for worker in workers:
                    worker.ask(seconds / ROUNDS)
        grace = GRACE
    finally:
        _end(workers, grace)
    return Bench(batch, device, threads, tuple(_rows(workers)))


def _device(name: str) -> str:
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError(
            "device cuda needs a GPU and a torch built for it, found none; use --device cpu"
        )
    return ("cuda" if there else "cpu") if name == "auto" else name


def _names(asked: Sequence[str], device: str) -> tuple[str, ...]:
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


def _able(file: Path) -> tuple[str, ...]:
    return ("onnxruntime",) if file.suffix == ".onnx" else tuple(RUNTIMES)


@dataclass(frozen=True)
class _Job:
    """What a worker runs.

    Attributes:
        file: .safetensors or .onnx.
        card: The network's.
        runtime: A name in `RUNTIMES`.
        batch: Images a run.
        device: `cpu` or `cuda`.
        threads: Of the processor.
    """

    file: Path
    card: Card
    runtime: str
    batch: int
    device: str
    threads: int


class _Worker:
    """A process for one job, and what came back.

    Attributes:
        job: The job.
        laps: Seconds of each run.
        memory_mib: As in `Figures`.
        error: Why there will be no more, or an empty string.
    """

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.laps: list[float] = []
        self.memory_mib = 0.0
        self.error = ""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, RUNTIMES[job.runtime], job), daemon=True
        )
        self._process.start()
        # While this end is open here, the death of the process does not end a `recv`.
        theirs.close()

    def load(self, folder: Path) -> None:
        """Load and warm up; what must be written for the runtime goes into the folder."""
        try:
            file = _source(self.job, folder)
        except Exception as error:  # of torch's exporter, which have no common base
            self.error = said(error)
        else:
            self.ask(file)

    def ask(self, message: Path | float) -> None:
        """Have the process load a file, or run for seconds and once at least."""
        if self.error:
            return
        try:
            self._pipe.send(message)
            reply = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(GRACE)
            self.error = (
                f"its process ended with code {self._process.exitcode}; -9 is mostly want of "
                "memory: use a smaller --batch"
            )
            return
        if isinstance(reply, str):
            self.error = reply
        else:
            laps, self.memory_mib = reply
            self.laps += laps

    def hang_up(self) -> None:
        """Let the process end when it has done what it was asked."""
        self._pipe.close()

    def end(self, wait: float) -> None:
        """End the process, by force if it does not by itself in so many seconds."""
        self._process.join(wait)
        self._process.kill()
        self._process.join()


def _source(job: _Job, folder: Path) -> Path:
    if job.runtime != "onnxruntime" or job.file.suffix == ".onnx":
        return job.file
    # Not in the worker, whose memory is measured.
    written = Path(tempfile.mkdtemp(dir=folder)) / "network.onnx"
    write_network(load_compact(job.file.with_suffix("")), job.card, written, form="onnx")
    return written


def _end(workers: Sequence[_Worker], grace: float) -> None:
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + grace
    for worker in workers:
        worker.end(max(0.0, deadline - time.monotonic()))


def _work(pipe: Connection, runtime: Callable[[str], Load], job: _Job) -> None:
    """Receive a file; then send (seconds of each run, peak MiB) and receive for how long to run."""
    logging.disable(logging.WARNING)
    try:
        file = pipe.recv()
        torch.set_num_threads(job.threads)
        shape = (job.batch, 3, *job.card.size)
        images = np.random.default_rng(0).random(shape, np.float32) * 255
        load = runtime(job.device)
        before = _peak_mib(afresh=True)
        run = load(file, tuple(job.card.tasks), images)
        for _ in range(WARM_UP):
            run()
        laps: list[float] = []
        while True:
            if job.device == "cuda":
                pipe.send((laps, torch.cuda.max_memory_allocated() / 2**20))
            else:
                pipe.send((laps, _peak_mib() - before))
            laps = _laps(run, pipe.recv())
    except EOFError:  # hung up
        return
    except Exception as error:  # whatever a runtime raises is its row's error
        with suppress(OSError):
            pipe.send(said(error))


def _laps(run: Run, seconds: float) -> list[float]:
    # The caches are full of what ran in between.
    run()
    laps: list[float] = []
    end = time.perf_counter() + seconds
    while not laps or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        laps.append(time.perf_counter() - start)
    return laps


def _peak_mib(*, afresh: bool = False) -> float:
    """Peak resident memory of this process since the last call that asked for a fresh start."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux starts a process with the peak of its parent.
        if afresh:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(fields["VmHWM"].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C, which a terminal sends to them too.

    This process ends them, and there is one message instead of one traceback each.
    """
    # It lets interrupts through once it is started.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rows(workers: Sequence[_Worker]) -> Iterator[Timing]:
    firsts: dict[str, float | None] = {}
    for worker in workers:
        job = worker.job
        if worker.error:
            firsts.setdefault(job.runtime, None)
            yield Timing(job.file, job.card, job.runtime, None, worker.error)
            continue
        median = float(np.median(worker.laps))
        first = firsts.setdefault(job.runtime, median)
        figures = Figures(
            median_ms=1e3 * median,
            p95_ms=1e3 * float(np.percentile(worker.laps, 95)),
            images_per_second=job.batch / median,
            memory_mib=worker.memory_mib,
            ratio=None if first is None else median / first,
        )
        yield Timing(job.file, job.card, job.runtime, figures)
