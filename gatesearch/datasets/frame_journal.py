"""Which frames of an unfinished pack are written: a line of JSON for each, appended as it is done.

A killed process may leave a last line that is cut short; the machine may have lost what it had not
yet written to the disk. So each line carries the CRC-32 of its frame, and the frame counts as
written only if it still has it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gatesearch.datasets.pack_manifest import SplitName
from gatesearch.errors import DataError
from gatesearch.files import MIB, open_regular, read_bytes

# Of a million frames: some 60 MiB.
_LARGEST_JOURNAL = 512 * MIB

Facts = Mapping[str, int | float | str | bool]


@dataclass(frozen=True)
class WrittenFrame:
    """A frame that is in the files of its split.

    Attributes:
        split: The split.
        index: Place in the split.
        checksum: CRC-32 of its bytes.
        labelled: Whether it has labels, by field of labels.
        facts: What else is known of it, for the notes of the pack.
    """

    split: SplitName
    index: int
    checksum: int
    labelled: tuple[bool, ...]
    facts: Facts


class Journal:
    """The journal in a file, which is made where it is missing.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, frame: WrittenFrame) -> None:
        """Append a frame."""
        values = [frame.split, frame.index, frame.checksum, frame.labelled, frame.facts]
        # The line break comes first, so that a line cut short spoils no other.
        os.write(self._descriptor, ("\n" + json.dumps(values)).encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_journal(path: Path) -> list[WrittenFrame]:
    """List the frames of a journal, as far as it can be read; the last line of a frame counts."""
    try:
        lines = read_bytes(path, limit=_LARGEST_JOURNAL).split(b"\n")
    except (OSError, DataError):
        return []
    frames = {}
    for line in lines:
        frame = _parse(line)
        if frame is not None:
            frames[frame.split, frame.index] = frame
    return list(frames.values())


def _parse(line: bytes) -> WrittenFrame | None:
    try:
        split, index, checksum, labelled, facts = json.loads(line)
        if not (
            isinstance(split, str) and type(index) is int and type(checksum) is int
            and isinstance(labelled, list) and all(type(value) is bool for value in labelled)
            and isinstance(facts, dict)
        ):  # fmt: skip
            return None
    except (ValueError, TypeError, RecursionError):
        return None
    return WrittenFrame(split, index, checksum, tuple(labelled), facts)  # type: ignore[arg-type]
