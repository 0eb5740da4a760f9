"""Samples of any data set, as dicts, and their conversion to frames of a pack.

A sample has an image under one key and labels under others. Each may be a tensor, an array, a
Pillow image, a number, a text, or the content of a file, as WebDataset has it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gatesearch.datasets.image_files import convert_to_rgb, decode_image, format_of
from gatesearch.datasets.label_checks import png_numbers
from gatesearch.datasets.pack_reader import IMAGE
from gatesearch.errors import DataError, one_line
from gatesearch.tasks import Task

Array = NDArray[Any]
Sample = Mapping[str, Any]

# How far rounding may take a float image out of 0..1.
_ROUNDING = 1e-3
_ARRAY_FILE = b"\x93NUMPY"
# Formats of files that change labels.
_LOSSY = ("JPEG", "MPO", "WEBP")
_CHANNELS = (1, 3)


def to_frame(
    sample: object, *, image_key: str, label_keys: Mapping[str, str], tasks: Mapping[str, Task]
) -> dict[str, Array]:
    """Convert a sample to a frame of a pack, at its own size.

    Args:
        sample: The sample.
        image_key: Its key of the image.
        label_keys: Task -> the sample's key of its label. A label that is absent or None is not
            known.
        tasks: Task name -> task, which encodes its labels.

    Returns:
        `image` (H, W, 3) uint8, and an array per task in the encoding of the pack.

    Raises:
        DataError: The sample, its image or a label is not as it must be; says the key.
    """
    if not isinstance(sample, Mapping):
        raise DataError(
            f"must be a dict with the keys {', '.join([image_key, *label_keys.values()])}, found "
            f"{_name(sample)}; wrap the data set in one that names what it returns"
        )
    if image_key not in sample:
        keys = ", ".join(map(str, sample)) or "none"
        raise DataError(f"has no '{image_key}', found the keys {keys}; name the image by image=")
    frame = {IMAGE: _checked(image_key, to_image, sample[image_key])}
    size = frame[IMAGE].shape[:2]
    for name, task in tasks.items():
        key = label_keys[name]
        storage = task.storage
        label = sample.get(key)
        if label is None:
            shape = storage.shape(size)
            frame[name] = np.full(shape, task.unknown_value, storage.dtype)
            continue
        convert = dense_label if storage.dense else vector_label
        frame[name] = _checked(
            key,
            lambda value: task.encode(convert(value, size), size=size),  # noqa: B023
            label,
        )
        if frame[name].shape != storage.shape(size):
            raise DataError(
                f"'{key}' must give {name} the shape {storage.shape(size)}, found "
                f"{frame[name].shape}"
            )
    return frame


def _checked(key: str, convert: Any, value: object) -> Array:
    try:
        converted: Array = convert(value)
    except (ValueError, DataError) as error:
        raise DataError(f"'{key}' {error}") from error
    return converted


def to_image(value: object) -> Array:
    """Convert an image to RGB, (H, W, 3) uint8.

    Args:
        value: A Pillow image; the content of an image file, which is turned upright as its
            metadata say; or a tensor or array (C, H, W), (H, W, C) or (H, W) of 1 or 3 channels,
            uint8, or of floats in 0..1. If both ends of a shape can be channels, those of a tensor
            come first and those of an array last.

    Raises:
        ValueError: Another type, shape or range.
        DataError: The content of a file that is damaged, or no image of 8 bits.
    """
    if isinstance(value, bytes | bytearray):
        image = decode_image(bytes(value), Path("(bytes)"))
        value = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    if isinstance(value, Image.Image):
        return np.array(convert_to_rgb(value, Path("(Pillow image)")))
    array = _image_channels_last(value)
    if array.dtype.kind == "f":
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"must be floats in 0..1, found {low:.4g}..{high:.4g}; leave normalisation out, or "
                "convert to uint8"
            )
        array = (array.astype(np.float64).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"must be uint8, or floats in 0..1, found {array.dtype}; convert it")
    if array.size == 0:
        raise ValueError(f"must have pixels, found the shape {array.shape}")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def _image_channels_last(value: object) -> Array:
    array, is_tensor = _as_array(value)
    if array.ndim == 2:
        return array[..., None]
    first, last = (array.ndim == 3 and array.shape[axis] in _CHANNELS for axis in (0, -1))
    if first and (is_tensor or not last):
        return np.moveaxis(array, 0, -1)
    if not last:
        raise ValueError(
            "must be (C, H, W), (H, W, C) or (H, W) with 1 or 3 channels, found the shape "
            f"{array.shape}"
        )
    return array


def dense_label(value: object, size: tuple[int, int]) -> Array:
    """Convert a label of pixels to an array (H, W) or (H, W, C) of the numbers that it stores.

    Args:
        value: A Pillow image, the content of a PNG or .npy file, a tensor or an array. Channels
            may come first.
        size: Height and width of the image.

    Raises:
        ValueError: Another type, or another size than the image's.
        DataError: The content of a damaged file.
    """
    if isinstance(value, Image.Image):
        if value.format in _LOSSY:
            raise ValueError(
                f"must be a label that keeps every number, as a PNG does, found {value.format}"
            )
        value = np.array(value)
    elif isinstance(value, bytes | bytearray):
        value = _label_of_file(bytes(value))
    array, is_tensor = _as_array(value)
    last = array.ndim in (2, 3) and array.shape[:2] == size
    first = array.ndim == 3 and array.shape[1:] == size
    if first and (is_tensor or not last):
        return np.moveaxis(array, 0, -1)
    if not last:
        raise ValueError(
            f"must be as large as its image, {size[0]} x {size[1]}, found the shape {array.shape}"
        )
    return array


def _label_of_file(data: bytes) -> Array:
    if data.startswith(_ARRAY_FILE):
        try:
            array: Array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"is no whole .npy file ({one_line(error)})") from error
        return array
    if format_of(data) not in ("PNG", None):
        raise ValueError(
            f"must be a PNG or .npy file, which keep every number, found {format_of(data)}"
        )
    image = decode_image(data, Path("(bytes)"), formats=("PNG",))
    return png_numbers(image, data) if len(image.getbands()) == 1 else np.array(image)


def vector_label(value: object, size: tuple[int, int]) -> Array:
    """Convert a label of an image to the values of a row of a table, (K,), numbers or texts.

    Args:
        value: A number, a text, or a list, tensor or array of them; or their text in bytes, as
            WebDataset has it. None within a list is not known.
        size: Not used; see `dense_label`.

    Raises:
        ValueError: Another type.
    """
    del size
    if isinstance(value, bytes | bytearray):
        value = _text(bytes(value))
    if isinstance(value, str):
        return np.array([value])
    if isinstance(value, list | tuple):
        items = [item.item() if isinstance(item, Tensor | np.generic) else item for item in value]
        if any(item is None or isinstance(item, str) for item in items):
            return np.array(["" if item is None else str(item) for item in items])
        value = np.asarray(items)
    array, _ = _as_array(value)
    return array.reshape(-1)


def _text(data: bytes) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            "must be a number or text, found bytes that are no text; decode the samples"
        ) from error


def _as_array(value: object) -> tuple[Array, bool]:
    """Convert numbers to an array, and tell whether they were a tensor."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), True
    if isinstance(value, bool | int | float | list | tuple | np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array.astype(np.uint8) if array.dtype.kind == "b" else array, False
    raise ValueError(
        f"must be a tensor, an array or a Pillow image of plain numbers, found {_name(value)}"
    )


def _name(value: object) -> str:
    kind = type(value)
    dtype = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
    return f"{kind.__module__}.{kind.__qualname__}{dtype}".removeprefix("builtins.")
