"""What is going on, told to a terminal, a pipe and a log file."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from gatesearch.cli.console import err
from gatesearch.errors import DataError

Emit = Callable[[dict[str, Any]], None]

# Seconds between two lines of one stage in a pipe.
INTERVAL = 10.0


@contextmanager
def emitter(log: Path | None = None) -> Iterator[Emit]:
    """Give the function that tells an event.

    A terminal shows one bar a stage with the time left; a pipe gets timestamped lines. Both are
    standard error.

    Args:
        log: File that every event is appended to, one JSON object with its time a line.

    Raises:
        DataError: The log cannot be written.
    """
    with ExitStack() as stack:
        shown = stack.enter_context(_bars()) if err.is_terminal else _lines()
        file: IO[bytes] | None = None

        def emit(event: dict[str, Any]) -> None:
            nonlocal file
            if log is not None:
                # Opened by the first event, so that a refused run leaves nothing behind.
                file = file or stack.enter_context(_open(log))
                entry = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), **event}
                file.write(json.dumps(entry, default=_plain).encode() + b"\n")
            shown(event)

        yield emit


def _open(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer a full disk is told once, by the line that did not fit.
        return log.open("ab", buffering=0)
    except OSError as error:
        raise DataError(f"cannot write {log} ({error.strerror}); choose another --out") from error


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's own, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


class _Pace:
    """Seconds left of each stage, from its own speed since it was first heard of."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}

    def left(self, event: Mapping[str, Any], now: float) -> float | None:
        """Seconds, or None before a stage has moved and behind its end."""
        stage, done, total = event["stage"], event["done"], event["total"]
        began, first = self._began.setdefault(stage, (now, done))
        if done >= total:
            del self._began[stage]
            return None
        return (now - began) * (total - done) / (done - first) if done > first else None


class _LeftColumn(ProgressColumn):
    """Counts down between two events, which can be an hour apart."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return Text("" if end is None else f"{_clock(max(0.0, end - time.monotonic()))} left")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def _bars() -> Iterator[Emit]:
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        # rich's own needs two steps, and forgets those of more than 30 s ago.
        _LeftColumn(),
        console=err,
        transient=True,
    )
    stages: dict[str, TaskID] = {}
    pace = _Pace()

    def show(event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            _message(event)
            return
        stage, done, total, now = event["stage"], event["done"], event["total"], time.monotonic()
        left = pace.left(event, now)
        end = None if left is None else now + left
        if stage not in stages:
            stages[stage] = progress.add_task(stage, total=total, unit=event["unit"], end=None)
        progress.update(stages[stage], completed=done, total=total, end=end)
        if done >= total:
            progress.remove_task(stages.pop(stage))

    with progress:
        yield show


def _lines(clock: Callable[[], float] = time.monotonic) -> Emit:
    pace = _Pace()
    told: dict[str, float] = {}

    def show(event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            _message(event)
            return
        stage, done, total, now = event["stage"], event["done"], event["total"], clock()
        seconds = pace.left(event, now)
        finished = done >= total
        if not finished and now - told.get(stage, -INTERVAL) < INTERVAL:
            return
        told[stage] = now
        left = "" if seconds is None else f", {_clock(seconds)} left"
        _say(f"{stage}: {done}/{total} {event['unit']}{left}{_losses(event)}")
        if finished:
            del told[stage]

    return show


def _message(event: Mapping[str, Any]) -> None:
    if event["event"] == "warning":
        _say(f"warning: {event['message']}", style="yellow")
    else:
        _say(event["message"])


def _say(text: str, *, style: str = "") -> None:
    stamp = "" if err.is_terminal else f"{datetime.now():%H:%M:%S} "
    err.print(Text(stamp + text, style=style), soft_wrap=True)
    sys.stderr.flush()


def _losses(event: Mapping[str, Any]) -> str:
    """`, loss depth 0.5 edges 0.1`; the log file has the other numbers too."""
    found = {key: value for key, value in event.items() if key.startswith("loss.")}
    told = [f"{key.removeprefix('loss.')} {value:.3g}" for key, value in found.items()]
    return f", loss {' '.join(told)}" if told else ""
