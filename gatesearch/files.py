"""Write files atomically: a killed process leaves the complete new file or the old one."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write a temporary file in the same folder, sync it, rename it, and sync the folder.

    Args:
        path: The file; an existing one is replaced.
        data: Its whole content.

    Raises:
        OSError: The file cannot be written; an existing one stays, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a rename in a folder durable, on systems where folders can be opened and synced."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
