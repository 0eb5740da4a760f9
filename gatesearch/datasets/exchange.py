"""Swaps two folders in one step, where the operating system can."""

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD = -100  # Linux: names are relative to the working folder
_RENAME_EXCHANGE = 2  # Linux, linux/fs.h
_RENAME_SWAP = 2  # macOS, sys/stdio.h


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders of one file system, so that both exist at every moment.

    Returns:
        Whether they were swapped. If the system or its file system cannot, nothing has changed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        answer = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        answer = libc.renamex_np(names[0], names[1], _RENAME_SWAP)
    else:
        return False
    return bool(answer == 0)
