"""Read `predictions.npz`: images, labels and predictions for the report."""

import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.errors import one_line
from gatesearch.files import MIB, FileRefusedError, open_regular

Arrays = dict[str, NDArray[Any]]

# Arrays may take this much memory, and this many times the size of the file on top of it. Images do
# not compress, so that real files stay far below; a zip bomb takes a thousand times its size.
_FREE = 256 * MIB
_TIMES = 100
_MOST_ARRAYS = 100_000
_CURE = "delete it: `gatesearch run` draws it anew"


def read_predictions(path: Path) -> Arrays:
    """Read and check all arrays of a file of predictions.

    Returns:
        `image` (frames, height, width, 3) uint8; `NAME.TASK`, where NAME is a network's or `truth`,
        of the same frames, height and width, with or without channels at the end, or for a task
        whose predictions are a few numbers per image (frames, numbers); `seed` () if it was
        written.

    Raises:
        FileRefusedError: It is no regular file, damaged, or holds anything else.
        OSError: It cannot be opened.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            arrays = _read_arrays(file, os.fstat(file.fileno()).st_size)
            _check(arrays)
        # A damaged archive can make its readers raise nearly anything.
        except Exception as error:
            raise FileRefusedError(path, f"is damaged: {one_line(error)}; {_CURE}") from error
    return arrays


def _read_arrays(file: IO[bytes], size: int) -> Arrays:
    arrays: Arrays = {}
    room = _FREE + _TIMES * size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > _MOST_ARRAYS:
            raise ValueError(f"must hold at most {_MOST_ARRAYS:,} arrays, found {len(members):,}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays or name == member.filename:
                raise ValueError(f"must hold one .npy per name, found {member.filename[:100]}")
            with archive.open(member) as stream:
                arrays[name] = _read_array(stream, name[:100], room)
            room -= arrays[name].nbytes
    return arrays


def _read_array(stream: IO[bytes], name: str, room: int) -> NDArray[Any]:
    """Read one array; its memory is allocated only if it is not more than `room` bytes."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} must be an .npy of version 1.0, found {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "biuf" or fortran:
        raise ValueError(f"{name} must hold numbers in the order of C, found {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > room:
        raise ValueError(f"{name} is too large for this file: {dtype} of shape {shape}")
    content = bytearray(math.prod(shape) * dtype.itemsize)
    view, start = memoryview(content), 0
    while start < len(content):
        block = stream.read(min(MIB, len(content) - start))
        if not block:
            raise ValueError(f"{name} is cut short")
        view[start : start + len(block)] = block
        start += len(block)
    # Reading to the end verifies the checksum that the archive keeps of it.
    if stream.read(1):
        raise ValueError(f"{name} is longer than its header says")
    return np.frombuffer(content, dtype).reshape(shape)


def _check(arrays: Arrays) -> None:
    image = arrays.get("image")
    if image is None or image.ndim != 4 or image.shape[3] != 3 or image.dtype != np.uint8:
        described = "none" if image is None else f"{image.dtype} of shape {image.shape}"
        raise ValueError(f"image must be uint8 (frames, height, width, 3), found {described}")
    for name, array in arrays.items():
        if name in ("image", "seed"):
            continue
        if array.ndim == 2 and array.shape[0] == image.shape[0]:
            continue
        if array.ndim not in (3, 4) or array.shape[:3] != image.shape[:3]:
            raise ValueError(
                f"{name[:100]} must cover {image.shape[:3]} frames, rows and columns, found "
                f"{array.shape}"
            )
