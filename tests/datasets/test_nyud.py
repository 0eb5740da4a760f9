"""NYUD-v2: two layouts, three kinds of source, one pack; and what is refused."""

import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, check_pack, ensure_pack
from gatesearch.errors import DataError, UsageError
from gatesearch.events import Warned
from tests.nyud_layouts import IDS, SIZE, WRITERS, packed, raw_frame, write_mtan, write_nyud_mt

NYUD = DATASETS["nyud"]


def prepare(data, source, *, size=None, train=0, test=0, emit=lambda event: None):
    request = PackRequest(size, train, test)
    folder = NYUD.prepare(folder=data, source=source, request=request, emit=emit)
    return check_pack(folder)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("shape", ["folder", "nested", "tar", "tgz", "zip"])
def test_every_kind_of_source_gives_the_same_pack(tmp_path, layout, shape):
    outer = tmp_path / "outer"
    folder = WRITERS[layout](outer / "release")
    source = {"folder": folder, "nested": outer}.get(shape)
    source = source or packed(folder, tmp_path / f"release.{shape}")
    pack = prepare(tmp_path / "data", source)
    assert pack.digest == prepare(tmp_path / "plain", folder).digest
    assert pack.name == {"nyud_mt": "nyud-40", "mtan": "nyud-13"}[layout]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [pack.name]


def test_both_layouts_hold_the_same_frames(tmp_path):
    one = prepare(tmp_path, write_nyud_mt(tmp_path / "a"))
    other = prepare(tmp_path, write_mtan(tmp_path / "b"))
    assert one.ids("train") == IDS["train"]
    assert other.ids("train") == ("0", "1", "2")
    assert (one.fields["semseg"].classes, other.fields["semseg"].classes) == (40, 13)
    for split in ("train", "test"):
        for field in one.fields:
            np.testing.assert_array_equal(one.array(split, field), other.array(split, field))


def test_encodings_by_hand(tmp_path):
    root = write_nyud_mt(tmp_path / "a")
    label = np.zeros(SIZE, np.uint8)
    label[:, 1:4], label[:, 4:] = 1, 40
    Image.fromarray(label).save(root / "segmentation" / "12.png")
    depth = np.full(SIZE, 2.5, np.float32)
    depth[0, :4] = np.nan, np.inf, -1, 0
    np.save(root / "depth" / "12.npy", depth)
    normals = np.zeros((*SIZE, 3), np.float64)
    normals[...] = 0, -0.6, -0.3
    normals[0, 0] = np.nan, 0, -1
    np.save(root / "normals" / "12.npy", normals)
    pack = prepare(tmp_path, root)
    position = pack.ids("train").index("12")
    stored = {field: pack.array("train", field)[position] for field in pack.fields}
    assert stored["semseg"][0].tolist() == [255, 0, 0, 0, 39, 39, 39, 39]
    assert stored["depth"][0].tolist() == [0, 0, 0, 0, 2.5, 2.5, 2.5, 2.5]
    assert stored["normals"][0, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(stored["normals"][1, 1], (0, -2 / 5**0.5, -1 / 5**0.5), atol=1e-3)
    # Derived edges: between classes 0 and 39, not beside ignored pixels.
    assert stored["edges"][0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_edges_of_the_release_come_first(tmp_path):
    pack = prepare(tmp_path, write_nyud_mt(tmp_path / "a", edges=True))
    expected = [raw_frame(int(name))["label"] == 1 for name in IDS["train"]]
    np.testing.assert_array_equal(pack.array("train", "edges"), expected)


def test_frames_that_lack_one_label_are_kept_and_told(tmp_path):
    root = write_nyud_mt(tmp_path / "a")
    np.save(root / "depth" / "7.npy", np.full(SIZE, np.nan, np.float32))
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "segmentation" / "12.png")
    events = []
    pack = prepare(tmp_path, root, emit=events.append)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert warnings == [
        "nyud: train frame 12: labels are ignored everywhere",
        "nyud: train frame 7: depth is unknown everywhere",
    ]
    assert "train: depth is unknown everywhere in 1 of 3 frames" in pack.manifest.notes
    assert "train: labels are ignored everywhere in 1 of 3 frames" in pack.manifest.notes
    assert "train: 3 of the 795 official frames" in pack.manifest.notes


def test_normals_in_other_axes_are_told(tmp_path):
    root = write_nyud_mt(tmp_path / "a")
    for path in (root / "normals").iterdir():
        np.save(path, -np.load(path))
    pack = prepare(tmp_path, root)
    assert any("100 % of the normals face away" in note for note in pack.manifest.notes)


def test_some_frames_spread_evenly(tmp_path):
    pack = prepare(tmp_path, write_nyud_mt(tmp_path / "a"), train=2, test=1)
    assert pack.ids("train") == ("0005", "12")
    assert pack.ids("test") == ("0001",)


def test_a_pack_at_another_size(tmp_path):
    pack = prepare(tmp_path, write_mtan(tmp_path / "a"), size=(3, 4))
    assert pack.size == (3, 4)
    lengths = np.linalg.norm(pack.array("train", "normals").astype(float), axis=-1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=2e-3)


def array(layout, name):
    """A file of the training frame that both layouts have."""
    return {"nyud_mt": f"{name[0]}/12.npy", "mtan": f"train/{name[1]}/1.npy"}[layout]


DEPTH, NORMALS = ("depth", "depth"), ("normals", "normal")


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        (DEPTH, None, "every listed frame needs all its files, missing .*{file}; get"),
        (DEPTH, b"", "{file} is missing or is no whole array"),
        (DEPTH, b"\x93NUMPY\x01\x00", "{file} is missing or is no whole array"),
        (DEPTH, b"\x80\x04\x95 a pickle", "{file} is missing or is no whole array"),
        (DEPTH, "cut", "{file} is missing or is no whole array"),
        (
            DEPTH,
            "object",
            "{file} is missing or is no whole array of plain numbers .*Python objects",
        ),
        (DEPTH, np.zeros(SIZE, "U3"), "{file} must hold numbers"),
        (DEPTH, np.zeros((6, 8, 2)), r"{file} must have shape \(H, W\), found \(6, 8, 2\)"),
        (DEPTH, np.zeros(()), "{file} must hold numbers"),
        (DEPTH, np.ones((8, 6)), "{file} must be as large as its image, 6 x 8, found 8 x 6"),
        (DEPTH, np.full(SIZE, 2300.0), "{file}: depth must be in metres, found up to 2300"),
        (NORMALS, np.ones(SIZE), r"{file} must have shape \(H, W, 3\), found \(6, 8\)"),
        (NORMALS, np.full((*SIZE, 3), 255), "{file}: normals must be unit vectors, .* 255"),
    ],
)
def test_bad_arrays_are_named(tmp_path, layout, which, content, message):
    root = WRITERS[layout](tmp_path / "a")
    path = root / array(layout, which)
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, np.array([[{"a": 1}]]), allow_pickle=True)
    with pytest.raises(DataError, match=message.format(file=path)):
        prepare(tmp_path / "data", root)
    assert not list((tmp_path / "data").glob("*"))


def edit_text(name, text):
    return lambda root: (root / "gt_sets" / name).write_text(text)


def save_labels(value):
    def damage(root):
        label = np.ones(SIZE, np.uint8)
        label[2, 3] = value
        Image.fromarray(label).save(root / "segmentation" / "12.png")

    return damage


def save_image(path, size, mode="RGB"):
    return lambda root: Image.new(mode, size[::-1]).save(root / path)


def cut(path, keep):
    def damage(root):
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: int(len(data) * keep)])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            save_labels(41),
            r"12\.png: labels must be whole numbers 0\.\.40 \(0 = ignore\), found 41",
        ),
        (save_labels(255), "found 255"),
        (
            save_image("segmentation/12.png", SIZE),
            r"12\.png: labels must have one channel, found RGB",
        ),
        (save_image("segmentation/12.png", (5, 8), "L"), r"12\.png must be as large as its image"),
        (save_image("images/12.jpg", (5, 8)), "must be as large as its image, 5 x 8, found 6 x 8"),
        (cut("images/12.jpg", 0.9), r"12\.jpg cannot be read as an image \(JPEG\)"),
        (cut("images/12.jpg", 0.3), r"12\.jpg cannot be read as an image \(JPEG\)"),
        (cut("segmentation/12.png", 0.6), r"12\.png cannot be read as an image \(PNG\)"),
        (
            lambda root: (root / "images/12.jpg").write_bytes(b"GIF89a"),
            r"12\.jpg must be an image in the format JPEG or PNG, found a file that .*GIF89a",
        ),
        (save_image("images/12.jpg", (1, 65000)), "must be as large as"),
        (
            save_image("images/12.jpg", (5000, 5000), "L"),
            r"12\.jpg must have at most 17 million pixels, found 5000 x 5000",
        ),
        (edit_text("train.txt", ""), r"train\.txt lists no frames"),
        (edit_text("val.txt", "\n \n"), r"val\.txt lists no frames"),
        (edit_text("train.txt", "12\n99\n"), r"missing .*images/99\.jpg and 3 more"),
        (edit_text("train.txt", "12\n12\n"), "list each frame once, found 12 twice"),
        (edit_text("train.txt", "0001\n12\n"), "found 0001 in both"),
        (edit_text("train.txt", "../../etc/passwd\n"), "letters and digits, found '../../etc/pa"),
        (lambda root: (root / "gt_sets/val.txt").unlink(), r"val\.txt cannot be read"),
        (lambda root: (root / "gt_sets/val.txt").write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_bad_nyud_mt_is_named(tmp_path, damage, message):
    root = write_nyud_mt(tmp_path / "a")
    damage(root)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "data", root)
    assert not list((tmp_path / "data").glob("*"))


def save(path, value):
    return lambda root: np.save(root / path, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (save("train/label/1.npy", np.full(SIZE, 13.0)), r"-1\.\.12 \(-1 = ignore\), found 13"),
        (save("train/label/1.npy", np.full(SIZE, 0.5)), r"found 0\.5"),
        (save("train/label/1.npy", np.full(SIZE, np.nan)), "found nan"),
        (save("train/image/1.npy", np.full((*SIZE, 3), 255)), r"in 0\.\.1, found 255\.\.255"),
        (save("train/image/1.npy", np.full((*SIZE, 3), np.nan)), r"in 0\.\.1, found nan"),
        (save("train/depth/x.npy", np.ones(SIZE)), r"named 0\.npy, 1\.npy \.\.\., found x\.npy"),
        (save("val/depth/2.npy", np.ones(SIZE)), r"missing .*val/image/2\.npy and 2 more"),
        (
            lambda root: [path.unlink() for path in (root / "val").rglob("*.npy")],
            "val has no frames",
        ),
    ],
)
def test_bad_mtan_is_named(tmp_path, damage, message):
    root = write_mtan(tmp_path / "a")
    damage(root)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "data", root)


def test_frames_of_several_sizes(tmp_path):
    root = write_mtan(tmp_path / "a")
    for name, shape in (("image", (3,)), ("label", ()), ("depth", (1,)), ("normal", (3,))):
        np.save(root / "train" / name / "2.npy", np.zeros((9, 8, *shape), np.float32))
    with pytest.raises(DataError, match="0 has 6 x 8, 2 has 9 x 8"):
        prepare(tmp_path / "data", root)


def test_a_label_unknown_in_every_frame(tmp_path):
    root = write_nyud_mt(tmp_path / "a")
    for name in IDS["val"]:
        np.save(root / "depth" / f"{name}.npy", np.zeros(SIZE, np.float32))
    with pytest.raises(DataError, match="depth is unknown everywhere in every test frame"):
        prepare(tmp_path / "data", root)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    layout=st.sampled_from(list(WRITERS)),
    which=st.integers(0, 100),
    start=st.integers(0, 200),
    skip=st.integers(0, 12),
    junk=st.binary(min_size=1, max_size=12),
)
def test_damage_of_any_kind_is_an_error_of_data(tmp_path, layout, which, start, skip, junk):
    root = WRITERS[layout](tmp_path / layout)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[which % len(files)]
    data = path.read_bytes()
    start = min(start, len(data) - 1)
    path.write_bytes(data[:start] + junk + data[start + skip :])
    with suppress(DataError):
        prepare(tmp_path / "data", root)
    assert {path.name for path in (tmp_path / "data").glob("*")} <= {"nyud-40", "nyud-13"}


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="--source"):
        prepare(tmp_path, None)
    with pytest.raises(DataError, match="found nothing there"):
        prepare(tmp_path, tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="found another kind of file"):
        prepare(tmp_path, tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"no NYUD-v2 layout: .* found nothing; see: gatesearch data"
    ):
        prepare(tmp_path, tmp_path / "empty")


@pytest.mark.parametrize(("damage", "message"), [
    (lambda root: (root / "depth" / "12.npy").unlink(), "missing {}/rel/depth/12.npy"),
    (lambda root: (root / "depth" / "12.npy").write_bytes(b""), "{}/rel/depth/12.npy is missing"),
    (lambda root: (root / "gt_sets").rename(root / "lists"), "{} holds no NYUD-v2 layout"),
])  # fmt: skip
def test_files_are_named_by_their_place_in_the_archive(tmp_path, damage, message):
    damage(write_nyud_mt(tmp_path / "a" / "rel"))
    archive = shutil.make_archive(tmp_path / "x", "zip", tmp_path / "a")
    with pytest.raises(DataError, match=re.escape(message.format(archive))) as error:
        prepare(tmp_path / "data", Path(archive))
    assert "unpacked" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_study_without_its_pack_is_told_the_command(tmp_path):
    def ensure(classes):
        overrides = ["protocol.size=[4, 4]", f"tasks.semseg.classes={classes}"]
        study = load_study("nyud", overrides)
        return ensure_pack(NYUD, study, data=tmp_path, emit=lambda event: None)

    with pytest.raises(DataError) as caught:
        ensure(40)
    command = f"gatesearch data prepare nyud --source PATH --data {tmp_path}"
    assert command in str(caught.value)
    assert "NYUD_MT.tgz" in str(caught.value)
    prepare(tmp_path, write_nyud_mt(tmp_path / "a"))
    pack = ensure(40)
    assert (pack.size, pack.name) == (SIZE, "nyud-40")
    with pytest.raises(DataError, match="nyud-13"):
        ensure(13)
    with pytest.raises(UsageError, match=r"40 classes \(nyud_mt\) and 13 \(mtan\), found 21"):
        ensure(21)


def write_image(root, image, form="PNG", **options):
    """Put an image of frame 12 in its place, in another format than its name says."""
    image.save(root / "images" / "12.jpg", form, **options)


RAMP = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE)
GREY = np.linspace(0, 255, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8)
TRANSPARENT = Image.fromarray(np.stack([GREY] * 4, -1))


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (Image.fromarray(RAMP.astype(np.uint16)), "must have 8 bits a channel, .* mode I;16"),
        (TRANSPARENT, "must have no transparent pixels"),
        (TRANSPARENT.convert("LA"), "must have no transparent pixels"),
    ],
)
def test_images_whose_colours_are_not_known_are_refused(tmp_path, image, found):
    """Of a ramp in 16 bits, 99.6 % became white."""
    root = write_nyud_mt(tmp_path / "a")
    write_image(root, image)
    with pytest.raises(DataError, match=rf"12\.jpg {found}"):
        prepare(tmp_path / "data", root)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_images_of_8_bits_are_read_by_value(tmp_path, mode):
    root = write_nyud_mt(tmp_path / "a")
    image = Image.fromarray(GREY).convert(mode)
    write_image(root, image)
    pack = prepare(tmp_path / "data", root)
    stored = pack.array("train", "image")[pack.ids("train").index("12")]
    np.testing.assert_array_equal(stored, np.asarray(image.convert("RGB")))


LABELS = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8) % 16


@pytest.mark.parametrize(
    ("form", "options", "found"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}, "found JPEG"),
        ("WEBP", {"quality": 100}, "found WEBP"),
        ("WEBP", {"lossless": True}, "found WEBP"),
        ("TIFF", {"compression": "jpeg"}, "found TIFF"),
        ("BMP", {}, "found BMP"),
        ("GIF", {}, "found a file that begins with b'GIF"),
        ("JPEG2000", {"irreversible": True}, "found a file that begins with"),
    ],
)
def test_labels_must_be_a_png_by_content(tmp_path, form, options, found):
    """Of labels stored as JPEG, 43 % of the pixels differed."""
    root = write_nyud_mt(tmp_path / "a")
    Image.fromarray(LABELS).save(root / "segmentation" / "12.png", form, **options)
    with pytest.raises(DataError, match=rf"12\.png.* PNG.*, {found}"):
        prepare(tmp_path / "data", root)


def label_png(bits, values):
    """A PNG of grey of so many bits per pixel, made by hand."""
    rows = [
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]).tobytes()
        for row in values
    ]
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], bits, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"".join(rows)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_are_the_numbers_that_a_png_stores(tmp_path, bits):
    """Pillow scales grey of 2 and 4 bits to 0..255."""
    root = write_nyud_mt(tmp_path / "a")
    values = LABELS & (2**bits - 1)
    (root / "segmentation" / "12.png").write_bytes(label_png(bits, values))
    pack = prepare(tmp_path / "data", root)
    stored = pack.array("train", "semseg")[pack.ids("train").index("12")]
    np.testing.assert_array_equal(stored, np.where(values == 0, 255, values - 1))


@pytest.mark.parametrize("kind", ["palette", "16 bit"])
def test_labels_as_palette_indices_and_in_16_bits(tmp_path, kind):
    root = write_nyud_mt(tmp_path / "a")
    if kind == "palette":
        image = Image.fromarray(LABELS, "P")
        image.putpalette(list(range(256)) * 3)
    else:
        image = Image.fromarray(LABELS.astype(np.uint16))
    image.save(root / "segmentation" / "12.png")
    pack = prepare(tmp_path / "data", root)
    stored = pack.array("train", "semseg")[pack.ids("train").index("12")]
    np.testing.assert_array_equal(stored, np.where(LABELS == 0, 255, LABELS - 1))


@pytest.mark.parametrize("name", [
    "gt_sets/train.txt", "images/12.jpg", "segmentation/12.png", "depth/12.npy", "normals/12.npy",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["named pipe", "folder", "device", "loop"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, name, kind):
    root = write_nyud_mt(tmp_path / "a")
    path = root / name
    path.unlink()
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(DataError, match=path.name) as error:
        prepare(tmp_path / "data", root)
    assert "\n" not in str(error.value)


def test_links_to_files_of_the_release_are_followed(tmp_path):
    real = write_nyud_mt(tmp_path / "real")
    linked = tmp_path / "linked"
    for path in real.rglob("*.*"):
        place = linked / path.relative_to(real)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    assert prepare(tmp_path / "a", linked).digest == prepare(tmp_path / "b", real).digest


def sparse(path, start=b"", size=2**33):
    """A file of 8 GiB that takes no space on the disk."""
    path.write_bytes(start)
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("gt_sets/train.txt", b"12", r"train\.txt must have at most 1 MiB, found more"),
        ("images/12.jpg", b"\xff\xd8\xff", r"12\.jpg must have at most 256 MiB, found more"),
        ("segmentation/12.png", b"", r"12\.png must have at most 256 MiB, found more"),
        ("depth/12.npy", b"", r"12\.npy is missing or is no whole array"),
        (
            "depth/12.npy",
            b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 20),
            r"12\.npy is .* \(a header of 4294967276 bytes\)",
        ),
    ],
)
def test_files_of_gigabytes_are_refused_before_they_are_read(tmp_path, name, start, message):
    root = write_nyud_mt(tmp_path / "a")
    sparse(root / name, start)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            prepare(tmp_path / "data", root)
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, -8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 2**62)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 8)}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (6, 8)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, 8)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 9000,
        "-" * 9000 + "1",
        "[" * 300 + "]" * 300,
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_false_headers_of_arrays_are_refused(tmp_path, header, version):
    root = write_nyud_mt(tmp_path / "a")
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    start = b"\x93NUMPY" + bytes([version, 0]) + length + header.encode()
    (root / "depth" / "12.npy").write_bytes(start + bytes(1000))
    with pytest.raises(DataError, match=r"12\.npy (is missing|must hold numbers)") as error:
        prepare(tmp_path / "data", root)
    assert "\n" not in str(error.value)


@pytest.mark.data
@pytest.mark.parametrize(("layout", "classes"), [("nyud_mt", 40), ("mtan", 13)])
def test_real_frames(tmp_path, real_frames, layout, classes):
    command = [sys.executable, str(real_frames / "unpack.py"), str(tmp_path / "source")]
    command += ["--layout", layout, "--size", "96", "128", "--train", "4", "--val", "3"]
    subprocess.run(command, check=True)
    pack = prepare(tmp_path / "data", tmp_path / "source")
    assert (pack.name, pack.size) == (f"nyud-{classes}", (96, 128))
    assert (pack.frames("train"), pack.frames("test")) == (4, 3)
    assert "train: 4 of the 795 official frames" in pack.manifest.notes
    for split in ("train", "test"):
        labels = pack.array(split, "semseg")
        assert labels[labels != 255].max() < classes
        assert (labels != 255).mean() > 0.5
        depth = pack.array(split, "depth")
        assert 1.5 < np.median(depth) < 4.5  # metres, indoors
        normals = pack.array(split, "normals").astype(float)
        assert (normals[..., 2] < 0.1).mean() > 0.95  # they face the camera
        # y points down: in the lower quarter floors, (0, -1, 0), prevail.
        assert normals[:, 72:, :, 1].mean() < 0
        assert 0.01 < pack.array(split, "edges").mean() < 0.3
