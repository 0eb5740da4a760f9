"""Measure how fast shipped networks run, several of them side by side.

Each network has its own process per runtime, so that no network affects the memory, threads or
compiler of another. The processes take turns and only one works at a time: if the machine slows
down meanwhile, all networks slow down alike and their ratios stay.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gatesearch.errors import UsageError, unknown
from gatesearch.export.parts import write_part
from gatesearch.export.reader import read_model
from gatesearch.export.runtimes import RUNTIMES
from gatesearch.export.shipped import Card
from gatesearch.export.timing_worker import (
    GRACE,
    Measurement,
    TimingJob,
    Worker,
    end_all,
    without_interrupts,
)

# Turns that each network takes.
ROUNDS = 5
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
        with without_interrupts():
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
        end_all(workers, grace)
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
