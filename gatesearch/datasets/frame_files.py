"""The array files of one split of a pack, into which frames are written in any order.

Files get their whole length before the first frame, and frames are written by plain writes rather
than a memory map: on a full disk a write fails with an error that can be shown, where a write
through a memory map kills the process.
"""

import errno
import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.checksums import file_checksum
from gatesearch.datasets.pack_manifest import FileEntry, Frame
from gatesearch.files import open_regular
from gatesearch.tasks.labels import Storage

# Errors of file systems that cannot set space aside.
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True)
class FrameFiles:
    """One .npy file per field.

    Attributes:
        folder: Folder of the files.
        frames: Number of frames.
        size: Height and width of a frame, pixels.
        storage: Field -> how its values are stored.
    """

    folder: Path
    frames: int
    size: tuple[int, int]
    storage: Mapping[str, Storage]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return self.frames * sum(map(self._frame_bytes, self.storage))

    def create(self) -> None:
        """Make the folder and the files at their whole length.

        Raises:
            OSError: They cannot be made, as on a full disk.
        """
        self.folder.mkdir()
        for field in self.storage:
            header = self._header(field)
            with (self.folder / f"{field}.npy").open("xb") as file:
                file.write(header)
                file.flush()
                length = len(header) + self.frames * self._frame_bytes(field)
                _allocate(file.fileno(), length)

    def are_whole(self) -> bool:
        """Tell whether `create` was finished here for the same fields, frames and size."""
        try:
            for field in self.storage:
                header = self._header(field)
                descriptor = self._open(field)
                with os.fdopen(descriptor, "rb") as file:
                    length = len(header) + self.frames * self._frame_bytes(field)
                    if file.read(len(header)) != header or os.fstat(descriptor).st_size != length:
                        return False
        except OSError:
            return False
        return True

    def write(self, index: int, frame: Frame) -> int:
        """Write a frame.

        Returns:
            CRC-32 of its bytes, as `checksum` computes it.

        Raises:
            ValueError: It has other fields, or values of another shape.
            OSError: It cannot be written.
        """
        if set(frame) != set(self.storage):
            raise ValueError(f"every frame must have {set(self.storage)}, found {set(frame)}")
        for field, storage in self.storage.items():
            shape = storage.shape(self.size)
            if frame[field].shape != shape:
                raise ValueError(f"{field} must be {shape}, found {frame[field].shape}")
        total = 0
        for field, storage in self.storage.items():
            data = np.ascontiguousarray(frame[field], dtype=storage.dtype).tobytes()
            descriptor = self._open(field, os.O_WRONLY)
            try:
                _write_at(descriptor, data, self._offset(field, index))
            finally:
                os.close(descriptor)
            total = zlib.crc32(data, total)
        return total

    def checksum(self, index: int) -> int:
        """Compute the CRC-32 of a frame that was written.

        Raises:
            OSError: It cannot be read.
        """
        total = 0
        for field in self.storage:
            descriptor = self._open(field)
            try:
                data = os.pread(descriptor, self._frame_bytes(field), self._offset(field, index))
            finally:
                os.close(descriptor)
            total = zlib.crc32(data, total)
        return total

    def entries(self) -> dict[str, FileEntry]:
        """Describe the files, with the SHA-256 of each, once all frames are written and synced."""
        paths = [self.folder / f"{field}.npy" for field in self.storage]
        for path in paths:
            descriptor = open_regular(path)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        with ThreadPoolExecutor() as threads:
            sums = list(threads.map(file_checksum, paths))
        return {
            field: FileEntry(sha256=sha256, dtype=storage.dtype, shape=self._shape(field))
            for (field, storage), sha256 in zip(self.storage.items(), sums, strict=True)
        }

    def _open(self, field: str, flags: int = os.O_RDONLY) -> int:
        return open_regular(self.folder / f"{field}.npy", flags)

    def _shape(self, field: str) -> tuple[int, ...]:
        return (self.frames, *self.storage[field].shape(self.size))

    def _frame_bytes(self, field: str) -> int:
        storage = self.storage[field]
        return math.prod(storage.shape(self.size)) * np.dtype(storage.dtype).itemsize

    def _offset(self, field: str, index: int) -> int:
        return len(self._header(field)) + index * self._frame_bytes(field)

    def _header(self, field: str) -> bytes:
        return array_header(self.storage[field].dtype, self._shape(field))


def array_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Make the beginning of a .npy file, before its values."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def write_array(path: Path, values: NDArray[Any]) -> FileEntry:
    """Write a whole .npy file and describe it.

    Raises:
        OSError: It cannot be written.
    """
    data = array_header(values.dtype.str, values.shape) + values.tobytes()
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(
        sha256=hashlib.sha256(data).hexdigest(), dtype=values.dtype.str, shape=values.shape
    )


def _allocate(descriptor: int, length: int) -> None:
    """Set space aside for a file, where the system can, and give it its length."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, length)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
    os.ftruncate(descriptor, length)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    for start, part in _parts(data):
        written = 0
        while written < len(part):
            written += os.pwrite(descriptor, part[written:], offset + start + written)


def _parts(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Cut data into pieces that systems write at once, 1 GiB at most."""
    view = memoryview(data)
    for start in range(0, len(data), 2**30):
        yield start, view[start : start + 2**30]
