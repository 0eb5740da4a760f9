"""Images of a user's own: colours, orientation, and what is refused by name."""

import numpy as np
import pytest
from PIL import Image

from gatesearch.datasets.folder.photos import read_photo
from gatesearch.errors import DataError
from tests.datasets.test_image_files import large_png

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
GREY = RGB[..., 0]


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return read_photo(tmp_path / name)


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tif"])
def test_colours_are_kept(tmp_path, name):
    photo = saved(tmp_path, Image.fromarray(RGB), name)
    np.testing.assert_array_equal(photo.pixels, RGB)
    assert not photo.is_grey


def test_grey_becomes_three_equal_channels_and_is_told(tmp_path):
    photo = saved(tmp_path, Image.fromarray(GREY))
    np.testing.assert_array_equal(photo.pixels, np.repeat(GREY[..., None], 3, 2))
    assert photo.is_grey


def test_cmyk_is_converted(tmp_path):
    cmyk = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    np.testing.assert_array_equal(
        saved(tmp_path, cmyk, "x.tif").pixels, np.full((3, 4, 3), (255, 0, 0))
    )


def test_an_opaque_image_may_have_alpha_and_a_transparent_one_is_refused(tmp_path):
    opaque = Image.fromarray(np.dstack([RGB, np.full((6, 8), 255, np.uint8)]))
    np.testing.assert_array_equal(saved(tmp_path, opaque).pixels, RGB)
    opaque.putpixel((0, 0), (1, 2, 3, 254))
    with pytest.raises(DataError, match="no transparent pixels, found some; lay the image over"):
        saved(tmp_path, opaque)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)), (8, np.rot90), (0, lambda a: a),
        (99, lambda a: a),
    ],
)  # fmt: skip
def test_an_image_is_turned_upright(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[274] = orientation
    photo = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    np.testing.assert_array_equal(photo.pixels, turn(RGB))
    assert photo.is_turned == (orientation in (5, 6, 7, 8))


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("x.png", Image.fromarray(GREY.astype(np.uint16)), "found 16-bit grey; scale it to 0..255"),
        ("x.tif", Image.fromarray(GREY.astype(np.uint16)), "found 16-bit grey"),
        ("x.tif", Image.fromarray(GREY.astype(np.float32)), "found floats"),
        ("x.tif", Image.fromarray(GREY.astype(np.int32)), "found whole numbers of 32 bits"),
    ],
)
def test_more_than_8_bits_are_refused_by_name(tmp_path, name, image, said):
    with pytest.raises(DataError, match=said):
        saved(tmp_path, image, name)


def test_several_pages_are_refused(tmp_path):
    with pytest.raises(DataError, match="one image, found 2"):
        saved(tmp_path, Image.fromarray(RGB), "x.tif", save_all=True,
              append_images=[Image.fromarray(RGB)])  # fmt: skip


def test_hostile_files_are_refused(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "huge.jpg").write_bytes(large_png(9000, 9000))
    (tmp_path / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    whole = tmp_path / "cut.jpg"
    Image.fromarray(RGB).save(whole)
    whole.write_bytes(whole.read_bytes()[:-40])
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match=path.name):
            read_photo(path)
