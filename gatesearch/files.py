"""Files that are whole or as they were, whenever the process is killed."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write aside in the same folder, sync, rename, sync the folder.

    Args:
        path: The file; one that exists is replaced.
        data: All of its content.

    Raises:
        OSError: It cannot be written; what was there stays, and nothing partial is left.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    # Only where folders open as files; elsewhere a rename is as durable as it gets.
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
