"""Show events on a terminal or in a pipe, and keep them in a log file."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import IO

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from gatesearch.cli.console import err, visible
from gatesearch.errors import DataError, StudyRefusedError
from gatesearch.events import Emit, Event, Log, NetworkTrained, Progress, Warned, to_json
from gatesearch.files import FileRefusedError, open_regular

# Seconds between two lines of one stage in a pipe.
INTERVAL = 10.0


@contextmanager
def emitter(log: Path | None = None) -> Iterator[Emit]:
    """Give the function that shows an event.

    A terminal shows one bar per stage with the time left, and below the bars the newest losses and
    validation metrics; a pipe gets timestamped lines. Both are standard error.

    Args:
        log: File that every event is appended to, as one JSON object with its time per line.

    Raises:
        DataError: The log cannot be written.
    """
    with ExitStack() as stack:
        show = stack.enter_context(_show_bars()) if err.is_terminal else show_lines()
        file: IO[bytes] | None = None
        held: list[bytes] = []

        def emit(event: Event) -> None:
            nonlocal file
            if log is not None:
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                held.append(json.dumps({"time": now, **to_json(event)}).encode() + b"\n")
                # Held until the run has made the folder: a refused one leaves nothing behind.
                if file is not None or log.parent.exists():
                    file = file or stack.enter_context(_open(log))
                    file.write(b"".join(held))
                    held.clear()
            show(event)

        yield emit


def _open(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_regular(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Unbuffered, so that a full disk raises once, at the line that did not fit.
        return os.fdopen(descriptor, "ab", buffering=0)
    except FileRefusedError as error:
        raise StudyRefusedError(str(error)) from error
    except OSError as error:
        raise DataError(f"cannot write {log} ({error.strerror}); choose another --out") from error


class TimeLeft:
    """Estimates the seconds left of each stage from its speed since its first event."""

    def __init__(self) -> None:
        # Stage -> time of its first event, and the units that were done then.
        self._firsts: dict[str, tuple[float, int]] = {}

    def seconds(self, event: Progress, now: float) -> float | None:
        """Seconds left; None while a stage has not moved since its first event, and at its end."""
        began, first = self._firsts.setdefault(event.stage, (now, event.done))
        if event.done >= event.total:
            del self._firsts[event.stage]
            return None
        if event.done <= first:
            return None
        return (now - began) * (event.total - event.done) / (event.done - first)


class _LeftColumn(ProgressColumn):
    """Counts down between two events, which can be an hour apart."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return Text("" if end is None else f"{_clock(max(0.0, end - time.monotonic()))} left")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _BarsAndValues(Bars):
    """One bar per stage, and below them one line of values per stage or network.

    A bar has no room for the values of several tasks on a narrow terminal, where a line of its own
    is wrapped between words.

    Attributes:
        lines: Stage or network -> its line.
    """

    lines: Mapping[str, str] = MappingProxyType({})

    def get_renderables(self) -> Iterator[RenderableType]:
        """See `rich.progress.Progress`."""
        yield from super().get_renderables()
        for line in self.lines.values():
            # The console wraps no lines, which is right for messages that are copied.
            yield Text(visible(line), style="dim", no_wrap=False, overflow="fold")


@contextmanager
def _show_bars() -> Iterator[Emit]:
    bars = _BarsAndValues(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[unit]}", markup=False),
        # rich's own column needs two steps, and forgets those of more than 30 s ago.
        _LeftColumn(table_column=Column(no_wrap=True)),
        console=err,
        transient=True,
    )
    stages: dict[str, TaskID] = {}
    time_left = TimeLeft()
    values: dict[str, dict[str, float]] = {}  # stage -> name -> newest value that is a number
    newest = ""  # validation metrics of the network that was measured last

    def show_values() -> None:
        lines = {stage: f"{stage}: {text}" for stage in values if (text := _values(values[stage]))}
        bars.lines = lines | ({"": newest} if newest else {})

    def show(event: Event) -> None:
        nonlocal newest
        if not isinstance(event, Progress):
            if isinstance(event, NetworkTrained) and event.metrics:
                network = event.message.partition(":")[0]
                newest = f"validation of {network}: {_pairs(event.metrics)}"
                show_values()
            _print_message(event)
            return
        now = time.monotonic()
        left = time_left.seconds(event, now)
        end = None if left is None else now + left
        if event.stage not in stages:
            stages[event.stage] = bars.add_task(
                event.stage, total=event.total, unit=event.unit, end=None
            )
        bars.update(stages[event.stage], completed=event.done, total=event.total, end=end)
        numbers = {name: value for name, value in event.values.items() if math.isfinite(value)}
        values.setdefault(event.stage, {}).update(numbers)
        if event.done >= event.total:
            bars.remove_task(stages.pop(event.stage))
            del values[event.stage]
        show_values()

    with bars:
        yield show


def show_lines(clock: Callable[[], float] = time.monotonic) -> Emit:
    """Give the function that prints events as lines, of a stage's progress one per `INTERVAL`.

    A stage's first and last progress are always printed.

    Args:
        clock: Gives the time, seconds.
    """
    time_left = TimeLeft()
    printed: dict[str, float] = {}  # stage -> when its last line was printed

    def show(event: Event) -> None:
        if not isinstance(event, Progress):
            _print_message(event)
            return
        now = clock()
        seconds = time_left.seconds(event, now)
        finished = event.done >= event.total
        if not finished and now - printed.get(event.stage, -INTERVAL) < INTERVAL:
            return
        printed[event.stage] = now
        left = "" if seconds is None else f", {_clock(seconds)} left"
        values = _values(event.values)
        _print(
            f"{event.stage}: {event.done}/{event.total} {event.unit}{left}"
            + (f", {values}" if values else "")
        )
        if finished:
            del printed[event.stage]

    return show


def _print_message(event: Log | Warned | NetworkTrained) -> None:
    if isinstance(event, Warned):
        _print(f"warning: {event.message}", style="yellow")
    else:
        _print(event.message)


def _print(text: str, *, style: str = "") -> None:
    stamp = "" if err.is_terminal else f"{datetime.now():%H:%M:%S} "
    err.print(Text(stamp + visible(text), style=style), soft_wrap=True)
    sys.stderr.flush()


def _values(values: Mapping[str, float]) -> str:
    """`loss depth 0.5 edges 0.1, Δ_MTL +1.20 %`; the log file has the other values too."""
    losses = {
        name.removeprefix("loss."): value
        for name, value in values.items()
        if name.startswith("loss.")
    }
    parts = [f"loss {_pairs(losses)}"] if losses else []
    gain = values.get("delta_mtl", math.nan)  # of a trial that early stopping has judged
    if math.isfinite(gain):
        parts.append(f"Δ_MTL {gain:+.2f} %")
    return ", ".join(parts)


def _pairs(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in values.items())
