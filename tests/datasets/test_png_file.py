"""PNG files that lack pixels, or whose pixels were changed, though a decoder takes them."""

import struct
import zlib

import numpy as np
import pytest

from gatesearch.datasets.image_files import read_image
from gatesearch.datasets.label_checks import read_label_map
from gatesearch.errors import DataError

# Rows that compress well: a changed bit then often gives another stream that can be inflated.
LABELS = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((3, 5), np.uint8))
HEIGHT, WIDTH = LABELS.shape
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def header(*, bits=8, colour_type=0, interlaced=0, size=LABELS.shape):
    content = struct.pack(">IIBBBBB", size[1], size[0], bits, colour_type, 0, 0, interlaced)
    return chunk(b"IHDR", content)


def rows(pixels):
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced_rows(pixels):
    """All rows of the seven passes, as the specification of PNG lists them."""
    passes = [
        pixels[0::8, 0::8], pixels[0::8, 4::8], pixels[4::8, 0::4], pixels[0::4, 2::4],
        pixels[2::4, 0::2], pixels[0::2, 1::2], pixels[1::2, 0::1],
    ]  # fmt: skip
    return b"".join(rows(part) for part in passes if part.size)


def png(content, *between, head=None, level=9):
    pixels = chunk(b"IDAT", zlib.compress(content, level))
    return SIGNATURE + (head or header()) + b"".join(between) + pixels + chunk(b"IEND", b"")


def read(path, data):
    path.write_bytes(data)
    return read_label_map(path)


@pytest.mark.parametrize("data", [
    png(rows(LABELS)),
    png(rows(LABELS), chunk(b"tEXt", b"a\0b")),
    png(rows(LABELS) + bytes(1000)),
    png(rows(LABELS))[:-12],
    png(interlaced_rows(LABELS), head=header(interlaced=1)),
], ids=["plain", "with a text", "more than the pixels", "no end", "interlaced"])  # fmt: skip
def test_whole_files_are_read(tmp_path, data):
    np.testing.assert_array_equal(read(tmp_path / "x.png", data), LABELS)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (8, 8)])
@pytest.mark.parametrize("form", ["plain", "interlaced"])
def test_images_of_any_size_are_whole_by_the_byte(tmp_path, size, form):
    pixels = np.arange(1, 1 + size[0] * size[1], dtype=np.uint8).reshape(size)
    content = interlaced_rows(pixels) if form == "interlaced" else rows(pixels)
    head = header(interlaced=int(form == "interlaced"), size=size)
    whole = read(tmp_path / "x.png", png(content, head=head))
    np.testing.assert_array_equal(whole, pixels)
    with pytest.raises(DataError, match="the last 1 bytes of its pixels are missing"):
        read(tmp_path / "x.png", png(content[:-1], head=head))


@pytest.mark.parametrize("rows_kept", [0, 1, HEIGHT // 2, HEIGHT - 1])
@pytest.mark.parametrize("colour", ["grey", "RGB"])
def test_missing_rows_are_refused(tmp_path, rows_kept, colour):
    """Pillow leaves them black, which in labels is a class, or ignored."""
    content = rows(LABELS) if colour == "grey" else rows(np.stack([LABELS] * 3, axis=-1))
    row_bytes = len(content) // HEIGHT
    head = header(colour_type=0 if colour == "grey" else 2)
    (tmp_path / "x.png").write_bytes(png(content[: rows_kept * row_bytes], head=head))
    missing = (HEIGHT - rows_kept) * row_bytes
    with pytest.raises(DataError, match=f"the last {missing} bytes of its pixels are missing"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("level", [0, 9])
def test_every_changed_bit_of_the_pixels_is_found(tmp_path, level):
    """Pillow compares no checksum of pixels: a third of these files gave other labels."""
    data = png(rows(LABELS), level=level)
    for at in range(8 * data.index(b"IDAT"), 8 * (len(data) - 12)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(DataError) as error:
            read(tmp_path / "x.png", bytes(flipped))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("between", [
    header(bits=8), header(bits=4), header(size=(HEIGHT - 1, WIDTH)),
], ids=["the same", "other bits", "fewer rows"])  # fmt: skip
def test_a_second_header_is_refused(tmp_path, between):
    """Pillow takes the last header, and what reads the first one finds other numbers."""
    with pytest.raises(DataError, match="must begin with its only header"):
        read(tmp_path / "x.png", png(rows(LABELS), between))
