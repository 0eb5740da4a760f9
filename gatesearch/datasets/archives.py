"""Unpacks archives from untrusted sources: plain files only, and only inside the target folder."""

import gzip
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from gatesearch.errors import DataError
from gatesearch.events import Emit, Progress

SUFFIXES = (".tgz", ".tar.gz", ".tar", ".zip")
# Far above the largest public release (some 9 GiB of files of at most 8 MiB).
MAX_FILE = 256 * 2**20
MAX_TOTAL = 64 * 2**30
_MEGABYTE = 10**6
_TAR_END = 1024


@dataclass(frozen=True)
class _Member:
    """A plain file of an archive.

    Attributes:
        name: Its path in the archive.
        size: Bytes that the archive declares for it.
        content: Its bytes, to be read once.
        read: Megabytes of the archive that were read up to it.
    """

    name: str
    size: int
    content: IO[bytes]
    read: int


def is_archive(path: Path) -> bool:
    """Whether `path` has the suffix of an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, into: Path, *, emit: Emit) -> None:
    """Unpack an archive's plain files into the folder `into`.

    Raises:
        DataError: A member is a link or a device, would land outside `into`, or is larger than
            any data set's; or the archive is damaged. Names the member.
    """
    total = max(1, archive.stat().st_size // _MEGABYTE)
    emitted = -1
    for read in _extract(archive, into):
        if read > emitted:
            emitted = read
            emit(
                Progress(
                    stage=f"unpack {archive.name}",
                    done=min(read, total),
                    total=total,
                    unit="MB",
                    message=f"unpacking {archive.name}",
                )
            )


def _extract(archive: Path, into: Path) -> Iterator[int]:
    """Write one member after another; yields the megabytes read so far."""
    total = 0
    try:
        for member in _members(archive):
            target = into / _safe_name(archive, member.name)
            total += member.size
            if member.size > MAX_FILE or total > MAX_TOTAL:
                raise DataError(
                    f"{archive}: a file may unpack to {MAX_FILE >> 20} MiB and all of them to "
                    f"{MAX_TOTAL >> 30} GiB, found more at '{member.name}'; "
                    "unpack it by hand and name the folder with --source"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(member.content, file, 2**20)
            yield member.read
        yield archive.stat().st_size // _MEGABYTE + 1
    except DataError:
        raise
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{archive}: two members claim {error.filename}; get it again") from error
    # What the readers raise on damaged input is an open set (struct, zlib, Unicode, Runtime ...);
    # only errors of the operating system carry a number.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"cannot unpack {archive} into {into.parent}: {error.strerror}; "
                "free space there, or name another folder with --data"
            ) from error
        raise DataError(_damaged(archive, error)) from error


def _members(archive: Path) -> Iterator[_Member]:
    if archive.name.lower().endswith(".zip"):
        yield from _zip_members(archive)
    else:
        yield from _tar_members(archive)


def _tar_members(archive: Path) -> Iterator[_Member]:
    # Read once, front to back: a .tgz has no index to jump by.
    with archive.open("rb") as raw, _plain(archive, raw) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                if entry.isdir():
                    _safe_name(archive, entry.name)
                    continue
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is None:
                    raise _refused(archive, entry.name, "a link or a device")
                yield _Member(entry.name, entry.size, content, raw.tell() // _MEGABYTE)
        # A gzip file shows only at its end whether it was cut and whether its checksum is right.
        while stream.read(2**20):
            pass


def _plain(archive: Path, raw: IO[bytes]) -> IO[bytes]:
    """The tar stream, decompressed where it is compressed.

    tarfile takes a tar that was cut between two members for whole, so its end is checked here.
    """
    compressed = raw.read(2) == b"\x1f\x8b"
    if not compressed:
        raw.seek(max(0, archive.stat().st_size - _TAR_END))
        if raw.read() != bytes(_TAR_END):
            raise DataError(_damaged(archive, ValueError("no end of archive")))
    raw.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw


def _zip_members(archive: Path) -> Iterator[_Member]:
    read = 0
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            if entry.is_dir():
                _safe_name(archive, entry.filename)
                continue
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _refused(archive, entry.filename, "a link or a device")
            read += entry.compress_size
            with zipped.open(entry) as content:
                yield _Member(entry.filename, entry.file_size, content, read // _MEGABYTE)


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise _refused(archive, name, "outside the folder it is unpacked into")
    return path


def _refused(archive: Path, name: str, what: str) -> DataError:
    return DataError(
        f"{archive} is refused: its members must be plain files inside it, found '{name}', {what}; "
        "get the archive from its publisher"
    )


def _damaged(archive: Path, error: Exception) -> str:
    return f"{archive} is damaged or incomplete ({error}); get it again"
