"""Reads image files from untrusted sources: a few formats, bounded sizes, metadata may be broken.

Every image file that gatesearch opens is opened here. The format is told from the file's first
bytes, never from its name, so that no file reaches a decoder that is not in `FORMATS` (Pillow would
hand PostScript to another program).
"""

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from gatesearch.datasets.png_file import check_png, png_chunks
from gatesearch.errors import DataError, one_line
from gatesearch.files import MIB, FileRefusedError, open_regular, read_bytes

# Largest image file that is read, bytes; 64 megapixels of RGB take 192 MiB without compression.
LARGEST_IMAGE_FILE = 256 * MIB
# Most pixels of an image: phones and cameras make up to 61 million.
MAX_PIXELS = 2**26
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
# Modes of Pillow with 8 bits a channel (or 1 bit, or a palette), whose colours are well defined.
_COLOUR_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
# Progressive JPEGs have about ten scans; each one costs the decoder a pass over all pixels.
_MAX_SCANS = 100
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# Neither a byte of a scan that happens to be 255, nor a mark inside a scan, nor padding.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_ADOBE_BYTES = 16  # of a whole segment that says how a JPEG codes its colours
_HEADER_BYTES = 2**18
_STDERR = 2  # descriptor
_stderr_lock = threading.Lock()
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF


def read_user_file(path: Path, *, limit: int) -> bytes:
    """Read a file of the user's, which may be a link to a file elsewhere.

    Args:
        path: The file.
        limit: Its largest size, bytes.

    Raises:
        DataError: It is missing, no regular file, larger, or cannot be read.
    """
    try:
        return read_bytes(Path(os.path.realpath(path)), limit=limit)
    except FileRefusedError as error:
        raise DataError(f"{path} {error.fault}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error


def read_user_start(path: Path, count: int) -> bytes:
    """Read the first bytes of a file of the user's; see `read_user_file`.

    Raises:
        DataError: It is missing, no regular file, or cannot be read.
    """
    try:
        with os.fdopen(open_regular(Path(os.path.realpath(path))), "rb") as file:
            return file.read(count)
    except FileRefusedError as error:
        raise DataError(f"{path} {error.fault}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error


def read_image(
    path: Path, *, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read an image file; its pixels are decoded before this returns. See `decode_image`."""
    data = read_user_file(path, limit=LARGEST_IMAGE_FILE)
    return decode_image(data, path, formats=formats, max_pixels=max_pixels)


def decode_image(
    data: bytes, path: Path, *, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the content of an image file.

    If the file cannot be opened as it is, it is opened again without its metadata (texts, colour
    profiles, a camera's notes), which no pixel depends on.

    Args:
        data: Content of the file.
        path: The file, for errors.
        formats: Formats that are accepted, a part of `FORMATS`.
        max_pixels: Most pixels that are decoded; the size is compared before decoding.

    Raises:
        DataError: Another format, too many pixels, or damaged pixels.
    """
    name = format_of(data)
    if name not in formats:
        found = name or f"a file that begins with {data[:8]!r}"
        raise DataError(
            f"{path} must be an image in the format {_either(formats)}, found {found}; convert it"
        )
    if name == "JPEG" and _has_many_scans(data):
        raise DataError(f"{path} must have at most {_MAX_SCANS} scans, found more; convert it")
    # Pillow warns of odd metadata, and of sizes below our bound.
    with warnings.catch_warnings(action="ignore"):
        return _decode(data, name, path, max_pixels)


def peek_image(path: Path) -> Image.Image | None:
    """Open the header of an image file, without its pixels: mode, size and metadata.

    Returns:
        An image whose pixels are not there; None if its first bytes do not tell.

    Raises:
        DataError: It is missing, no regular file, or cannot be read.
    """
    data = read_user_start(path, _HEADER_BYTES)
    name = format_of(data)
    if name is None:
        return None
    with warnings.catch_warnings(action="ignore"):
        try:
            return Image.open(io.BytesIO(data), formats=(name,))
        # What Pillow raises on damaged input is an open set.
        except Exception:
            return None


def convert_to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert an image to RGB of 8 bits per channel.

    Grey values become equal red, green and blue; the colours of a palette are looked up; CMYK is
    converted by Pillow's formula; transparency is left out, which leaves the stored colours. Colour
    of 16 bits per channel has been scaled to 8 by Pillow as it was decoded.

    Raises:
        DataError: The image has other numbers than 8-bit colours, such as 16-bit grey or floats,
            whose black and white are not known.
    """
    if image.mode not in _COLOUR_MODES:
        raise DataError(
            f"{path} must have 8 bits a channel, grey or colour, found Pillow's mode "
            f"{image.mode}; convert it to an RGB PNG"
        )
    with warnings.catch_warnings(action="ignore"):  # about transparency in palettes
        return image.convert("RGB")


def format_of(data: bytes) -> str | None:
    """Tell the format of an image file from its first bytes; None if it is none of `FORMATS`."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)


_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


def _decode(data: bytes, name: str, path: Path, max_pixels: int) -> Image.Image:
    fault = ""
    for strip in (_as_it_is, *_STRIPPERS.get(name, ())):
        try:
            with _silent_libtiff() if name == "TIFF" else nullcontext():
                image = Image.open(io.BytesIO(strip(data)), formats=(name,))
                _check_size(image, path, max_pixels)
                if name == "PNG":
                    check_png(data)
                image.load()
        except Image.DecompressionBombError:
            raise _too_large(path, max_pixels, "many more") from None
        except DataError:
            raise
        except UnidentifiedImageError:
            fault = "its header is damaged"
        # What Pillow raises on damaged input is an open set.
        except Exception as error:
            fault = _reason(error)
        else:
            return image
    raise DataError(f"{path} cannot be read as an image ({name}): {fault}; get it again")


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Keep libtiff, which writes to standard error by itself, from doing so.

    One thread at a time: another would keep the replaced standard error for the true one.
    """
    with _stderr_lock:
        try:
            kept = os.dup(_STDERR)
        except OSError:  # closed
            yield
            return
        try:
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), _STDERR)
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)


def _check_size(image: ImageFile.ImageFile, path: Path, max_pixels: int) -> None:
    # A tile of a TIFF is decoded whole, and may be larger than the image.
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))
    if max(image.width * image.height, tile) > max_pixels:
        raise _too_large(path, max_pixels, f"{image.width} x {image.height}")


def _too_large(path: Path, max_pixels: int, found: str) -> DataError:
    return DataError(
        f"{path} must have at most {max_pixels / 1e6:.0f} million pixels, found {found}; "
        "make it smaller"
    )


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more scans than any real one, up to the end of its (first) image."""
    scans, at = 0, 2
    while scans <= _MAX_SCANS:
        marker = _JPEG_MARKER.search(data, at)
        if marker is None or marker.group() == _JPEG_END:
            return False
        scans += marker.group() == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True


def _as_it_is(data: bytes) -> bytes:
    return data


def _without_png_metadata(data: bytes) -> bytes:
    keep = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
    return data[:8] + b"".join(chunk for chunk in png_chunks(data) if chunk[4:8] in keep)


def _without_jpeg_metadata(data: bytes, *, keep_exif: bool = False) -> bytes:
    """Leave out comments and applications' segments, but a whole one that names the colours."""
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != _JPEG_SCAN:
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        segment = data[at:end]
        names_colours = segment[1:2] == b"\xee" and len(segment) >= _ADOBE_BYTES
        is_exif = segment[1:2] == b"\xe1" and segment[4:10] == b"Exif\0\0"
        is_metadata = b"\xe0" <= segment[1:2] <= b"\xef" or segment[1:2] == b"\xfe"
        if not is_metadata or names_colours or (keep_exif and is_exif):
            kept.append(segment)
        at = end
    return b"".join([*kept, data[at:]])


# What is tried in turn on a file that cannot be opened with all its metadata. The first attempt
# keeps what says how the camera was turned.
_STRIPPERS: dict[str, tuple[Callable[[bytes], bytes], ...]] = {
    "PNG": (_without_png_metadata,),
    "JPEG": (partial(_without_jpeg_metadata, keep_exif=True), _without_jpeg_metadata),
}


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _reason(error: Exception) -> str:
    """Say in one line why a file cannot be read."""
    return (isinstance(error, OSError) and error.strerror) or one_line(error)
