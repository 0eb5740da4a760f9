"""Read and write files safely: whole or not at all, without following links, within bounds.

A folder that others can write to may hold anything under the name of an expected file: a link to
another file, a named pipe that never ends, gigabytes, JSON nested a million deep. So what is read
from disk is opened here, and refused unless it is a regular file of a bounded size.
"""

import functools
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gatesearch.errors import DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

MIB = 2**20
# Largest table (JSON, TOML, list) that is read. A result of 1,000 epochs takes about .2 MiB.
LARGEST_TABLE = 64 * MIB


class FileRefusedError(DataError):
    """A file that is damaged or unsafe to read.

    Attributes:
        path: The file.
        fault: What is wrong with it, as the end of a sentence that begins with its path.
    """

    def __init__(self, path: Path, fault: str) -> None:
        fault = " ".join(fault.split())  # it may quote what the file holds, such as line breaks
        super().__init__(f"{path} {fault}")
        self.path, self.fault = path, fault


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file without following a symbolic link in its place and without waiting.

    Args:
        path: The file. Links in the names of its folders are followed.
        flags: As for `os.open`; `os.O_TRUNC` is not allowed, since it would act before the check.
        mode: Permissions of a file that is made.

    Returns:
        Its descriptor, which the caller closes.

    Raises:
        FileRefusedError: It is a link, folder, pipe, socket or device. It is not changed.
        OSError: It cannot be opened, as for `os.open`.
    """
    assert not flags & os.O_TRUNC
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        # Opened only once known to be regular: opening some devices has an effect of its own.
        refuse_irregular(path, path.lstat().st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | safe | getattr(os, "O_CLOEXEC", 0), mode)
    try:
        refuse_irregular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def refuse_irregular(path: Path, mode: int) -> None:
    """Refuse a path that is no regular file.

    Args:
        path: The path.
        mode: Its `st_mode`, of itself and not of what it links to.

    Raises:
        FileRefusedError: It is a link, folder, pipe, socket or device.
    """
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }  # fmt: skip
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise FileRefusedError(path, f"must be a regular file, found {kind}; move it away")


def read_bytes(path: Path, *, limit: int = LARGEST_TABLE) -> bytes:
    """Read a regular file of a bounded size.

    Args:
        path: The file.
        limit: Its largest size, bytes.

    Raises:
        FileRefusedError: It is no regular file, or larger.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        # The size is compared first, and again in case the file grows meanwhile.
        too_large = os.fstat(file.fileno()).st_size > limit
        data = b"" if too_large else file.read(limit + 1)
    if too_large or len(data) > limit:
        raise FileRefusedError(
            path, f"must have at most {limit / MIB:g} MiB, found more; move it away"
        )
    return data


def read_text(path: Path, *, limit: int = LARGEST_TABLE) -> str:
    """Read a regular file of a bounded size as UTF-8.

    Raises:
        FileRefusedError: It is no regular file, larger, or no UTF-8.
        OSError: It cannot be read.
    """
    try:
        return read_bytes(path, limit=limit).decode()
    except UnicodeDecodeError as error:
        raise FileRefusedError(path, f"must be UTF-8 text: {error}") from error


def read_json(path: Path, schema: type[T], *, limit: int = LARGEST_TABLE) -> T:
    """Read a JSON file of a bounded size and depth, and validate all of it.

    Args:
        path: The file.
        schema: A pydantic model or a dataclass; a value of another type is never converted.
        limit: Largest size, bytes.

    Raises:
        FileRefusedError: It is no regular file, larger, no JSON, or not of this schema.
        OSError: It cannot be read.
    """
    return parse_json(read_bytes(path, limit=limit), schema, path)


def parse_json(data: bytes | str, schema: type[T], path: Path) -> T:
    """Validate JSON that was read from a file already; see `read_json`.

    Args:
        data: The JSON.
        schema: A pydantic model or a dataclass.
        path: The file, for the error.

    Raises:
        FileRefusedError: It is no JSON, nested too deep, or not of this schema.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Hashable, schema)).validate_json(data, strict=True)
    except ValidationError as error:
        raise FileRefusedError(path, f"is damaged: {first_fault(error)}") from error
    return value


@functools.cache
def _adapter(schema: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def first_fault(error: "ValidationError") -> str:
    """Say in one line what pydantic found first."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    return f"{place + ': ' if place else ''}{said}"[:200]


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a temporary file in the same folder, sync it, rename it, and sync the folder.

    A killed process leaves the complete new file or the old one. A link in the place of the file is
    replaced, and what it links to is not touched.

    Args:
        path: The file; an existing one is replaced.
        data: Its whole content.
        durable: Whether the file must outlive a power cut; False saves the time of syncing.

    Raises:
        OSError: The file cannot be written; an existing one stays, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Another's file or link of that name is removed, never written through.
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, _NEW, 0o666), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, on systems where folders can be opened and synced."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
