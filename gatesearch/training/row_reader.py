"""Reads frames of an array file without a memory map, so that they count in memory only once used.

Pages of a memory map that were read stay in the process's resident memory until the system wants
them back, up to the whole file.
"""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.errors import DataError
from gatesearch.files import open_regular


class RowReader:
    """The rows of an array in a .npy file, which stays open, and so the same if it is replaced.

    Args:
        path: The file; not looked at if the array is no map of it.
        array: Its memory map, of which only shape, type and place in the file are used; or an array
            in memory, such as some columns of a field, whose rows are taken.
        keeps_cache: Whether what was read may stay in the system's cache of files; False where it
            would only push out what others need.
    """

    def __init__(self, path: Path, array: NDArray[Any], *, keeps_cache: bool = True) -> None:
        self._path = path
        self._array = array
        self._keeps_cache = keeps_cache
        self._descriptor: int | None = None
        if isinstance(array, np.memmap) and array.flags.c_contiguous:
            self._descriptor = open_regular(path)
            weakref.finalize(self, os.close, self._descriptor)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._array[:1].nbytes

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read rows, given in ascending order; rows that follow each other are read at once.

        Raises:
            DataError: The file has become shorter.
        """
        array = self._array
        if self._descriptor is None or not isinstance(array, np.memmap):
            return np.asarray(array[rows])
        found = np.empty((len(rows), *array.shape[1:]), array.dtype)
        if not len(rows):
            return found
        target = found.reshape(-1).view(np.uint8).data.cast("B")
        size = self.row_bytes
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()]
        for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            offset = array.offset + int(rows[first]) * size
            self._fill(self._descriptor, target[first * size : end * size], offset)
        return found

    def _fill(self, descriptor: int, target: memoryview, offset: int) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(descriptor, [target[done:]], offset + done)
            if count == 0:
                raise DataError(f"{self._path} has become shorter; prepare its data set again")
            done += count
        if not self._keeps_cache and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, len(target), os.POSIX_FADV_DONTNEED)
