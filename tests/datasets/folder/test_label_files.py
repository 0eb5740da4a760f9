"""Label files of a user's own: every number as it is stored, or a refusal by name."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gatesearch.datasets.folder.label_files import read_label
from gatesearch.errors import DataError
from tests.datasets.test_image_files import chunk

CLASSES = np.arange(12, dtype=np.uint8).reshape(3, 4)
DEEP = np.array([[0, 1, 1000], [65535, 256, 4660]], np.uint16)
FLOATS = np.array([[0, 1.5, np.inf], [-1, 0.1, 80]], np.float32)


def palette(array):
    """An image of colours in no order, whose indices are the numbers."""
    image = Image.fromarray(array).convert("P")
    image.putdata(array.ravel().tolist())
    image.putpalette([c for i in range(256) for c in (255 - i, i * 7 % 256, i * 31 % 256)])
    return image


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("grey.png", Image.fromarray(CLASSES), CLASSES),
        ("palette.png", palette(CLASSES), CLASSES),
        ("deep.png", Image.fromarray(DEEP), DEEP),
        ("one_bit.png", Image.fromarray(CLASSES > 5), CLASSES > 5),
        ("grey.bmp", Image.fromarray(CLASSES), CLASSES),
        ("palette.bmp", palette(CLASSES), CLASSES),
        ("grey.tif", Image.fromarray(CLASSES), CLASSES),
        ("palette.tif", palette(CLASSES), CLASSES),
        ("deep.tif", Image.fromarray(DEEP), DEEP),
        ("float.tif", Image.fromarray(FLOATS), FLOATS),
        ("int.tif", Image.fromarray(DEEP.astype(np.int32)), DEEP),
        ("same_channels.png", Image.merge("RGB", [Image.fromarray(CLASSES)] * 3), CLASSES),
        ("grey_opaque.png", Image.merge("LA", [Image.fromarray(CLASSES),
                                               Image.new("L", (4, 3), 255)]), CLASSES),
    ],
)  # fmt: skip
def test_every_number_is_the_one_that_is_stored(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    for file in (tmp_path / name, (tmp_path / name).rename(tmp_path / "other.dat")):
        if file.exists():
            read = read_label(file)
            np.testing.assert_array_equal(read, expected)
            assert read.dtype.isnative


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_narrow_palettes(tmp_path, bits):
    array = CLASSES % 2**bits
    palette(array).save(tmp_path / "x.png", bits=bits)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), array)


@pytest.mark.parametrize("array", [CLASSES, DEEP, FLOATS, CLASSES[..., None], CLASSES.T,
                                   DEEP.astype(">u2"), CLASSES > 5])  # fmt: skip
def test_numpy_files_whatever_their_name(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    (tmp_path / "x.npy").rename(tmp_path / "x.png")
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), array.squeeze())


def test_three_numbers_per_pixel_where_the_task_has_them(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", colours.astype(np.float32))
    for name in ("x.png", "x.npy"):
        np.testing.assert_array_equal(read_label(tmp_path / name, channels=3), colours)
    for shape in ((1, 12, 16), (3, 12, 16)):
        np.save(tmp_path / "first.npy", np.ones(shape, np.uint8))
        with pytest.raises(DataError, match=rf"shape \(H, W\), found \({shape[0]}, 12, 16\)"):
            read_label(tmp_path / "first.npy")
    Image.fromarray(CLASSES).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"shape \(H, W, 3\), found \(3, 4\)"):
        read_label(tmp_path / "grey.png", channels=3)


COLOURED = np.zeros((4, 5, 3), np.uint8)
COLOURED[0, 0], COLOURED[1:] = (255, 0, 0), (0, 128, 0)


TURNED = Image.Exif()
TURNED[274] = 6


def half_transparent():
    alpha = np.full((3, 4), 255, np.uint8)
    alpha[0, 0] = 7
    return Image.merge("LA", [Image.fromarray(CLASSES), Image.fromarray(alpha)])


@pytest.mark.parametrize(
    ("name", "image", "options", "said"),
    [
        ("x.jpg", Image.fromarray(CLASSES), {},
         "without loss, as PNG, TIFF, BMP or .npy, found JPEG"),
        ("x.webp", Image.fromarray(COLOURED), {"quality": 50}, "found WEBP"),
        ("x.tif", Image.fromarray(CLASSES), {"compression": "jpeg"},
         "found TIFF compressed by JPEG"),
        ("x.png", Image.fromarray(COLOURED), {},
         "3 channels with the colours (0, 128, 0), (0, 0, 0), (255, 0, 0)"),
        ("x.png", half_transparent(), {}, "2 channels with the colours"),
        ("x.png", Image.fromarray(CLASSES), {"exif": TURNED},
         "upright, found EXIF orientation 6"),
        ("x.tif", Image.fromarray(CLASSES), {"save_all": True, "append_images": [
            Image.fromarray(CLASSES)]}, "one label, found 2"),
        ("x.tif", Image.new("CMYK", (4, 3)), {}, "one channel, found Pillow's mode CMYK"),
    ],
)  # fmt: skip
def test_what_changes_or_mixes_numbers_is_refused_with_the_cure(
    tmp_path, name, image, options, said
):
    image.save(tmp_path / name, **options)
    with pytest.raises(DataError) as error:
        read_label(tmp_path / name)
    assert said in str(error.value)
    assert "; " in str(error.value)


def test_files_that_are_no_label(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("class 3")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match=path.name):
            read_label(path)


def test_a_link_in_a_users_own_folder_is_followed(tmp_path):
    Image.fromarray(CLASSES).save(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    np.testing.assert_array_equal(read_label(tmp_path / "link.png"), CLASSES)


def test_a_turned_tiff_is_read_upright(tmp_path):
    Image.fromarray(CLASSES).save(tmp_path / "x.tif", tiffinfo={274: 6})
    np.testing.assert_array_equal(read_label(tmp_path / "x.tif"), np.rot90(CLASSES, -1))


def test_colour_of_16_bits_is_refused_as_it_would_be_cut_to_8(tmp_path):
    """Pillow reads 256 in all three channels as 1."""
    row = b"\0" + b"\1\0" * 3 * 4
    header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress(row * 2)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for channels in (1, 3):
        with pytest.raises(DataError, match=r"found several of more; save it as a \.npy"):
            read_label(tmp_path / "x.png", channels=channels)
