"""Maps .npy files of untrusted sources into memory."""

import os
import warnings
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gatesearch.errors import DataError, one_line
from gatesearch.files import FileRefusedError, open_regular

# Bytes of the header of a .npy file up to its length; numpy itself writes about 120 in all.
_LONGEST_HEADER = 10_000


def map_array(path: Path, *, cure: str, follow_links: bool = False) -> NDArray[Any]:
    """Map a .npy file into memory, read-only; its header can neither run code nor take memory.

    Args:
        path: The file.
        cure: End of the error.
        follow_links: Whether the file may be a link, as in a user's own folder.

    Raises:
        DataError: The file is absent, no regular file, cut short, of Python objects, or no array.
    """
    opened = Path(os.path.realpath(path)) if follow_links else path
    try:
        with os.fdopen(open_regular(opened), "rb") as file, warnings.catch_warnings():
            # Files written by Python 2 are readable; numpy only asks for them to be rewritten.
            warnings.simplefilter("ignore", UserWarning)
            shape, fortran_order, dtype = _read_header(file)
            if dtype.hasobject or dtype.itemsize == 0:
                raise ValueError("found Python objects, or elements without bytes")
            order: Literal["F", "C"] = "F" if fortran_order else "C"
            return np.memmap(
                file, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order
            )
    except FileRefusedError as error:
        raise DataError(f"{path} {error.fault}") from error
    # What numpy's header parser raises on damaged input is an open set.
    except Exception as error:
        raise DataError(
            f"{path} is missing or is no whole array of plain numbers ({one_line(error)}); {cure}"
        ) from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read shape, whether the first index varies fastest, and element type of a .npy file."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # the third is for names of fields
        raise ValueError(f"version {version}")
    at = file.tell()
    # numpy reads a header of any length before it compares the length with its own bound.
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    file.seek(at)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
