"""How cameras store images: turned or mirrored, as the EXIF orientation of the file says.

EXIF counts orientations from 1 to 8: 1 is upright, 2, 4, 5 and 7 are mirrored, and 5 to 8 are
turned by a quarter, which exchanges height and width.
"""

import warnings

from PIL import Image

UPRIGHT = 1
_TAG = 0x0112  # of EXIF and TIFF
# Orientation -> how the stored image is turned upright (EXIF 2.32).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)


def orientation_of(image: Image.Image) -> int:
    """Read how an image file is stored, 1 to 8; `UPRIGHT` where its metadata do not say.

    That of a TIFF is `UPRIGHT`, as Pillow gives its size and its pixels upright.
    """
    if image.format == "TIFF":
        return UPRIGHT
    with warnings.catch_warnings(action="ignore"):  # about damaged metadata
        try:
            orientation = image.getexif().get(_TAG, UPRIGHT)
        # What Pillow raises on damaged metadata is an open set.
        except Exception:
            return UPRIGHT
    is_known = isinstance(orientation, int) and 1 <= orientation <= 8
    return orientation if is_known else UPRIGHT


def exchanges_sides(orientation: int) -> bool:
    """Whether turning an image upright exchanges its height and width."""
    return orientation in _TURNED


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image that is stored in an orientation (`orientation_of`) upright."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image once it is turned upright."""
    is_turned = exchanges_sides(orientation_of(image))
    return (image.width, image.height) if is_turned else (image.height, image.width)
