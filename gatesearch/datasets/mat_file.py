"""Reads MAT-files of version 5, the form in which MATLAB has saved arrays since 1996.

Files come from untrusted sources: every size is compared with the bytes at hand before anything of
that size is read, and only plain data are read (numbers, texts, cells and structures).

Format: MathWorks, "MAT-File Format", chapter 1. A file is a header of 128 bytes and elements, each
a tag (type, number of bytes) and its data, filled up to a multiple of 8 bytes. A compressed element
holds another one. An array is an element of elements: flags, dimensions, name, and its content.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.image_files import read_user_file
from gatesearch.errors import DataError
from gatesearch.files import MIB

# Numbers in the shape that they have in MATLAB; a text; the items of a cell array, and the
# structures of an array of them, field -> value, column by column.
Value = NDArray[Any] | str | list[Any]

# Bytes of a file, and of what it holds: masks of a hundred objects of half a megapixel.
_LARGEST_FILE = 64 * MIB
_LARGEST_CONTENT = 512 * MIB
_HEADER, _VERSION_AT = 128, 124
_DEEPEST = 16  # arrays within arrays
_LONGEST_FIELD = 64  # bytes of the name of a field, with its end
_COMPLEX = 0x08  # a flag

# Types of elements.
_TEXT_TYPES = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_NUMBER_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
# Classes of arrays.
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBER_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip


class _RefusedError(Exception):
    """What is wrong with a file."""


def read_mat(path: Path) -> dict[str, Value]:
    """Read the variables of a MAT-file of version 5, name -> value.

    Raises:
        DataError: Missing, of another version, damaged, larger than any annotation of an image, or
            with other arrays than plain data; names the file.
    """
    data = read_user_file(path, limit=_LARGEST_FILE)
    try:
        return dict(_variables(data))
    except _RefusedError as error:
        raise DataError(
            f"{path} must be a whole MAT-file of version 5, found {error}; get the release again"
        ) from error


@dataclass
class _Reader:
    """Elements of a piece of a file, one after another.

    Attributes:
        data: The piece.
        order: Byte order, `<` or `>`.
        at: Place of the next element.
    """

    data: memoryview
    order: str
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def element(self) -> tuple[int, memoryview]:
        """Type and data of the next element."""
        first, size = struct.unpack(f"{self.order}II", self._take(8))
        if first >> 16:  # size and data within the tag
            kind, size = first & 0xFFFF, first >> 16
            if size > 4:
                raise _RefusedError(f"a short element of {size} bytes")
            return kind, self.data[self.at - 4 : self.at - 4 + size]
        content = self._take(size)
        if first != _COMPRESSED:
            self.at = min(len(self.data), self.at + -size % 8)
        return first, content

    def numbers(self, kind: int) -> NDArray[Any]:
        """Numbers of the next element, which is of a type."""
        found, content = self.element()
        if found != kind:
            raise _RefusedError(f"an element of type {found} in place of {kind}")
        return self.decode(found, content)

    def decode(self, kind: int, content: memoryview) -> NDArray[Any]:
        """Numbers of an element."""
        if kind not in _NUMBER_TYPES:
            raise _RefusedError(f"numbers of type {kind}")
        dtype = np.dtype(self.order + _NUMBER_TYPES[kind])
        if len(content) % dtype.itemsize:
            raise _RefusedError(f"numbers of {dtype.itemsize} bytes in {len(content)}")
        return np.frombuffer(content, dtype)

    def _take(self, size: int) -> memoryview:
        if size > self.left:
            raise _RefusedError(f"{self.left} bytes where {size} must be")
        self.at += size
        return self.data[self.at - size : self.at]


def _variables(data: bytes) -> Iterator[tuple[str, Value]]:
    if len(data) < _HEADER:
        raise _RefusedError(f"{len(data)} bytes")
    order = {b"IM": "<", b"MI": ">"}.get(data[_VERSION_AT + 2 : _HEADER])
    if order is None:
        raise _RefusedError(f"a file that begins with {data[:8]!r}")
    (version,) = struct.unpack(f"{order}H", data[_VERSION_AT : _VERSION_AT + 2])
    if version != 0x0100:
        raise _RefusedError(f"version {version >> 8}.{version & 255} (save it with '-v7')")
    file = _Reader(memoryview(data)[_HEADER:], order)
    budget = _LARGEST_CONTENT
    while file.left:
        kind, content = file.element()
        if kind == _COMPRESSED:
            content = memoryview(_inflate(content, budget))
            kind, content = _Reader(content, order).element()
        budget -= len(content)
        if kind != _MATRIX:
            raise _RefusedError(f"an element of type {kind} in place of an array")
        yield _array(_Reader(content, order), depth=0)


def _inflate(content: memoryview, limit: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(content, max(1, limit))
    except zlib.error as error:
        raise _RefusedError(f"damaged compression ({error})") from error
    if stream.unconsumed_tail:
        raise _RefusedError(f"more than {_LARGEST_CONTENT // MIB} MiB")
    if not stream.eof:
        raise _RefusedError("compression that ends early")
    return data


def _array(reader: _Reader, *, depth: int) -> tuple[str, Value]:
    """Name and value of an array, of whose content an element consists."""
    if not reader.left:  # an array that was never filled
        return "", np.zeros((0, 0))
    if depth > _DEEPEST:
        raise _RefusedError(f"arrays nested more than {_DEEPEST} deep")
    flags = reader.numbers(_UINT32)
    shape = tuple(int(n) for n in reader.numbers(_INT32))
    name = _ascii(reader.numbers(_INT8))
    if len(flags) != 2 or len(shape) < 2 or min(shape) < 0:
        raise _RefusedError(f"an array of the shape {shape}")
    kind, count = int(flags[0]) & 0xFF, math.prod(shape)
    if kind == _STRUCT:
        return name, _structures(reader, count, depth)
    if kind == _CELL:
        if 8 * count > reader.left:
            raise _RefusedError(f"{count} cells in {reader.left} bytes")
        return name, [_item(reader, depth) for _ in range(count)]
    if kind == _CHAR:
        return name, _text(reader, count)
    if kind not in _NUMBER_CLASSES or (int(flags[0]) >> 8) & _COMPLEX:
        raise _RefusedError(f"an array of class {kind} (no plain numbers, texts or structures)")
    return name, _plain_numbers(reader, shape, _NUMBER_CLASSES[kind])


def _item(reader: _Reader, depth: int) -> Value:
    kind, content = reader.element()
    if kind != _MATRIX:
        raise _RefusedError(f"an element of type {kind} in place of an array")
    return _array(_Reader(content, reader.order), depth=depth + 1)[1]


def _structures(reader: _Reader, count: int, depth: int) -> list[Any]:
    lengths = reader.numbers(_INT32)
    names = reader.numbers(_INT8).tobytes()
    length = int(lengths[0]) if len(lengths) else 0
    if not 1 <= length <= _LONGEST_FIELD or len(names) % length:
        raise _RefusedError(f"names of fields of {length} bytes in {len(names)}")
    fields = [
        _ascii(np.frombuffer(names[at : at + length], np.int8).copy())
        for at in range(0, len(names), length)
    ]
    if 8 * count * max(1, len(fields)) > reader.left and count * len(fields):
        raise _RefusedError(f"{count} structures in {reader.left} bytes")
    if not fields:
        return []
    return [{field: _item(reader, depth) for field in fields} for _ in range(count)]


def _text(reader: _Reader, count: int) -> str:
    kind, content = reader.element()
    if kind in _TEXT_TYPES:
        ending = {"<": "-le", ">": "-be"}[reader.order] if kind != 16 else ""
        text = bytes(content).decode(_TEXT_TYPES[kind] + ending, errors="replace")
    else:
        codes = reader.decode(kind, content)
        if codes.dtype.kind != "u" and codes.dtype.kind != "i":
            raise _RefusedError("a text of fractions")
        text = "".join(chr(code) if 0 <= code < 0xD800 else "\ufffd" for code in codes.tolist())
    if len(text) != count:
        raise _RefusedError(f"a text of {len(text)} characters where {count} must be")
    return text


def _plain_numbers(reader: _Reader, shape: tuple[int, ...], code: str) -> NDArray[Any]:
    # Stored in the smallest type that holds them.
    stored = reader.decode(*reader.element())
    if len(stored) != math.prod(shape):
        raise _RefusedError(f"{len(stored)} numbers for the shape {shape}")
    return stored.astype(code).reshape(shape, order="F")


def _ascii(codes: NDArray[Any]) -> str:
    return codes.tobytes().split(b"\0")[0].decode("ascii", errors="replace")
