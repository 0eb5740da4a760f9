"""Reads files of a data set's release, checks them and converts them to the pack's encodings.

Every function raises DataError naming the file, the rule and what was found.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gatesearch.datasets.image_files import (
    LARGEST_IMAGE_FILE,
    convert_to_rgb,
    decode_image,
    format_of,
    read_image,
    read_user_file,
)
from gatesearch.datasets.pack_reader import map_array
from gatesearch.errors import DataError
from gatesearch.tasks import Task
from gatesearch.tasks.labels import IGNORE

Array = NDArray[Any]
GET_AGAIN = "get the release again"
# Most pixels of a frame.
MAX_PIXELS = 2**24
# Bytes 24 and 25 of a PNG, in its header, with which every PNG begins that is read.
PNG_BITS, _PNG_COLOUR_TYPE, _PNG_GREY = 24, 25, 0
# Metres; sensors that measure depth indoors reach 10.
_MAX_DEPTH = 100.0


def read_photo(path: Path) -> Array:
    """Read a JPEG or PNG as RGB, (H, W, 3) uint8.

    Raises:
        DataError: Another format, more than 8 bits of grey, transparent pixels, or damaged.
    """
    image = read_image(path, formats=("JPEG", "PNG"), max_pixels=MAX_PIXELS)
    rgb = np.asarray(convert_to_rgb(image, path))
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if transparent and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise DataError(
            f"{path} must have no transparent pixels, whose colours are not defined, found some; "
            f"{GET_AGAIN}"
        )
    return rgb


def read_label_map(path: Path) -> Array:
    """Read the numbers that a PNG of one channel stores, (H, W).

    PNG alone is read: it keeps every number, where JPEG and others change most of them a little.
    The numbers are palette indices, or grey values as they are stored: Pillow scales grey of 2 and
    4 bits to 0..255, which is undone here.

    Raises:
        DataError: Another format, several channels, or damaged.
    """
    data = read_user_file(path, limit=LARGEST_IMAGE_FILE)
    if format_of(data) not in ("PNG", None):
        raise DataError(
            f"{path}: labels must be a PNG, which keeps every number, found {format_of(data)}; "
            f"{GET_AGAIN}"
        )
    image = decode_image(data, path, formats=("PNG",), max_pixels=MAX_PIXELS)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"{path}: labels must have one channel, found {image.mode}; {GET_AGAIN}")
    return png_numbers(image, data)


def png_numbers(image: Image.Image, data: bytes) -> Array:
    """Return the numbers that a PNG of one channel stores, (H, W); see `read_label_map`.

    Args:
        image: The decoded PNG.
        data: Content of its file.
    """
    numbers = np.asarray(image)
    bits, colour_type = data[PNG_BITS], data[_PNG_COLOUR_TYPE]
    if colour_type == _PNG_GREY and bits < 8:
        numbers = numbers.astype(np.uint8)
        numbers = numbers // (255 // (2**bits - 1)) if bits > 1 else numbers
    return numbers


def read_array(path: Path) -> Array:
    """Read a .npy file of numbers, (H, W) or (H, W, channels).

    Raises:
        DataError: It holds something else, or more than an image has.
    """
    array = map_array(path, cure=GET_AGAIN, follow_links=True)
    if array.dtype.kind not in "fiub" or array.ndim not in (2, 3) or array.size > 3 * MAX_PIXELS:
        raise DataError(
            f"{path} must hold numbers of shape (H, W) or (H, W, channels), "
            f"found {array.dtype} {array.shape}; {GET_AGAIN}"
        )
    return np.array(array)


def _plane(array: Array, path: Path) -> Array:
    plane = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if plane.ndim != 2:
        raise DataError(f"{path} must have shape (H, W), found {array.shape}; {GET_AGAIN}")
    return plane


def _vectors(array: Array, path: Path) -> NDArray[np.float32]:
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"{path} must have shape (H, W, 3), found {array.shape}; {GET_AGAIN}")
    return _float32(array)


def _float32(array: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is unknown
        return array.astype(np.float32)


def to_image(array: Array, path: Path) -> Array:
    """Convert an image in 0..1, (H, W, 3), to bytes."""
    image = _vectors(array, path)
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise DataError(
            f"{path} must be an image in 0..1, found {image.min():g}..{image.max():g}; {GET_AGAIN}"
        )
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def to_labels(array: Array, path: Path, *, ignore: int, classes: int) -> Array:
    """Convert the release's labels to class indices from 0, (H, W), 255 where ignored.

    Args:
        array: Labels, where the first class is `ignore` + 1.
        path: The file, for errors.
        ignore: The label of pixels without a class.
        classes: Number of classes.
    """
    raw = _plane(array, path)
    low, high = ignore, ignore + classes
    wrong = raw[~((raw >= low) & (raw <= high) & (raw == np.round(raw)))]
    if wrong.size:
        raise DataError(
            f"{path}: labels must be whole numbers {low}..{high} ({ignore} = ignore), "
            f"found {wrong[0]:g}; {GET_AGAIN}"
        )
    return np.where(raw == ignore, IGNORE, raw.astype(np.int64) - ignore - 1).astype(np.uint8)


def to_depth(array: Array, path: Path) -> Array:
    """Convert depth to metres, (H, W), 0 where unknown."""
    raw = _float32(_plane(array, path))
    depth = np.where(np.isfinite(raw) & (raw > 0), raw, np.float32(0))
    if depth.max(initial=0) > _MAX_DEPTH:
        raise DataError(
            f"{path}: depth must be in metres, found up to {depth.max():g}; "
            "divide by 1000 if these are millimetres"
        )
    return depth


def to_normals(array: Array, path: Path) -> Array:
    """Convert normals to unit vectors, (H, W, 3), zero where unknown."""
    raw = _vectors(array, path)
    raw[~np.isfinite(raw).all(-1)] = 0
    if np.abs(raw).max(initial=0) > 1.5:
        raise DataError(
            f"{path}: normals must be unit vectors, found components up to {np.abs(raw).max():g}; "
            "an encoding in 0..255 belongs to another protocol"
        )
    return unit(raw)


def to_edges(array: Array, path: Path) -> Array:
    """Convert edges to 0 or 1, (H, W)."""
    raw = _plane(array, path)
    wrong = raw[(raw != 0) & (raw != 1)]
    if wrong.size:
        raise DataError(f"{path}: edges must be 0 or 1, found {wrong[0]:g}; {GET_AGAIN}")
    return raw.astype(np.uint8)


def encode_label(task: Task, raw: Array, path: Path) -> Array:
    """Convert a label of a file to the encoding of a task (`Task.encode`)."""
    try:
        return task.encode(raw)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {GET_AGAIN}") from error


def unit(vectors: Array) -> Array:
    """Scale vectors to length 1; those too short to have a direction become zero, unknown."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 0.1, vectors / np.maximum(length, 0.1), 0).astype(np.float32)


def check_sizes(frame: dict[str, Array], paths: dict[str, Path]) -> dict[str, Array]:
    """Return the frame, after a check that all its fields are as large as its image."""
    size = frame["image"].shape[:2]
    for key, array in frame.items():
        if array.shape[:2] != size:
            raise DataError(
                f"{paths[key]} must be as large as its image, {size[0]} x {size[1]}, "
                f"found {array.shape[0]} x {array.shape[1]}; {GET_AGAIN}"
            )
    return frame
