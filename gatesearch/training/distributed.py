"""Several processes, each with a device of its own, that train one network together.

Every process draws the same batches and augments them in the same way, learns from its slice of
each, and steps with the mean gradient. So the step is that of one process on the whole batch, but
for batch norm, which sees the slices.

Gradients are averaged after the backward pass, not during it as by DistributedDataParallel. So if
one process runs out of memory all of them can repeat the step, and a penalty may read parameters
outside the forward pass.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar, TypeVarTuple, cast

import torch
from torch import Tensor, nn

from gatesearch.errors import GatesearchError, UsageError
from gatesearch.stopping import Stop, heed, never
from gatesearch.training.checkpoint import Preempted
from gatesearch.training.split_data import Batch

_TIMEOUT = timedelta(minutes=30)  # how long a process waits for the others
_POLL_SECONDS = 0.2
_FAILURE, _MEETING = "failure", "meeting"  # files

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")


class RankError(GatesearchError):
    """One of the processes that train a network together failed, which ended all of them."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that train together; by default it is the only one.

    Attributes:
        rank: Number of this process from 0; only 0 writes files.
        size: How many processes there are.
        asked: Returns True once this process was asked to stop.
    """

    rank: int = 0
    size: int = 1
    asked: Stop = never

    def slice(self, batch: Batch) -> Batch:
        """Take this process's part of a batch, whose frames are a multiple of `size`."""
        return {name: tensor.chunk(self.size)[self.rank] for name, tensor in batch.items()}

    def any(self, flag: bool) -> bool:
        """Return whether the flag is True in any process."""
        share = torch.tensor(float(flag))
        self.average([share])
        return bool(share > 0)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors with their means over the processes."""
        self._exchange(tensors, _mean)

    def broadcast(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        self._exchange([*model.parameters(), *model.buffers()], _of_rank_0)

    @torch.no_grad()
    def _exchange(self, tensors: Iterable[Tensor], exchange: Callable[[Tensor], Tensor]) -> None:
        """Replace tensors with what `exchange` makes of them, one flat tensor per type."""
        if self.size == 1:
            return
        from accelerate import PartialState

        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        device = PartialState().device
        for alike in by_dtype.values():
            flat = exchange(torch.cat([tensor.reshape(-1) for tensor in alike]).to(device))
            for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def _mean(flat: Tensor) -> Tensor:
    from accelerate.utils import reduce

    return reduce(flat, "mean")


def _of_rank_0(flat: Tensor) -> Tensor:
    from accelerate.utils import broadcast

    return broadcast(flat)


def launch(
    size: int,
    function: Callable[[Ranks, *Arguments], Returned],
    *args: *Arguments,
    stop: Stop = never,
) -> Returned:
    """Call `function(ranks, *args)` in several processes.

    Each has a CUDA device of its own if the machine has any, else its share of the processor.

    Args:
        size: How many processes.
        function: A function that can be imported by its name.
        args: Arguments after `ranks`, which can be pickled.
        stop: Returns True when all processes are to be asked to stop (`Ranks.asked`), by SIGTERM.

    Returns:
        What rank 0 returned.

    Raises:
        UsageError: accelerate is missing, or there are fewer devices than processes.
        RankError: A process failed; says which and how. All others have ended.
        Preempted: The training was asked to stop.
    """
    _check_requirements(size)
    spawn = multiprocessing.get_context("spawn")
    results, ending = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="gatesearch-") as name, results, ending:
        folder = Path(name)
        processes: list[BaseProcess] = [
            spawn.Process(target=_run, args=(Ranks(rank, size), folder, ending, function, args))
            for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            outcome = _wait(processes, results, stop)
            failed = {rank: p.exitcode for rank, p in enumerate(processes) if p.exitcode}
        finally:
            _end(processes)
        if failed:
            raise RankError(_describe_failure(failed, folder, size))
    returned, preempted = cast(tuple[Returned, bool], outcome)
    if preempted:
        raise Preempted
    return returned


def _wait(processes: Sequence[BaseProcess], results: Connection, stop: Stop) -> object:
    """Wait until all processes have ended or one has failed; return what rank 0 sent."""
    running, asked = list(processes), False
    sent: object = None
    while running and not any(process.exitcode for process in processes):
        ready = wait([results, *(p.sentinel for p in running)], timeout=_POLL_SECONDS)
        if results in ready:
            sent = results.recv()
        running = [process for process in running if process.exitcode is None]
        if not asked and stop():
            asked = True
            for process in running:
                process.terminate()
    return results.recv() if results.poll() else sent


def _check_requirements(size: int) -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "training on several devices needs accelerate: pip install 'gatesearch[distributed]'"
        ) from error
    devices = torch.cuda.device_count()
    if 0 < devices < size:
        raise UsageError(f"{size} processes need a CUDA device each, found {devices}; ask for less")


def _run(
    ranks: Ranks,
    folder: Path,
    ending: Connection,
    function: Callable[[Ranks, *Arguments], object],
    args: tuple[*Arguments],
) -> None:
    """Call the function in a new process, send rank 0's result, and end the process."""
    ranks = replace(ranks, asked=heed())
    result, preempted, code = None, False, 1
    try:
        _meet(ranks, folder)
        try:
            result = function(ranks, *args)
        except Preempted:
            preempted = True
        if ranks.rank == 0:
            ending.send((result, preempted))
        torch.distributed.destroy_process_group()
        code = 0
    except BaseException:
        # Only the first to fail writes why; the others fail because it is gone.
        with contextlib.suppress(FileExistsError), (folder / _FAILURE).open("xb") as file:
            file.write(f"{ranks.rank}\n{traceback.format_exc()}".encode(errors="replace"))
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own exit may abort in a thread of gloo that frees a tensor late, and finished work
    # would count as failed.
    os._exit(code)


def _meet(ranks: Ranks, folder: Path) -> None:
    """Wait for the other processes, and connect with them."""
    from accelerate import PartialState

    on_processor = not torch.cuda.is_available()
    if on_processor:
        threads = max(1, torch.get_num_threads() // ranks.size)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)
    os.environ |= {
        "RANK": str(ranks.rank),
        "LOCAL_RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.size),
        "LOCAL_WORLD_SIZE": str(ranks.size),
    }
    # By its path: as a part of a URL, some characters of a folder's name would be misread.
    file = str(folder / _MEETING)
    store = torch.distributed.FileStore(file, ranks.size)  # type: ignore[attr-defined]
    store.set_timeout(_TIMEOUT)
    PartialState(
        cpu=on_processor,
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=_TIMEOUT,
    )


def _end(processes: Sequence[BaseProcess]) -> None:
    """Kill the processes that are left."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()


def _describe_failure(failed: dict[int, int], folder: Path, size: int) -> str:
    """Say which process failed and how.

    Args:
        failed: Rank -> exit code.
        folder: Where the first process that raised an error wrote it.
        size: How many processes there were.
    """
    for rank, code in failed.items():
        if code < 0:
            return f"rank {rank} of {size} was killed by {signal.Signals(-code).name}"
        if code != 1:  # that of one that raised
            return f"rank {rank} of {size} exited with {code}"
    report = folder / _FAILURE
    # The process that wrote it may have been ended before it was done.
    if not report.exists() or b"\n" not in report.read_bytes():
        return "; ".join(f"rank {rank} of {size} exited with {c}" for rank, c in failed.items())
    first, text = report.read_text(encoding="utf-8").split("\n", 1)
    return f"rank {first} of {size} failed: {text.strip().splitlines()[-1]}\n{text}"
