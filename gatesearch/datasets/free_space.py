"""Looks at the free space of a disk before much is written to it."""

import shutil
from pathlib import Path

from gatesearch.errors import DataError

# Bytes that are left free for others, and for what files take beyond their content.
_RESERVE = 64 * 10**6


def need_space(folder: Path, size: int) -> None:
    """Refuse to write more to a disk than is free on it.

    Args:
        folder: A folder on the disk.
        size: Bytes that are about to be written.

    Raises:
        DataError: Fewer are free; says both figures.
    """
    free = shutil.disk_usage(folder).free
    if size + _RESERVE > free:
        raise DataError(
            f"cannot write {folder.parent}: {_gigabytes(size)} are needed, and "
            f"{_gigabytes(_RESERVE)} to spare, found {_gigabytes(free)} free; free space there, or "
            "name another folder with --data"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
