"""A measured figure with its bar, and how ratios are measured."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: The figure, in `unit`.
        bar: Highest value allowed; None where the figure is only reported.
        unit: `x`, `%`, `ms`, `s`, `min` or `GiB`.
        detail: The measurements behind the figure.
    """

    name: str
    value: float
    bar: float | None
    unit: str = "x"
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        return None if self.bar is None else self.value <= self.bar

    def line(self) -> str:
        """Format the figure as a line of the table."""
        bar = "-" if self.bar is None else f"{self.bar:.4g} {self.unit}"
        verdict = {True: "met", False: "MISSED", None: "-"}[self.met]
        return (
            f"{self.name:42} {self.value:>7.3f} {self.unit:2} {bar:>10}  {verdict:7}  {self.detail}"
        )


def seconds(work: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, and of what it launched on a GPU; by default wall-clock time."""
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Median of the ratios ours / theirs of neighbouring calls, and each side's median seconds.

    The order alternates from round to round, so that a drift of the machine's speed cancels out.
    `clock` is wall-clock time, or `time.process_time` where other processes keep the cores busy.
    """
    ours(), theirs()
    pairs = []
    for i in range(rounds):
        if i % 2:
            second = seconds(theirs, clock=clock)
            pairs.append((seconds(ours, clock=clock), second))
        else:
            pairs.append((seconds(ours, clock=clock), seconds(theirs, clock=clock)))
    ratio = statistics.median(a / b for a, b in pairs)
    return ratio, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
