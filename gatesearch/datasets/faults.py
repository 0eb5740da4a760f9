"""What is wrong with a user's files, gathered into one table instead of stopping at the first."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gatesearch.errors import DataError
from gatesearch.events import Emit, Warned

_MOST_LINES = 34  # of the rows of a table; with heads and cures it fills one screen
_FIRST = 5
_WIDEST = 200  # characters of a row


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file or with several.

    Attributes:
        kind: What is wrong in a few words, the same for all files with this fault.
        place: The file, line or list, as the user knows it.
        found: Rule and value found.
        cure: What mends it.
        count: Number of files or frames that this stands for.
        is_warning: Whether it was dealt with, so that the data can be used.
    """

    kind: str
    place: str
    found: str
    cure: str
    count: int = 1
    is_warning: bool = False

    def to_json(self) -> dict[str, object]:
        """Return all attributes as plain JSON values."""
        return asdict(self)


class FileFaultError(DataError):
    """A file that cannot be used; see `Fault`."""

    def __init__(self, kind: str, path: Path, found: str, cure: str) -> None:
        super().__init__(f"{path} {found}; {cure}")
        self.kind, self.path, self.found, self.cure = kind, path, found, cure

    def __reduce__(self) -> tuple[object, ...]:  # it comes from another process
        return type(self), (self.kind, self.path, self.found, self.cure)


class FaultyDataError(DataError):
    """Data with faults; the message is the table of all of them.

    Attributes:
        faults: All faults, and warnings.
    """

    def __init__(self, faults: Sequence[Fault], *, where: str) -> None:
        super().__init__(fault_table(faults, where=where))
        self.faults = tuple(faults)


def as_fault(error: DataError, path: Path, root: Path) -> Fault:
    """Turn the error of one file into a row of the table."""
    place = shown_path(path, root)
    if isinstance(error, FileFaultError):
        return Fault(error.kind, shown_path(error.path, root), error.found, error.cure)
    found, _, cure = str(error).removeprefix(str(path)).strip(" :").rpartition("; ")
    return Fault("unreadable", place, found or cure, cure if found else "get the file again")


def shown_path(path: Path, root: Path) -> str:
    """Spell a path relative to the study's folder where it lies below it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def first_names(names: Iterable[str]) -> str:
    """List the first five names, and say how many more there are.

    >>> first_names("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    listed = list(names)
    more = len(listed) - _FIRST
    return ", ".join(listed[:_FIRST]) + (f" and {more} more" if more > 0 else "")


def fault_table(faults: Sequence[Fault], *, where: str) -> str:
    """Lay faults out on one screen: a head per kind with the cure, and its files below.

    Every kind is shown, with as many of its files as there is room for.

    Args:
        faults: Faults and warnings.
        where: What they were found in, for the first line.
    """
    kinds: dict[tuple[bool, str], list[Fault]] = {}
    for fault in sorted(faults, key=lambda fault: fault.is_warning):
        kinds.setdefault((fault.is_warning, fault.kind), []).append(fault)
    room = _shares([len(group) for group in kinds.values()], max(_MOST_LINES - 2 * len(kinds), 0))
    wrong = sum(fault.count for fault in faults if not fault.is_warning)
    head = (
        f"{where} has {wrong} fault{'s' * (wrong != 1)}:"
        if wrong
        else f"{where} can be used; note:"
    )
    lines = [head]
    for ((is_warning, kind), group), shown in zip(kinds.items(), room, strict=True):
        count = sum(fault.count for fault in group)
        is_one_cure = len({fault.cure for fault in group}) == 1
        cure = f": {group[0].cure}" if is_one_cure else ""
        prefix = "warning: " if is_warning and wrong else ""
        lines.append(f"  {prefix}{kind} ({count}){cure}")
        for fault in sorted(group, key=lambda fault: fault.place)[:shown]:
            row = f"    {fault.place}: {fault.found}"
            lines.append(_shortened(row if is_one_cure else f"{row}; {fault.cure}"))
        if len(group) > shown:
            lines.append(f"    and {len(group) - shown} more")
    return "\n".join(lines)


def warn_of(faults: Iterable[Fault], emit: Emit) -> None:
    """Tell warnings, a line each."""
    for fault in faults:
        if fault.is_warning:
            emit(Warned(f"{fault.kind}: {fault.place}: {fault.found}; {fault.cure}"))


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """Divide lines among groups: one each first, the rest in turn to those that want more."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for index, most in enumerate(wanted):
            if given[index] < most and room > 0:
                given[index] += 1
                room -= 1
    return given


def _shortened(line: str) -> str:
    line = line.replace("\n", "\\n").replace("\r", "\\r")
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 3]}..."
