"""Folders that are written beside their place and moved into it when whole.

A scratch folder is named `.NAME.PURPOSE-PID-TOKEN`, where NAME is that of the folder to come. The
process that writes it holds a lock on it, which the operating system frees when the process ends;
so a scratch folder without a lock was left behind by a killed process.

An unfinished folder, `.NAME.unfinished-KEY`, keeps what a killed process had made of a folder, so
that another process goes on there. KEY is a digest of everything that its content depends on.
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
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.unfinished-(?P<key>[0-9a-f]{32})")
# Seconds after which an unfinished folder that no process goes on with is removed.
_KEPT_SECONDS = 7 * 24 * 3600.0
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


@contextmanager
def unfinished_folder(folder: Path, key: str) -> Iterator[Path | None]:
    """Make or find the folder in which the content of `folder` is made, and which outlives a kill.

    It is removed when the block ends, with or without an error, but for an interruption
    (KeyboardInterrupt and the like), after which the same call goes on. Those of other keys are
    removed first, as they belong to other content.

    Args:
        folder: The folder to come.
        key: Digest of all that its content depends on, 32 hexadecimal digits.

    Yields:
        The folder; None where another process works in it, or if the file system has no locks.
    """
    for path, name, found in _unfinished_folders(folder.parent):
        if name == folder.name and found != key:
            _remove_unlocked(path)
    path = folder.with_name(f".{folder.name}.unfinished-{key}")
    path.mkdir(exist_ok=True)
    descriptor = _open_folder(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            usable = path.exists()  # another process may have removed it before it was locked
        except OSError:
            usable = False
        if not usable:
            yield None
            return
        os.utime(path)
        try:
            yield path
        except Exception:
            shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


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
    """Remove the scratch folders of killed processes, and put back what they had moved aside.

    Unfinished folders are removed a week after a process last began to work in them.
    """
    for path, name, purpose in _scratch_folders(parent):
        if purpose == _REPLACED:
            restore_replaced(parent / name)
        _remove_unlocked(path)
    for path, _, _ in _unfinished_folders(parent):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > _KEPT_SECONDS:
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Remove a folder unless another process works in it."""
    with suppress(OSError), _lock(path, wait=False) as free:
        if free:
            shutil.rmtree(path, ignore_errors=True)


def _unfinished_folders(parent: Path) -> list[tuple[Path, str, str]]:
    """List the unfinished folders in a folder: path, name of the folder to come, key."""
    with suppress(OSError):
        matches = ((path, _UNFINISHED.fullmatch(path.name)) for path in parent.iterdir())
        return [(path, match["name"], match["key"]) for path, match in matches if match]
    return []


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
