"""Frames that cannot be made: all of them are found before anything is given up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gatesearch.datasets.frame_pool import call_for_each
from gatesearch.errors import DataError, GatesearchError
from gatesearch.events import Emit, Progress

# Faulty frames after which no more are looked for, and those that an error shows.
MOST_FAULTS = 100
_MOST_SHOWN = 20


@dataclass(frozen=True)
class FrameFault:
    """Why a frame cannot be made.

    Attributes:
        number: Its place among the frames.
        id: Its id.
        fault: What it is, with the name of its file or sample, rule, value found and cure.
    """

    number: int
    id: str
    fault: str


class FaultyFramesError(DataError):
    """Frames that cannot be made; its text has a line for each if there are several.

    Attributes:
        faults: All that were found, up to `MOST_FAULTS`.
    """

    def __init__(self, faults: Sequence[FrameFault], frames: int) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: fault.number))
        if len(self.faults) == 1:
            super().__init__(self.faults[0].fault)
            return
        count = len(self.faults)
        found = f"{count} or more" if count >= MOST_FAULTS else str(count)
        rows = [f"  {fault.fault}" for fault in self.faults[:_MOST_SHOWN]]
        more = [f"  and {count - _MOST_SHOWN} more"] * (count > _MOST_SHOWN)
        super().__init__("\n".join([f"{found} of {frames} frames are faulty:", *rows, *more]))


def faults(
    frame: Callable[[int], object],
    ids: Sequence[str],
    *,
    processes: int | None = None,
    stage: str = "data check",
    emit: Emit,
) -> list[FrameFault]:
    """Make frames without keeping them, and list those that cannot be made.

    Args:
        frame: Makes the frame of a number; raises GatesearchError where it cannot.
        ids: One id per frame.
        processes: See `call_for_each`.
        stage: Name of the stage in `Progress` events.
        emit: Receives these, in frames.

    Returns:
        Up to `MOST_FAULTS` faults, by number.
    """
    found = []
    numbers = range(len(ids))
    calls = call_for_each(_Trial(frame, ids), numbers, processes=processes)
    for done, fault in enumerate(calls, start=1):
        if fault is not None:
            found.append(fault)
        message = f"{done} of {len(ids)} frames read"
        emit(Progress(stage, done, len(ids), "frames", message))
        if len(found) == MOST_FAULTS:
            break
    return sorted(found, key=lambda fault: fault.number)


@dataclass(frozen=True)
class _Trial:
    """Makes frames and keeps none."""

    frame: Callable[[int], Any]
    ids: Sequence[str]

    def name(self, number: int) -> str:
        return self.ids[number]

    def __call__(self, number: int) -> FrameFault | None:
        try:
            self.frame(number)
        except GatesearchError as error:
            return FrameFault(number, self.ids[number], str(error))
        return None
