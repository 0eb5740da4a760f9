"""Reads a tar archive front to back, within bounds of memory and time.

The standard library's `tarfile` decodes single headers here, and does not walk through the archive:
it reads extended headers, long names and lists of holes of any declared size into memory.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_BLOCK = 512
# Bytes of one extended header or long name, and of all of them; those of real archives take 1 kB.
_MAX_EXTRA = 2**20
_MAX_EXTRAS = 64 * 2**20
# Bytes after the end; tar fills its last record, of 10 kB unless told otherwise.
_MAX_PADDING = 16 * 2**20
_CHUNK = 2**20

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTRAS = (*_PAX, tarfile.XGLTYPE, *_LONG_NAMES)
# Fields of extended headers that are read. Names of all that describe a sparse file begin with one.
_READ_FIELDS = ("path", "size")
_SPARSE = "GNU.sparse"


class TarRefusedError(Exception):
    """An archive with a member that is not unpacked.

    Attributes:
        name: The member.
        fault: What it is.
    """

    def __init__(self, name: str, fault: str) -> None:
        super().__init__(f"{name}: {fault}")
        self.name, self.fault = name, fault


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes; none at the end."""


@dataclass(frozen=True)
class TarMember:
    """A file or folder of an archive.

    Attributes:
        name: Its path in the archive.
        size: Bytes of its content.
        is_folder: Whether it is a folder, without content.
        content: Its bytes, which must be read before the next member is asked for, or are skipped.
    """

    name: str
    size: int
    is_folder: bool
    content: Readable


def tar_members(stream: Readable) -> Iterator[TarMember]:
    """Yield the files and folders of a tar archive in their order.

    Args:
        stream: The archive, decompressed, at its beginning. It is read to its end, so that a
            decompressor can compare the checksum.

    Raises:
        TarRefusedError: A link, a device, a sparse file, or an extended header larger than allowed.
        tarfile.TarError, ValueError, EOFError: The archive is damaged or was cut.
    """
    for_all: dict[str, str] = {}  # fields of extended headers for all members that follow
    for_next: dict[str, str] = {}  # those for the next member alone
    extras = 0
    while True:
        block = _read_exactly(stream, _BLOCK, "no end of archive")
        if not any(block):
            break
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type in _EXTRAS:
            extras += header.size
            if not 0 <= header.size <= _MAX_EXTRA or extras > _MAX_EXTRAS:
                raise TarRefusedError(header.name, f"with a header of {header.size} bytes")
            data = _read_padded(stream, header.size)
            if header.type == tarfile.XGLTYPE:
                for_all |= _pax_records(data)
            elif header.type in _PAX:
                for_next |= _pax_records(data)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                for_next["path"] = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            continue
        fields = for_all | for_next
        name, size = fields.get("path", header.name), int(fields.get("size", header.size))
        if header.type == tarfile.GNUTYPE_SPARSE or _SPARSE in fields:
            raise TarRefusedError(name, "a sparse file")
        if header.type not in (*_FILES, tarfile.DIRTYPE):
            raise TarRefusedError(name, "a link or a device")
        if size < 0:
            raise ValueError(f"a member of {size} bytes")
        is_folder = header.type == tarfile.DIRTYPE
        content = _Content(stream, 0 if is_folder else size)
        yield TarMember(name, size, is_folder, content)
        content.skip()
        for_next = {}
    left = _MAX_PADDING
    while data := stream.read(_CHUNK):
        left -= len(data)
        if left < 0:
            raise ValueError(f"more than {_MAX_PADDING >> 20} MiB follow its end")


class _Content:
    """The content of a member, up to its end."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream = stream
        self._left = size
        self._padding = -size % _BLOCK

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Read what is left of the content, and what fills its last block."""
        self._left += self._padding
        self._padding = 0
        while self._left:
            if not self.read(_CHUNK):
                raise EOFError("it ends inside a member")


def _read_padded(stream: Readable, size: int) -> bytes:
    """Read content of a known small size, and what fills its last block."""
    return _read_exactly(stream, size + -size % _BLOCK, "it ends inside a header")[:size]


def _read_exactly(stream: Readable, size: int, fault: str) -> bytes:
    pieces = []
    while size:
        piece = stream.read(size)
        if not piece:
            raise EOFError(fault)
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _pax_records(data: bytes) -> dict[str, str]:
    r"""Read the records of an extended header, each `LENGTH KEY=VALUE\n`.

    Only the fields that are used are kept: there may be a hundred thousand others, which would be
    looked through at every member.

    >>> _pax_records(b"12 path=abc\n11 mtime=1\n22 GNU.sparse.major=1\n")
    {'path': 'abc', 'GNU.sparse': ''}
    """
    records = {}
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : at + 10].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[at : at + length]
        if len(record) != length or not record.endswith(b"\n"):
            raise ValueError("an extended header is damaged")
        encoded, _, value = record[len(digits) + 1 : -1].partition(b"=")
        key = encoded.decode("utf-8", "surrogateescape")
        if key in _READ_FIELDS:
            records[key] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(_SPARSE):
            records[_SPARSE] = ""
        at += length
    return records
