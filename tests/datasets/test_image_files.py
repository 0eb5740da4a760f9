"""Image files from untrusted sources: formats by content, bounded sizes, broken metadata."""

import io
import os
import struct
import subprocess
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from gatesearch.datasets import image_files
from gatesearch.datasets.image_files import convert_to_rgb, read_image, read_user_file
from gatesearch.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes) -> bytes:
    """The picture as PNG, with chunks after its header."""
    whole = encoded("PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def large_png(width: int, height: int) -> bytes:
    """A PNG of one grey, of which each megapixel takes about 1 kB."""
    squeezed = zlib.compressobj(9)
    rows = [squeezed.compress(bytes(1 + width)) for _ in range(height)]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"".join([*rows, squeezed.flush()])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def segment(marker: bytes, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + marker + struct.pack(">H", len(data) + 2) + data


def jpeg_with(*segments: bytes) -> bytes:
    whole = encoded("JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def jpeg_of_scans(count: int) -> bytes:
    """A JPEG whose last scan comes several times."""
    whole = encoded("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    scans = whole.count(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (count - scans + 1) + whole[-2:]


def read(path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    return np.asarray(convert_to_rgb(read_image(path), path))


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
     ("WEBP", {"lossless": True})],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["png", "jpg", "eps", "txt"])
def test_the_format_is_that_of_the_content_whatever_the_name(tmp_path, form, options, ending):
    np.testing.assert_array_equal(read(tmp_path / f"x.{ending}", encoded(form, **options)), PIXELS)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "%!PS-Ado"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS", "xc5"),
        (b"%PDF-1.7", "%PDF-1.7"),
        (encoded("GIF"), "GIF87a"),
        (encoded("PPM"), "P6"),
        (encoded("TGA"), "begins with"),
        (b"<svg/>", "<svg/>"),
        (b"", "b''"),
    ],
)
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.eps", "x"])
def test_other_formats_are_refused_by_name_and_start_no_program(
    tmp_path, monkeypatch, data, found, name
):
    def start(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(DataError, match="JPEG, PNG, BMP, WEBP or TIFF, found a file that") as error:
        read(tmp_path / name, data)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"tEXt", b"note\0" + b"a" * 3_000_000),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0"),
        chunk(b"pHYs", b"a"),
        chunk(b"gAMA", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"tEXt", b"note\0text")[:-1] + b"x",
    ],
    ids=["zTXt", "iTXt", "long text", "profile", "EXIF", "pHYs", "gAMA", "acTL", "sum"],
)
def test_pixels_are_read_whatever_the_metadata_of_a_png(tmp_path, metadata):
    np.testing.assert_array_equal(read(tmp_path / "x.png", png_with(metadata)), PIXELS)


@pytest.mark.parametrize(
    "metadata",
    [
        segment(b"\xe1", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0"),
        segment(b"\xe1", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\5abcde"),
        segment(b"\xe2", b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\1\0\4\0\0\0\1\0\0\0\5\0\0\0\0"),
        segment(b"\xe2", b"ICC_PROFILE\0\1"),
        segment(b"\xed", b"Photoshop 3.0\x008BIM\x04"),
        segment(b"\xee", b"Adobe"),
        segment(b"\xe0", b"JFIF\0"),
        segment(b"\xfe", b""),
    ],
    ids=["EXIF cut", "EXIF type", "MPF", "ICC", "Photoshop", "Adobe", "JFIF", "comment"],
)
def test_pixels_are_read_whatever_the_metadata_of_a_jpeg(tmp_path, metadata):
    plain = read(tmp_path / "plain.jpg", encoded("JPEG"))
    np.testing.assert_array_equal(read(tmp_path / "x.jpg", jpeg_with(metadata)), plain)


def test_what_follows_a_jpeg_does_not_matter(tmp_path):
    """Phones put a video behind the image, which may hold any bytes."""
    plain = read(tmp_path / "plain.jpg", encoded("JPEG"))
    behind = encoded("JPEG") + b"video" + b"\xff\xda" * 1000
    np.testing.assert_array_equal(read(tmp_path / "x.jpg", behind), plain)
    note = jpeg_with(segment(b"\xe4", b"\xff\xda" * 1000))
    np.testing.assert_array_equal(read(tmp_path / "x.jpg", note), plain)
    assert read(tmp_path / "x.jpg", jpeg_of_scans(100)).shape == PIXELS.shape


def test_the_rotation_outlives_other_broken_metadata(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    whole = encoded("JPEG", exif=exif)
    path = tmp_path / "x.jpg"
    path.write_bytes(whole[:2] + segment(b"\xe2", b"ICC_PROFILE\0\1") + whole[2:])
    assert read_image(path).getexif()[ExifTags.Base.Orientation] == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_with()[:8] + chunk(b"IHDR", b"\0\0\0\1") + png_with()[33:], "PNG.*IHDR"),
        (encoded("PNG")[:60], "cannot be read as an image"),
        (encoded("JPEG")[:300], "cannot be read as an image"),
        (encoded("TIFF")[:50], "cannot be read as an image"),
        (b"\xff\xd8\xff", "cannot be read as an image"),
        (b"II*\0", "cannot be read as an image"),
        (jpeg_of_scans(101), "at most 100 scans"),
    ],
)
def test_pixels_that_cannot_be_read_are_an_error_of_data(tmp_path, data, message):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "x", data)
    assert "\n" not in str(error.value)


def test_a_damaged_tiff_says_nothing_itself(tmp_path, capfd):
    whole = bytearray(encoded("TIFF", compression="tiff_deflate"))
    start = whole.index(b"\x78")
    whole[start + 4 : start + 40] = bytes(36)
    with pytest.raises(DataError, match="cannot be read as an image"):
        read(tmp_path / "x.tif", bytes(whole))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(12_000, 12_000), (2**26 + 1, 1), (100_000, 100_000)])
def test_the_size_is_compared_before_pixels_are_decoded(tmp_path, monkeypatch, size):
    """144 megapixels in 420 kB took 26 s."""
    data = bytearray(large_png(1, 1))
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DataError, match="must have at most 67 million pixels, found"):
        read(tmp_path / "x.png", bytes(data))


def test_the_bound_itself_is_allowed(tmp_path):
    (tmp_path / "x.png").write_bytes(large_png(30, 20))
    assert read_image(tmp_path / "x.png", max_pixels=600).size == (30, 20)
    with pytest.raises(DataError, match="found 30 x 20"):
        read_image(tmp_path / "x.png", max_pixels=599)


def test_a_large_tile_of_a_small_tiff_is_refused(tmp_path):
    squeezed = zlib.compress(bytes(64))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 322: 2**16, 323: 2**15, 324: 8,
            325: len(squeezed)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 8 + len(squeezed)) + squeezed
    (tmp_path / "x.tif").write_bytes(data + struct.pack("<H", len(tags)) + entries + bytes(4))
    with pytest.raises(DataError, match="must have at most 67 million pixels"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_of_8_bits_become_rgb(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "x", "TIFF" if mode == "CMYK" else "PNG")
    shown = np.asarray(convert_to_rgb(read_image(tmp_path / "x"), tmp_path / "x"))
    np.testing.assert_array_equal(shown, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)),
        Image.fromarray(np.linspace(0, 65535, 48).reshape(6, 8).astype(np.int32)),
        Image.fromarray(np.linspace(0, 1, 48).reshape(6, 8).astype(np.float32)),
        Image.fromarray(PIXELS).convert("LAB"),
    ],
    ids=["16 bit", "32 bit", "float", "LAB"],
)
def test_other_modes_are_refused_by_name(tmp_path, image):
    image.save(tmp_path / "x", "TIFF")
    with pytest.raises(DataError, match=f"must have 8 bits a channel, .* mode {image.mode}"):
        convert_to_rgb(read_image(tmp_path / "x"), tmp_path / "x")


def test_links_to_images_are_followed_and_other_things_refused(tmp_path):
    (tmp_path / "real.png").write_bytes(encoded("PNG"))
    (tmp_path / "link.png").symlink_to("real.png")
    (tmp_path / "second.png").symlink_to("link.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "second.png")), PIXELS)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "to_pipe.png").symlink_to("pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, found in [
        ("pipe", "found a named pipe"), ("to_pipe", "found a named pipe"),
        ("folder", "found a folder"), ("zero", "found a device"),
        ("loop", "found a symbolic link"), ("missing", "No such file"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=rf"{name}\.png .*{found}"):
            read_image(tmp_path / f"{name}.png")


def test_files_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bytes(100))
    assert read_user_file(tmp_path / "x", limit=100) == bytes(100)
    monkeypatch.setattr(image_files, "LARGEST_IMAGE_FILE", 99)
    with pytest.raises(DataError, match="must have at most"):
        read_image(tmp_path / "x")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "TIFF"]),
    where=st.floats(0, 1),
    skip=st.integers(0, 12),
    junk=st.binary(max_size=12),
)
def test_damage_of_any_kind_is_an_error_of_data(tmp_path, form, where, skip, junk):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    whole = encoded(form) if form == "BMP" else encoded(form, exif=exif)
    at = int(where * len(whole))
    with suppress(DataError):
        pixels = read(tmp_path / "x", whole[:at] + junk + whole[at + skip :])
        assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
