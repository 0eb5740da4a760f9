"""Read the images of a user's own: colours as a screen shows them, upright, 8 bits a channel."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gatesearch.datasets.faults import FileFaultError
from gatesearch.datasets.image_files import (
    convert_to_rgb,
    has_transparent_pixels,
    read_image,
    read_user_start,
)
from gatesearch.datasets.orientation import exchanges_sides, orientation_of, turn_upright

_DEEP_MODES = {
    "I;16": "16-bit grey", "I;16B": "16-bit grey", "I;16L": "16-bit grey",
    "I;16N": "16-bit grey", "I": "whole numbers of 32 bits", "F": "floats",
}  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """An image.

    Attributes:
        pixels: (H, W, 3) uint8, turned upright as its EXIF orientation says.
        is_grey: Whether the file has no colours.
        orientation: How the stored image was turned, as EXIF counts; 1 is not at all.
    """

    pixels: NDArray[np.uint8]
    is_grey: bool
    orientation: int

    @property
    def is_turned(self) -> bool:
        """Whether turning it upright exchanged height and width."""
        return exchanges_sides(self.orientation)


def read_photo(path: Path) -> Photo:
    """Read an image file: JPEG, PNG, WebP, TIFF or BMP, of colour, grey, palette or CMYK.

    Raises:
        DataError: It cannot be read, has 16-bit grey or floats, transparent pixels, or several
            pages.
    """
    read_start(path, 1)
    image = read_image(path)
    check_photo(image, path)
    if has_transparent_pixels(image):
        raise FileFaultError(
            "transparent image", path, "must have no transparent pixels, found some",
            "lay the image over a background and save it without transparency",
        )  # fmt: skip
    orientation = orientation_of(image)
    pixels = np.array(turn_upright(convert_to_rgb(image, path), orientation))
    return Photo(pixels, is_grey(image), orientation)


def read_start(path: Path, count: int) -> bytes:
    """Read the first bytes of a file.

    Raises:
        DataError: It cannot be read, or is empty.
    """
    start = read_user_start(path, count)
    if not start:
        raise FileFaultError(
            "empty file", path, "must hold an image, found 0 bytes", "get the file again"
        )
    return start


def check_photo(image: Image.Image, path: Path) -> None:
    """Refuse an image whose black and white are not known, or of several pages.

    Raises:
        FileFaultError: It has 16-bit grey, floats, or several pages.
    """
    if image.mode in _DEEP_MODES:
        raise FileFaultError(
            "image of more than 8 bits", path,
            f"must have 8 bits per channel, found {_DEEP_MODES[image.mode]}",
            "scale it to 0..255 and save it as an 8-bit PNG or JPEG",
        )  # fmt: skip
    pages = getattr(image, "n_frames", 1)
    if image.format in ("TIFF", "WEBP", "PNG") and pages > 1:
        raise FileFaultError(
            "several images in one file", path, f"must hold one image, found {pages}",
            "save each one to a file of its own",
        )  # fmt: skip


def is_grey(image: Image.Image) -> bool:
    """Whether an image file stores no colours."""
    return image.mode in ("1", "L", "LA", "La")
