"""MAT-files: equal to scipy's reader and writer, and what is refused."""

import io
import os
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatesearch.datasets.mat_file import read_mat
from gatesearch.errors import DataError
from tests.pascal_tree import annotation, save_mat, structures

MASK = np.array([[1, 0, 1], [0, 0, 1]])


def written(tmp_path, *, compressed=True, **values):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, values, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_numbers_of_every_type(tmp_path, dtype, compressed):
    info = np.iinfo(dtype) if dtype[0] in "iu" else np.finfo(dtype)
    values = np.array([[info.min, info.max, 0], [1, 2, 3]], dtype)
    read = read_mat(written(tmp_path, x=values, compressed=compressed))["x"]
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_shapes_are_read_column_by_column(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    read = read_mat(written(tmp_path, x=values, y=np.zeros((0, 3)), z=7.0))
    np.testing.assert_array_equal(read["x"], values)
    assert read["y"].shape == (0, 3)
    assert read["z"].tolist() == [[7.0]]


def test_structures_cells_and_texts(tmp_path):
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = "luarm", MASK
    people = structures([{"name": "a", "mask": MASK}, {"name": "née", "mask": np.zeros((0, 0))}])
    read = read_mat(written(tmp_path, cells=cells, people=people, empty="", nested={"a": {"b": 3}}))
    assert read["cells"][0] == "luarm"
    assert read["cells"][1].tolist() == MASK.tolist()
    assert [person["name"] for person in read["people"]] == ["a", "née"]
    assert read["people"][1]["mask"].size == 0
    assert read["empty"] == ""
    assert read["nested"][0]["a"][0]["b"].item() == 3


def test_a_file_of_the_other_byte_order(tmp_path):
    """Written by hand: a 1 x 2 array of uint16, stored as such."""

    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    array = (
        element(6, struct.pack(">II", 11, 0))
        + element(5, struct.pack(">ii", 1, 2))
        + element(1, b"x")
        + element(4, struct.pack(">HH", 1, 515))
    )
    path = tmp_path / "a.mat"
    path.write_bytes(b" " * 124 + b"\x01\x00MI" + element(14, array))
    assert read_mat(path)["x"].tolist() == [[1, 515]]


def test_the_reader_of_scipy_agrees_on_an_annotation(tmp_path):
    path = tmp_path / "a.mat"
    save_mat(path, anno=annotation([(15, MASK, {"head": MASK, "torso": 1 - MASK}), (10, MASK, {})]))
    ours = read_mat(path)["anno"][0]["objects"]
    theirs = scipy.io.loadmat(path)["anno"]["objects"][0, 0][0]
    for one, other in zip(ours, theirs, strict=True):
        assert one["class_ind"].item() == other["class_ind"].item()
        np.testing.assert_array_equal(one["mask"], other["mask"])
    assert [p["part_name"] for p in ours[0]["parts"]] == ["head", "torso"]
    assert ours[1]["parts"].size == 0


def sample(compressed=True):
    file = io.BytesIO()
    scipy.io.savemat(
        file, {"anno": annotation([(15, MASK, {"head": MASK})])}, do_compression=compressed
    )
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_files_cut_at_any_byte_are_refused(tmp_path, compressed):
    data, path = sample(compressed), tmp_path / "a.mat"
    for length in [*range(0, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:length])
        if length == 128:  # no variable
            assert read_mat(path) == {}
            continue
        with pytest.raises(
            DataError, match=r"a\.mat must be a whole MAT-file of version 5"
        ) as error:
            read_mat(path)
        assert "\n" not in str(error.value)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    start=st.integers(100, 2000), skip=st.integers(0, 12), junk=st.binary(max_size=12),
    compressed=st.booleans(),
)  # fmt: skip
def test_damage_of_any_kind_is_an_error_of_data(tmp_path, start, skip, junk, compressed):
    data = sample(compressed)
    start = min(start, len(data) - 1)
    (tmp_path / "a.mat").write_bytes(data[:start] + junk + data[start + skip :])
    with suppress(DataError):
        read_mat(tmp_path / "a.mat")


HEADER = b" " * 124 + b"\x00\x01IM"


def element(kind, data, size=None):
    return (
        struct.pack("<II", kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)
    )


def array(kind, shape, *content, name=b"x"):
    dims = struct.pack(f"<{len(shape)}i", *shape)
    return (
        element(6, struct.pack("<II", kind, 0))
        + element(5, dims)
        + element(1, name)
        + b"".join(content)
    )


def compressed(data):
    packed = zlib.compress(data)
    return struct.pack("<II", 15, len(packed)) + packed


def nested(depth):
    data = array(6, (1, 1), element(9, struct.pack("<d", 1)))
    for _ in range(depth):
        data = array(1, (1, 1), element(14, data))
    return element(14, data)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (element(14, array(6, (2**30, 2**30), element(9, bytes(8)))), "1 numbers for the shape"),
        (element(14, array(6, (-1, 5), element(9, bytes(8)))), "an array of the shape"),
        (element(14, array(1, (2**31 - 1, 1))), "2147483647 cells in 0 bytes"),
        (element(14, array(2, (2**31 - 1, 1), element(5, b"\x08\0\0\0"), element(1, b"a" * 8))),
         "2147483647 structures in 0 bytes"),
        (element(14, array(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b""))),
         "names of fields of 0 bytes"),
        (element(14, array(4, (1, 9), element(4, b"ab"))), "a text of 1 characters where 9"),
        (element(14, array(5, (1, 1))), "an array of class 5"),
        (element(14, array(6 | 0x0800, (1, 1), element(9, bytes(8)))), "an array of class 6"),
        (element(14, array(17, (1, 1))), "an array of class 17"),
        (element(14, b"", size=2**32 - 1), "0 bytes where 4294967295 must be"),
        (element(9, bytes(8)), "an element of type 9 in place of an array"),
        (nested(40), "arrays nested more than 16 deep"),
        (compressed(element(14, bytes(600 * 2**20))), "more than 512 MiB"),
    ],
)  # fmt: skip
def test_false_sizes_and_other_arrays_are_refused(tmp_path, content, found):
    path = tmp_path / "a.mat"
    path.write_bytes(HEADER + content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=found):
            read_mat(path)
        assert tracemalloc.get_traced_memory()[1] < 1300 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "found 0 bytes"),
        (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM" + bytes(400), r"version 2\.0 \(save it with"),
        (b"\x89HDF" + bytes(200), "a file that begins with"),
        (bytes(200), "a file that begins with"),
    ],
)  # fmt: skip
def test_other_versions_are_refused(tmp_path, data, found):
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    with pytest.raises(DataError, match=found):
        read_mat(path)


def test_no_file_is_read_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"a\.mat"):
        read_mat(tmp_path / "a.mat")
    os.mkfifo(tmp_path / "pipe.mat")
    with pytest.raises(DataError, match="pipe"):
        read_mat(tmp_path / "pipe.mat")
