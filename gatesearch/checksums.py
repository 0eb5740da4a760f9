"""Checksums (SHA-256) of JSON values and of files: a changed value or file has another one."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatesearch.files import MIB, open_regular


def checksum(value: object) -> str:
    """Compute the SHA-256 of a JSON value, in hexadecimal.

    The value is hashed as its JSON text with sorted keys and without spaces, so that a value has
    the same checksum before it is written and after it is read again.

    Args:
        value: Anything that `json.dumps` takes; numbers may be NaN or infinite.

    >>> checksum({"b": 1.5, "a": ["x", None]}) == checksum({"a": ("x", None), "b": 1.5})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_checksum(table: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum of a table to it, under the key `checksum`."""
    return {**table, "checksum": checksum(table)}


def without_checksum(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Verify the checksum that `with_checksum` added, and return the table without it.

    Raises:
        ValueError: The table has no checksum, or that of other values.
    """
    table = {name: value for name, value in stored.items() if name != "checksum"}
    if stored.get("checksum") != checksum(table):
        raise ValueError("its values are not those that it was written with (checksum)")
    return table


def file_checksum(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal, with at most 1 MiB of it in memory.

    Raises:
        FileRefusedError: It is no regular file.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()
