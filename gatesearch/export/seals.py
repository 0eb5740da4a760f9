"""Checksums inside exported files, by which a file that was changed is refused.

A card in JSON ends with the checksum of its own contents, and holds those of the files beside it.
An ONNX file ends with the checksum of all bytes before, as a last entry of its metadata: a protobuf
message can be extended by appending bytes, and any program can still read the file. These checksums
find accidents. They are no signature: whoever makes a file can make its checksum.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from gatesearch.checksums import checksum
from gatesearch.export.shipped import Card
from gatesearch.files import FileRefusedError, open_regular, parse_json
from gatesearch.tensor_files import refuse_large

_KEY = b"gatesearch.sha256"
_DIGITS = 64
# Fields 1 and 2 of an entry, its key and value; field 14 of a model, `metadata_props`.
_ENTRY = b"\x0a" + bytes([len(_KEY)]) + _KEY + b"\x12" + bytes([_DIGITS])
_TAIL = b"\x72" + bytes([len(_ENTRY) + _DIGITS]) + _ENTRY


def seal_card(card: Card, files: Mapping[str, str] | None = None) -> str:
    """Write a card as JSON with its checksum.

    Args:
        card: The card.
        files: Suffix of each file beside it -> its SHA-256.
    """
    value = card.model_dump(mode="json") | {"files": dict(files or {})}
    return json.dumps(value | {"sha256": checksum(value)}, indent=1)


def open_card(text: bytes | str, path: Path) -> tuple[Card, dict[str, str]]:
    """Read what `seal_card` wrote.

    Args:
        text: The JSON.
        path: The file that it was read from, for the error.

    Returns:
        (card, suffix of each file beside it -> its SHA-256).

    Raises:
        FileRefusedError: It is damaged, or has no checksum, as cards of gatesearch 0.1.0.
    """
    value = parse_json(text, dict[str, JsonValue], path)
    if "sha256" not in value:
        raise FileRefusedError(path, "holds a card without a checksum, as gatesearch 0.1.0 wrote")
    stated = value.pop("sha256")
    if checksum(value) != stated:
        raise FileRefusedError(path, "holds a card that was changed: its checksum differs")
    files = parse_json(json.dumps(value.pop("files", {})), dict[str, str], path)
    return parse_json(json.dumps(value), Card, path), files


def seal_onnx(model: bytes) -> bytes:
    """Append the checksum of a serialized ONNX model to it."""
    return model + _TAIL + hashlib.sha256(model).hexdigest().encode()


def open_onnx(path: Path) -> bytes:
    """Read an ONNX file and verify its checksum.

    Raises:
        FileRefusedError: It is no regular file, has no checksum, or was changed.
        OSError: It cannot be read.
    """
    refuse_large(path)
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read()
    end = len(content) - len(_TAIL) - _DIGITS
    if end < 0 or content[end:-_DIGITS] != _TAIL:
        raise FileRefusedError(
            path, "was not written by this version of `gatesearch export`: it ends in no checksum"
        )
    if hashlib.sha256(memoryview(content)[:end]).hexdigest().encode() != content[-_DIGITS:]:
        raise FileRefusedError(path, "was changed since it was exported: its checksum differs")
    return content
