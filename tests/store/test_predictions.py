"""Predictions are read as they were written; anything else is refused within bounds."""

import io
import os
import resource
import zipfile

import numpy as np
import pytest

from gatesearch.files import FileRefusedError
from gatesearch.store.predictions import read_predictions

rng = np.random.default_rng(0)
ARRAYS = {
    "image": rng.integers(0, 255, (2, 6, 8, 3), dtype=np.uint8),
    "seed": np.array(7),
    "truth.depth": rng.random((2, 6, 8)).astype(np.float32),
    "mtl + pcgrad.normals": rng.random((2, 6, 8, 3)).astype(np.float16),
    "trial 3.edges": rng.integers(0, 2, (2, 6, 8)).astype(bool),
}


@pytest.fixture
def path(tmp_path):
    np.savez_compressed(tmp_path / "p.npz", **ARRAYS)
    return tmp_path / "p.npz"


def test_every_array_comes_back(path) -> None:
    arrays = read_predictions(path)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)


def with_array(path, name: str, content: bytes) -> None:
    """Replace one member by other bytes, with a right checksum of the archive."""
    with zipfile.ZipFile(path) as archive:
        members = {item: archive.read(item) for item in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for item, old in (members | {f"{name}.npy": content}).items():
            archive.writestr(item, content if item == f"{name}.npy" else old)


def npy(array: np.ndarray, **header) -> bytes:
    """An .npy whose header says something else of its array."""
    if array.dtype == object:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()
    buffer = io.BytesIO()
    true = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(buffer, true | header)
    return buffer.getvalue() + array.tobytes()


IMAGE, DEPTH = ARRAYS["image"], ARRAYS["truth.depth"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("image", npy(IMAGE.astype(np.float32)), r"image must be uint8 \(frames, .* found float32"),
        ("image", npy(IMAGE[..., :2]), r"image must be uint8 .*, 3\), found uint8 of shape \(2, 6"),
        ("image", npy(IMAGE[0]), r"image must be uint8"),
        ("image", npy(IMAGE[:1]), r"truth.depth must cover \(1, 6, 8\) frames, rows and columns"),
        ("truth.depth", npy(DEPTH[:, :5]), r"must cover \(2, 6, 8\) .*, found \(2, 5, 8\)"),
        ("truth.depth", npy(np.array(1.0)), r"must cover \(2, 6, 8\) .*, found \(\)"),
        ("truth.depth", npy(np.array([print], object)), "must hold numbers .*, found object"),
        ("truth.depth", npy(np.array(["text"])), "must hold numbers .*, found <U4"),
        ("truth.depth", npy(np.array([1j])), "must hold numbers .*, found complex128"),
        ("truth.depth", npy(DEPTH, fortran_order=True), "in the order of C"),
        ("truth.depth", npy(DEPTH, shape=(2, 6, 9)), "truth.depth is cut short"),
        ("truth.depth", npy(DEPTH, shape=(2, 6, 7)), "truth.depth is longer than its header says"),
        ("truth.depth", npy(DEPTH, shape=(10**6, 10**6)), "truth.depth is too large for this file"),
        ("truth.depth", npy(DEPTH, shape=(-2, -6, 8)), "truth.depth is too large|cut short"),
        ("truth.depth", npy(DEPTH)[:9], "is damaged: "),
        ("truth.depth", b"\x93NUMPY\x03\x00" + npy(DEPTH)[8:], "must be an .npy of version 1.0"),
        ("truth.depth", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "is damaged: "),
        ("truth.depth", b"", "is damaged: "),
    ],
)
def test_an_archive_of_other_arrays_is_refused(path, name, content, fault) -> None:
    with_array(path, name, content)
    with pytest.raises(
        FileRefusedError, match=rf"^{path} is damaged: [^\n]*; delete it: "
    ) as caught:
        read_predictions(path)
    caught.match(fault)


def bad_checksum(path) -> None:
    """Flip a bit of stored, not compressed values, which only the checksum can tell."""
    np.savez(path, **ARRAYS)
    data, mark = path.read_bytes(), DEPTH.tobytes()[-8:]
    assert data.count(mark) == 1
    place = data.index(mark)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def missing_image(path) -> None:
    np.savez(path, **{name: array for name, array in ARRAYS.items() if name != "image"})


def same_name(path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("image.npy", npy(IMAGE))


def no_array(path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "text")


def encrypted(path) -> None:
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(data)


HARMS = {
    "bad checksum": (bad_checksum, "Bad CRC-32 for file 'truth.depth.npy'"),
    "no image": (missing_image, r"image must be uint8 \(frames, .* found none"),
    "same name": (same_name, "must hold one .npy per name, found image.npy"),
    "no array": (no_array, "must hold one .npy per name, found readme.txt"),
    "encrypted": (encrypted, "is damaged: "),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "File is not a zip file"),
    "empty": (lambda path: path.write_bytes(b""), "File is not a zip file"),
    "text": (lambda path: path.write_bytes(b"no archive"), "File is not a zip file"),
    "folder": (
        lambda path: (path.unlink(), path.mkdir()),
        "must be a regular file, found a folder",
    ),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "found a named pipe"),
    "link": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "found a symbolic link"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_refused_in_one_line(path, harm) -> None:
    change, fault = HARMS[harm]
    change(path)
    with pytest.raises(FileRefusedError, match=rf"^{path} [^\n]*{fault}[^\n]*$"):
        read_predictions(path)


def test_a_zip_bomb_takes_no_memory(tmp_path) -> None:
    path = tmp_path / "p.npz"
    # 1 MB that says it holds 1 GB of black frames.
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("image.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (1000, 1000, 1000, 1)}
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(1000):
            stream.write(bytes(10**6))
    assert path.stat().st_size < 2 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileRefusedError, match="image is too large for this file: uint8 of shape"):
        read_predictions(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
