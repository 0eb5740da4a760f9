"""Check a store's folder before anything is written to it, and remove what killed processes left.

A name in the folder could be a symbolic link to a file elsewhere, or a pipe that never ends. So
nothing is opened unless it is a regular file, and a run refuses a folder with anything else in it.
"""

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from gatesearch.errors import StudyRefusedError
from gatesearch.files import FileRefusedError, open_regular, refuse_irregular

_FOLDERS = ("baselines", "starts", "trials", "controls")
# Patterns are compiled when they are first used, since a status must come at once.
# Files of a store and of its networks.
_FILES = (
    r"study\.db(-journal|-wal|-shm|\.backup|\.backup\.1)?|lock|(status|plugins)\.json|log\.jsonl"
    r"|predictions\.npz|(spec|attempts|result|model)\.json|events\.jsonl|stop|model\.safetensors"
    r"|checkpoint-\d+\.safetensors"
)
# A file that is being written has a dot before its name, and behind it the number of the process.
_UNFINISHED = (
    r"\.(study\.db(\.backup)?|(status|plugins)\.json|predictions\.npz|(spec|attempts|result)\.json|model\.\w+"
    r"|checkpoint-\d+\.safetensors)\.\d+(-journal|-wal|-shm)?"
    r"|\.study\.db\.upgrade(-journal)?|\.study\.db\.0\.1\.0"
)
_NETWORK_FOLDER = r"\d+|.+-seed\d+"


@contextlib.contextmanager
def refusing_files() -> Iterator[None]:
    """Refuse the store where a file of it is refused.

    Raises:
        StudyRefusedError: A file of the store is damaged, or no regular file.
    """
    try:
        yield
    except FileRefusedError as error:
        raise StudyRefusedError(str(error)) from error


def check_regular(path: Path) -> None:
    """Refuse a file of a store that is there and no regular file.

    Raises:
        StudyRefusedError: It is a link, folder, pipe, socket or device.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), refusing_files():
        refuse_irregular(path, path.lstat().st_mode)


def tidy(folder: Path) -> None:
    """Refuse a store's folder with links or pipes in it, and remove leftovers of killed processes.

    The store's folder itself may be a link. Files that a worker still writes are left: it holds the
    lock of its network's folder.

    Args:
        folder: The store's folder, which this process has locked.

    Raises:
        StudyRefusedError: Something in it is a link, pipe, socket or device, or a folder in the
            place of a file, or a file in the place of a folder. Nothing was removed.
        OSError: A folder cannot be read.
    """
    unfinished: dict[Path, list[Path]] = {}
    places = [folder]
    while places:
        place = places.pop()
        # A worker of a killed run may still move files.
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
            for entry in entries:
                path = place / entry.name
                if entry.is_dir(follow_symlinks=False):
                    if re.fullmatch(_FILES, entry.name):
                        refuse(path, "must be a regular file, found a folder")
                    places.append(path)
                elif entry.is_file(follow_symlinks=False):
                    if _is_folder(path, folder):
                        refuse(path, "must be a folder, found a file")
                    if re.fullmatch(_UNFINISHED, entry.name):
                        unfinished.setdefault(place, []).append(path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        check_regular(path)
    for place, paths in unfinished.items():
        with _locked(place, ours=place == folder) as locked:
            for path in paths if locked else ():
                path.unlink(missing_ok=True)


def refuse(path: Path, fault: str) -> None:
    """Refuse a store for a file or folder in it.

    Raises:
        StudyRefusedError: Always.
    """
    raise StudyRefusedError(f"{path} {fault}; move it away")


def _is_folder(path: Path, store: Path) -> bool:
    """Tell whether the path is that of a folder in a store, whatever is there."""
    if path.parent == store:
        return path.name in _FOLDERS
    within = path.parent.parent == store and path.parent.name in _FOLDERS
    return within and re.fullmatch(_NETWORK_FOLDER, path.name) is not None


@contextlib.contextmanager
def _locked(place: Path, *, ours: bool) -> Iterator[bool]:
    """Try to lock the folder of a network; tell whether no other process writes to it.

    Args:
        place: The folder.
        ours: Whether this process has locked the folder already.
    """
    try:
        descriptor = -1 if ours else open_regular(place / "lock", os.O_RDWR)
    except FileNotFoundError:  # No worker was ever there.
        descriptor = -1
    try:
        if descriptor >= 0:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def entries_of(folder: Path) -> list[Path]:
    """List the folders in a folder, and follow no links; empty where there is none.

    Raises:
        StudyRefusedError: The folder is a link.
    """
    if folder.is_symlink():
        refuse(folder, "must be a folder, found a symbolic link")
    try:
        with os.scandir(folder) as entries:
            return [folder / e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def exists(path: Path) -> bool:
    """Tell whether something is at a path; a link counts, wherever it leads."""
    return os.path.lexists(path)


def is_regular(path: Path) -> bool:
    """Tell whether a regular file is at a path, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
