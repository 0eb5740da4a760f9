"""Checks that a PNG holds all its pixels, unchanged.

Pillow compares no checksum of pixels, and leaves pixels that are missing at the end black.
"""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE_BYTES = 8
_HEADER, _PIXELS = b"IHDR", b"IDAT"
_HEADER_BYTES = 13
# Colour type -> values per pixel: grey, RGB, palette, grey and RGB with transparency.
_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Passes of an interlaced image: first row and column, and steps between rows and columns.
_PASSES = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
    (1, 0, 2, 1),
)  # fmt: skip
_WHOLE = ((0, 0, 1, 1),)
_PIECE = 2**20


def png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG: length, name, content, checksum."""
    at = _SIGNATURE_BYTES
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at:end]
        at = end


def check_png(data: bytes) -> None:
    """Refuse a PNG of which pixels are missing or were changed.

    Args:
        data: Content of the file.

    Raises:
        ValueError, zlib.error: It does not begin with its only header, a checksum of pixels
            differs, or the pixels end early. Other damage is left to the decoder.
    """
    header, decoder, count = b"", zlib.decompressobj(), 0
    for chunk in png_chunks(data):
        name, content = chunk[4:8], chunk[8:-4]
        if (name == _HEADER) != (not header) or (not header and len(content) != _HEADER_BYTES):
            raise ValueError("it must begin with its only header, IHDR")
        header = header or content
        if name == _PIXELS:
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise ValueError("pixels were changed: their checksum differs")
            count += _count_inflated(decoder, content)
        elif count:
            break  # a decoder reads the first unbroken sequence; later ones are of an animation
    missing = _pixel_bytes(header) - count
    if missing > 0:
        raise ValueError(f"the last {missing} bytes of its pixels are missing")


def _pixel_bytes(header: bytes) -> int:
    """Bytes of the pixels before compression; 0 for a header that no decoder accepts."""
    width, height, bits, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits_per_pixel = bits * _VALUES.get(colour_type, 0)
    total = 0
    for row, column, row_step, column_step in _PASSES if interlaced else _WHOLE:
        rows = max(0, -(-(height - row) // row_step))
        columns = max(0, -(-(width - column) // column_step))
        if columns:
            total += rows * (1 + -(-columns * bits_per_pixel // 8))  # one byte names the filter
    return total if bits_per_pixel else 0


def _count_inflated(decoder: "zlib._Decompress", compressed: bytes) -> int:
    """Bytes that the next part of the pixels inflates to, a piece in memory at a time."""
    count = 0
    while compressed and not decoder.eof:
        count += len(decoder.decompress(compressed, _PIECE))
        compressed = decoder.unconsumed_tail
    return count
