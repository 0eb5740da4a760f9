"""Read the label files of a user's own as plain numbers, exactly as they are stored.

PNG, TIFF and BMP of one channel, `.npy`, and for labels of three channels also RGB. The format is
told from the content. JPEG is refused, as it changes most numbers a little.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gatesearch.datasets.array_file import map_array
from gatesearch.datasets.faults import FileFaultError
from gatesearch.datasets.folder.photos import read_start
from gatesearch.datasets.image_files import (
    LARGEST_IMAGE_FILE,
    MAX_PIXELS,
    decode_image,
    format_of,
    read_user_file,
)
from gatesearch.datasets.label_checks import PNG_BITS, png_numbers
from gatesearch.datasets.orientation import UPRIGHT, orientation_of

Array = NDArray[Any]
_NUMPY = b"\x93NUMPY"
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_COLOURS_SHOWN = 4
_MOST_CHANNELS = 4  # of an image; more are rows or columns of a label with its axes in other places
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO = 0


def read_label(path: Path, *, channels: int = 1) -> Array:
    """Read a file of labels: (H, W), or (H, W, channels) where a pixel has several.

    Args:
        path: The file.
        channels: Numbers per pixel.

    Raises:
        DataError: It cannot be read, is lossy, or has another number of channels.
    """
    is_numpy = read_start(path, len(_NUMPY)) == _NUMPY
    array = _read_numpy(path) if is_numpy else _read_picture(path)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] <= _MOST_CHANNELS and channels == 1:
        array = _one_channel(array, path)
    expected = 2 if channels == 1 else 3
    if array.ndim != expected or (expected == 3 and array.shape[2] != channels):
        shape = "(H, W)" if channels == 1 else f"(H, W, {channels})"
        raise FileFaultError(
            "label of another shape", path, f"must have shape {shape}, found {array.shape}",
            "save one number per pixel" if channels == 1 else f"save {channels} numbers per pixel",
        )  # fmt: skip
    return array


def _read_numpy(path: Path) -> Array:
    array = map_array(path, cure="save it again by numpy.save", follow_links=True)
    if array.dtype.kind not in "fiub" or array.ndim not in (2, 3) or array.size > 3 * MAX_PIXELS:
        raise FileFaultError(
            "label of another shape", path,
            f"must hold numbers of shape (H, W) or (H, W, channels), found {array.dtype} "
            f"{array.shape}", "save it again by numpy.save",
        )  # fmt: skip
    return np.array(array)


def _read_picture(path: Path) -> Array:
    data = read_user_file(path, limit=LARGEST_IMAGE_FILE)
    form = format_of(data)
    image = decode_image(data, path)
    if form == "JPEG" or (form == "WEBP" and b"VP8L" not in data[:64]):
        raise _lossy(path, form)
    if form == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise _lossy(path, "TIFF compressed by JPEG")
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise FileFaultError(
            "several images in one file", path, f"must hold one label, found {pages}",
            "save each one to a file of its own",
        )  # fmt: skip
    if (orientation := orientation_of(image)) != UPRIGHT:
        raise FileFaultError(
            "turned label", path, f"must be stored upright, found EXIF orientation {orientation}",
            "save it turned, without EXIF data",
        )  # fmt: skip
    if image.mode in _ONE_CHANNEL:
        return png_numbers(image, data) if form == "PNG" else _numbers(image, path)
    if _is_deep_colour(image, data, form):
        raise FileFaultError(
            "label of 16-bit colour", path,
            "must have one channel of 16 bits, or several of 8 bits, found several of more",
            "save it as a .npy file, or as a PNG of one channel",
        )  # fmt: skip
    if image.mode in ("RGB", "RGBA", "LA", "RGBX", "La", "RGBa"):
        return np.asarray(image)
    raise FileFaultError(
        "label in colours", path, f"must have one channel, found Pillow's mode {image.mode}",
        "save class numbers as a PNG of one channel",
    )  # fmt: skip


def _is_deep_colour(image: Image.Image, data: bytes, form: str | None) -> bool:
    """Whether several channels have more than 8 bits each, which Pillow cuts to 8."""
    if form == "PNG":
        return data[PNG_BITS] > 8
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return any(count > 8 for count in bits)


def _numbers(image: Image.Image, path: Path) -> Array:
    """Numbers of a BMP, TIFF or WebP of one channel; those of a palette are its indices.

    Raises:
        FileFaultError: A TIFF whose numbers Pillow changes as it decodes them.
    """
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    narrow = image.mode == "L" and tuple(tags.get(_BITS_PER_SAMPLE, (8,))) != (8,)
    signed = image.mode == "L" and tuple(tags.get(_SAMPLE_FORMAT, (1,))) != (1,)
    if inverted or narrow or signed:
        what = "white stored as 0" if inverted else "signed bytes" if signed else "2 or 4 bits"
        raise FileFaultError(
            "label in an odd TIFF", path, f"must have unsigned grey of 8 or 16 bits, found {what}",
            "save it as a PNG of one channel",
        )  # fmt: skip
    array = np.asarray(image)
    array = array.astype(np.uint8) if image.mode == "1" else array
    return array.astype(array.dtype.newbyteorder("="))


def _one_channel(array: Array, path: Path) -> Array:
    """Take the one channel of an image in which all channels are the same and it is opaque.

    Raises:
        FileFaultError: It has colours, or transparent pixels.
    """
    channels = array.shape[2]
    colours, alpha = (array, None) if channels not in (2, 4) else (array[..., :-1], array[..., -1])
    is_grey = (colours == colours[..., :1]).all()
    if is_grey and (alpha is None or (alpha == alpha.max()).all()):
        return np.ascontiguousarray(colours[..., 0])
    found, counts = np.unique(array.reshape(-1, channels), axis=0, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_COLOURS_SHOWN]
    listed = ", ".join(str(tuple(found[i].tolist())) for i in most)
    more = f" and {len(found) - _COLOURS_SHOWN} more" if len(found) > _COLOURS_SHOWN else ""
    raise FileFaultError(
        "label in colours", path,
        f"must have one number per pixel, found {channels} channels with the colours "
        f"{listed}{more}",
        "replace each colour by the number of its class and save a PNG of one channel",
    )  # fmt: skip


def _lossy(path: Path, form: str) -> FileFaultError:
    return FileFaultError(
        "lossy label", path,
        f"must be stored without loss, as PNG, TIFF, BMP or .npy, found {form}, which changes "
        "numbers", "make it again as a PNG (a converted JPEG keeps its errors)",
    )  # fmt: skip
