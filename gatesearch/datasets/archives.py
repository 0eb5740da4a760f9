"""Unpacks archives from untrusted sources: plain files only, and only inside the target folder.

Sizes are compared with bounds before anything of that size is read or written. Archives inside an
archive are files like any other.
"""

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from gatesearch.datasets.free_space import need_space
from gatesearch.datasets.gunzip import Gunzip
from gatesearch.datasets.tar_stream import Readable, TarRefusedError, tar_members
from gatesearch.errors import DataError, one_line
from gatesearch.events import Emit, Progress

SUFFIXES = (".tgz", ".tar.gz", ".tar", ".zip")
# Above the largest public releases (CelebA has 202,599 images, NYUD_MT 9 GiB in 7,000 files).
MAX_FILE = 256 * 2**20
MAX_TOTAL = 64 * 2**30
MAX_MEMBERS = 250_000
# Real frames shrink to a half at best; a bomb unpacks to a thousand times its size.
MAX_RATIO = 100
# Bytes up to which files may shrink as they like.
RATIO_FROM = 256 * 2**20
_LONGEST_NAME = 1000  # characters
_DEEPEST_NAME = 32  # folders
_LONGEST_PART = 255  # bytes of the name of a file or folder, on all common file systems
# Largest piece of a .zip that zipfile may read at once: 250,000 entries of its list.
_ZIP_READ = 32 * 2**20
_CHUNK = 2**20
_ENCRYPTED = 1  # a bit of the flags of a .zip
_SHOWN = 100  # characters of a name in an error
_BY_HAND = "unpack it by hand and name the folder with --source"
_MEGABYTE = 10**6


@dataclass(frozen=True)
class _Member:
    """A plain file of an archive.

    Attributes:
        name: Its path in the archive.
        size: Bytes that the archive declares for it.
        content: Its bytes, to be read once.
        read: Bytes of the archive that were read up to it.
    """

    name: str
    size: int
    content: Readable
    read: int


def is_archive(path: Path) -> bool:
    """Whether `path` has the suffix of an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, into: Path, *, emit: Emit) -> None:
    """Unpack an archive's plain files into the folder `into`.

    Raises:
        DataError: A member is a link or a device, would land outside `into`, or is larger than
            any data set's; two have one name; there are more members, or they shrink more, than in
            any; the disk is too small; or the archive is damaged. Names the member.
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
        # Files rarely take less space than their archive.
        need_space(into, archive.stat().st_size)
        for member in _members(archive, into):
            target = into / _safe_name(archive, member.name)
            total += member.size
            _check_sizes(archive, member.name, member.size, total)
            need_space(into, member.size)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                _copy(member, file)
            yield member.read // _MEGABYTE
        yield archive.stat().st_size // _MEGABYTE + 1
    except DataError:
        raise
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        name = _shown(os.path.relpath(error.filename, into))
        raise DataError(
            f"{archive}: members must have different names, found two that claim '{name}'; get it "
            f"again, or {_BY_HAND}"
        ) from error
    except TarRefusedError as error:
        raise _refused(archive, error.name, error.fault) from error
    # What the readers raise on damaged input is an open set (struct, zlib, Unicode, Runtime ...);
    # only errors of the operating system carry a number.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"cannot unpack {archive} into {into.parent}: {error.strerror}; "
                "free space there, or name another folder with --data"
            ) from error
        raise DataError(
            f"{archive} is damaged or incomplete ({one_line(error)}); get it again"
        ) from error


def _copy(member: _Member, file: IO[bytes]) -> None:
    """Write a member's bytes, exactly as many as the archive declares."""
    left = member.size
    while left:
        piece = member.content.read(min(_CHUNK, left))
        if not piece:
            raise EOFError(f"'{_shown(member.name)}' ends early")
        file.write(piece)
        left -= len(piece)
    if member.content.read(1):
        raise ValueError(f"'{_shown(member.name)}' is longer than declared")


def _members(archive: Path, into: Path) -> Iterator[_Member]:
    if archive.name.lower().endswith(".zip"):
        yield from _zip_members(archive, into)
    else:
        yield from _tar_members(archive)


def _tar_members(archive: Path) -> Iterator[_Member]:
    # Read once, front to back: a .tgz has no index to jump by.
    with archive.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = io.BufferedReader(Gunzip(raw), _CHUNK) if compressed else raw
        for count, member in enumerate(tar_members(stream), start=1):
            _check_count(archive, count)
            if member.is_folder:
                _safe_name(archive, member.name)
            else:
                yield _Member(member.name, member.size, member.content, raw.tell())


def _zip_members(archive: Path, into: Path) -> Iterator[_Member]:
    with _BoundedReads(archive) as file, zipfile.ZipFile(file) as zipped:
        entries = [entry for entry in zipped.infolist() if not _is_zip_folder(archive, entry)]
        # A .zip lists all its members, so that all are checked before any is written.
        _check_count(archive, len(zipped.infolist()))
        total = 0
        for entry in entries:
            total += entry.file_size
            _check_sizes(archive, entry.filename, entry.file_size, total)
            _check_zip_kind(archive, entry)
        need_space(into, total)
        read = 0
        for entry in entries:
            read += entry.compress_size
            with zipped.open(entry) as content:
                yield _Member(entry.filename, entry.file_size, content, read)


def _is_zip_folder(archive: Path, entry: zipfile.ZipInfo) -> bool:
    _safe_name(archive, entry.filename)
    return entry.is_dir()


def _check_zip_kind(archive: Path, entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _refused(archive, entry.filename, "a link or a device")
    # The others can take gigabytes of memory to decompress.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(archive, entry.filename, "compressed in another way than by deflate")
    if entry.flag_bits & _ENCRYPTED:
        raise _refused(archive, entry.filename, "encrypted")


class _BoundedReads(io.BufferedReader):
    """A .zip of which zipfile reads no large piece at once, such as a list of endless members."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._path, self._size = path, path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > _ZIP_READ:
            raise DataError(
                f"{self._path} may list {MAX_MEMBERS} members, found a list of {size >> 20} MiB; "
                f"{_BY_HAND}"
            )
        return super().read(size)


def _check_count(archive: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"{archive} may hold {MAX_MEMBERS} members, found more; {_BY_HAND}")


def _check_sizes(archive: Path, name: str, size: int, total: int) -> None:
    """Refuse a member that is too large, or with which all of them are."""
    if size > MAX_FILE or total > MAX_TOTAL:
        raise DataError(
            f"{archive}: a file may unpack to {MAX_FILE >> 20} MiB and all of them to "
            f"{MAX_TOTAL >> 30} GiB, found more at '{_shown(name)}'; {_BY_HAND}"
        )
    if total > max(RATIO_FROM, MAX_RATIO * archive.stat().st_size):
        raise DataError(
            f"{archive}: files may unpack to {MAX_RATIO} times the size of their archive, found "
            f"more at '{_shown(name)}'; {_BY_HAND}"
        )


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise _refused(archive, name, "outside the folder it is unpacked into")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if len(name) > _LONGEST_NAME or len(path.parts) > _DEEPEST_NAME or longest > _LONGEST_PART:
        raise _refused(archive, name, f"a name of {len(name)} characters")
    return path


def _refused(archive: Path, name: str, fault: str) -> DataError:
    return DataError(
        f"{archive} is refused: its members must be plain files inside it, found "
        f"'{_shown(name)}', {fault}; get the archive from its publisher"
    )


def _shown(name: str) -> str:
    """Shorten a name for an error, to one line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in name[:_SHOWN])
