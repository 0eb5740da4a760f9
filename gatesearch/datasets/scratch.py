"""Folders that are written beside their place and moved into it when whole.

A scratch folder is named `.NAME.PURPOSE-PID-TOKEN`, where NAME is that of the folder to come. The
process that writes it holds a lock on it, which the operating system frees when the process ends;
so a scratch folder without a lock was left behind by a killed process.
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatesearch.datasets.exchange import exchange
from gatesearch.files import sync_folder

_PARTIAL, _REPLACED = "partial", "replaced"
_SCRATCH = re.compile(r"\.(?P<name>.+)\.(?P<purpose>partial|unpacked|replaced)-[0-9]+(-[0-9a-f]+)?")
# Age from which a scratch folder counts as left behind on file systems without locks, seconds.
_STALE_SECONDS = 24 * 3600.0


@contextmanager
def scratch_folder(folder: Path, *, purpose: str = _PARTIAL) -> Iterator[Path]:
    """Make an empty folder beside `folder`, which is removed when the block ends.

    Parent folders that had to be made for it are removed too if they stayed empty. What killed
    processes left in the parent folder is removed first.

    Args:
        folder: The folder to come.
        purpose: `partial` or `unpacked`.
    """
    made_parents = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    fresh, descriptor = _make(folder, purpose)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(descriptor)
        with suppress(OSError):
            for above in made_parents:
                above.rmdir()


def put_in_place(fresh: Path, folder: Path) -> None:
    """Give a scratch folder its final name; what had that name gets the scratch folder's.

    Where the system can, both names are swapped in one step. Otherwise there is no `folder` between
    two renames; if the process is killed there, `restore_replaced` puts the old one back.
    """
    if not os.path.lexists(folder):
        os.rename(fresh, folder)
    elif not exchange(fresh, folder):
        token = fresh.name.rpartition(f".{_PARTIAL}-")[2]
        aside = folder.with_name(f".{folder.name}.{_REPLACED}-{token}")
        with _lock(folder, wait=True):
            os.rename(folder, aside)
            try:
                os.rename(fresh, folder)
            except OSError:
                os.rename(aside, folder)
                raise
            os.rename(aside, fresh)
    sync_folder(folder.parent)


def restore_replaced(folder: Path) -> None:
    """Put back a folder that a killed process had moved aside to replace it."""
    if os.path.lexists(folder) or not folder.parent.is_dir():
        return
    for path, name, purpose in _scratch_folders(folder.parent):
        if (name, purpose) == (folder.name, _REPLACED):
            # A live process holds the lock for both renames, and `folder` is there after them.
            with suppress(OSError), _lock(path, wait=True):
                if not os.path.lexists(folder):
                    os.rename(path, folder)


def remove_leftovers(parent: Path) -> None:
    """Remove the scratch folders of killed processes, and put back what they had moved aside."""
    for path, name, purpose in _scratch_folders(parent):
        if purpose == _REPLACED:
            restore_replaced(parent / name)
        with suppress(OSError), _lock(path, wait=False) as left_behind:
            if left_behind:
                shutil.rmtree(path, ignore_errors=True)


def _scratch_folders(parent: Path) -> list[tuple[Path, str, str]]:
    """List the scratch folders in a folder: path, name of the folder to come, purpose."""
    with suppress(OSError):
        matches = ((path, _SCRATCH.fullmatch(path.name)) for path in parent.iterdir())
        return [(path, match["name"], match["purpose"]) for path, match in matches if match]
    return []


def _make(folder: Path, purpose: str) -> tuple[Path, int]:
    """Make a scratch folder and lock it; return its path and the descriptor of the lock."""
    while True:
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        fresh = folder.with_name(f".{folder.name}.{purpose}-{token}")
        fresh.mkdir()
        # Until it is locked, another process may take it for left behind and remove it.
        with suppress(FileNotFoundError):
            descriptor = _open_folder(fresh)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if fresh.exists():
                return fresh, descriptor
            os.close(descriptor)


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a folder for the time of the block.

    Args:
        folder: The folder.
        wait: Whether to wait for a process that holds the lock.

    Yields:
        Whether no other process holds the lock. On file systems without locks: whether the folder
        has not changed for a day.

    Raises:
        OSError: There is no such folder, or it is a link.
    """
    descriptor = _open_folder(folder)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except BlockingIOError:
            free = False
        except OSError:
            free = time.time() - os.fstat(descriptor).st_mtime > _STALE_SECONDS
        yield free
    finally:
        os.close(descriptor)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
