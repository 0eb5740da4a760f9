"""Archives that mean harm, and archives that were cut short."""

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections import namedtuple
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatesearch.datasets import archives
from gatesearch.datasets.archives import is_archive, unpack
from gatesearch.datasets.gunzip import Gunzip
from gatesearch.errors import DataError

CONTENT = {"top/a.txt": b"a" * 1000, "top/deep/b.txt": bytes(range(256)) * 40, "top/c": b""}


def member(name, kind=tarfile.REGTYPE, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def write_tar(path, content, extra=()):
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, data in content.items():
            entry = member(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for entry in extra:
            tar.addfile(entry)
    return path


def write_zip(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in content.items():
            zipped.writestr(name, data)
    return path


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def into(tmp_path):
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.tar.gz", "x.TAR", "x.zip"])
def test_plain_files_come_out_as_they_went_in(tmp_path, into, name):
    path = tmp_path / name
    assert is_archive(path)
    events = []
    (write_zip if name.endswith("zip") else write_tar)(path, CONTENT)
    unpack(path, into, emit=events.append)
    assert tree(into) == CONTENT
    assert [(event.done, event.total, event.unit) for event in events] == [
        (0, 1, "MB"),
        (1, 1, "MB"),
    ]


OUTSIDE = ["../evil", "/tmp/evil", "top/../../evil", "..", "a\\..\\..\\evil", "C:/evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_outside_is_refused_by_name(tmp_path, into, kind, name):
    path = tmp_path / f"x.{kind}"
    content = {"top/a.txt": b"fine", name: b"evil"}
    (write_zip if kind == "zip" else write_tar)(path, content)
    with pytest.raises(DataError, match="outside the folder") as caught:
        unpack(path, into, emit=lambda event: None)
    assert f"'{name}'" in str(caught.value)
    assert set(tree(tmp_path)) <= {path.name, "into/top/a.txt"}


@pytest.mark.parametrize(
    "entry",
    [
        member("top/link", tarfile.SYMTYPE, "/etc"),
        member("top/link", tarfile.LNKTYPE, "top/a.txt"),
        member("top/link", tarfile.CHRTYPE),
        member("top/link", tarfile.BLKTYPE),
        member("top/link", tarfile.FIFOTYPE),
    ],
    ids=["symbolic", "hard", "character", "block", "fifo"],
)
def test_links_and_devices_are_refused(tmp_path, into, entry):
    path = write_tar(tmp_path / "x.tgz", CONTENT, extra=[entry])
    with pytest.raises(DataError, match="'top/link', a link or a device"):
        unpack(path, into, emit=lambda event: None)


def test_a_link_in_a_zip_is_refused(tmp_path, into):
    entry = zipfile.ZipInfo("top/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr(entry, "/etc")
    with pytest.raises(DataError, match="'top/link', a link or a device"):
        unpack(tmp_path / "x.zip", into, emit=lambda event: None)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_two_members_that_cannot_both_be(tmp_path, into, kind):
    path = tmp_path / f"x.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {"a": b"file", "a/b": b"in a folder"})
    with pytest.raises(DataError, match="found two that claim 'a'; get it again"):
        unpack(path, into, emit=lambda event: None)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("second", ["a/b.txt", "./a/b.txt", "a//b.txt"])
def test_two_members_of_one_name(tmp_path, into, kind, second):
    """Programs differ in which of them they keep."""
    path = tmp_path / f"x.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {"a/b.txt": b"one", "c": b""})
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as zipped, warnings.catch_warnings(action="ignore"):
            zipped.writestr(second, "two")
    else:
        with tarfile.open(path, "a") as tar:
            tar.addfile(member(second))
    with pytest.raises(DataError, match=r"found two that claim 'a/b\.txt'; get it again"):
        unpack(path, into, emit=lambda event: None)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(("length", "fits"), [(255, True), (256, False)])
def test_a_name_that_no_file_can_have(tmp_path, into, kind, length, fits):
    path, name = tmp_path / f"x.{kind}", "é" * (length // 2) + "x" * (length % 2)
    assert len(name.encode()) == length
    (write_zip if kind == "zip" else write_tar)(path, {f"a/{name}": b"1"})
    if fits:
        unpack(path, into, emit=lambda event: None)
        assert tree(into) == {f"a/{name}": b"1"}
    else:
        with pytest.raises(DataError, match="a name of 130 characters"):
            unpack(path, into, emit=lambda event: None)
        assert tree(into) == {}


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_cut_archive_is_damaged(tmp_path, into, name, keep):
    path = tmp_path / name
    (write_zip if name.endswith("zip") else write_tar)(path, CONTENT)
    data = path.read_bytes()
    if name == "x.tar":
        data = data[: 512 * 25]  # three headers and 2 + 20 + 0 blocks, less the end of the archive
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match="damaged or incomplete"):
        unpack(path, into, emit=lambda event: None)


def test_a_tar_cut_between_two_members(tmp_path, into):
    path = write_tar(tmp_path / "x.tar", CONTENT)
    path.write_bytes(path.read_bytes()[: 512 * 3])  # the header and two blocks of a.txt
    with pytest.raises(DataError, match="no end of archive"):
        unpack(path, into, emit=lambda event: None)


def test_a_changed_byte_in_a_tgz(tmp_path, into):
    path = write_tar(tmp_path / "x.tgz", CONTENT)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the sum at the end
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged or incomplete"):
        unpack(path, into, emit=lambda event: None)


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
def test_what_is_no_archive(tmp_path, into, name):
    (tmp_path / name).write_bytes(b"<html>quota exceeded</html>" * 40)
    with pytest.raises(DataError, match="damaged or incomplete"):
        unpack(tmp_path / name, into, emit=lambda event: None)


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILE", 500), ("MAX_TOTAL", 2000)])
def test_sizes_are_bounded(tmp_path, into, monkeypatch, limit, value):
    monkeypatch.setattr(archives, limit, value)
    path = write_tar(tmp_path / "x.tgz", CONTENT)
    with pytest.raises(DataError, match="found more at 'top/"):
        unpack(path, into, emit=lambda event: None)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(["x.tar", "x.tgz", "x.zip"]), where=st.floats(0, 1), data=st.data())
def test_damage_of_any_kind_is_an_error_of_data(tmp_path, into, name, where, data):
    path = tmp_path / name
    (write_zip if name.endswith("zip") else write_tar)(path, CONTENT)
    whole = path.read_bytes()
    start = int(where * (len(whole) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=12))
    path.write_bytes(whole[:start] + junk + whole[start + data.draw(st.integers(0, 12)) :])
    with suppress(DataError):
        unpack(path, into, emit=lambda event: None)
    assert {name.split("/")[0] for name in tree(tmp_path)} <= {"into", "x.tar", "x.tgz", "x.zip"}


def tar_header(name, size, kind=tarfile.REGTYPE):
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def pax(**fields):
    """An extended header of the next member."""
    records = b""
    for key, value in fields.items():
        record = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(record) + 1
        while length != len(record) + len(str(length)):
            length = len(record) + len(str(length))
        records += f"{length}".encode() + record
    return tar_header("pax", len(records), tarfile.XHDTYPE) + padded(records)


def padded(data):
    return data + bytes(-len(data) % 512)


END = bytes(1024)
EXTRAS = {
    "pax": tarfile.XHDTYPE,
    "global pax": tarfile.XGLTYPE,
    "Solaris": tarfile.SOLARIS_XHDTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
}


@contextmanager
def memory_of_at_most(limit):
    """Fail if Python allocates more than so many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


@pytest.mark.parametrize("kind", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_large_headers_are_refused_before_they_are_read(tmp_path, into, name, kind):
    """A pax header of 2 GiB of zeros in a .tgz of 9 MB took 6.7 GiB of memory."""
    path = tmp_path / name
    start = tar_header("huge", 2**31, kind)
    if name == "x.tar":
        path.write_bytes(start)
        os.truncate(path, 2**31)
    else:
        path.write_bytes(gzip.compress(start + bytes(2**25), compresslevel=1))
    with (
        memory_of_at_most(2**24),
        pytest.raises(DataError, match="found 'huge', with a header of 2147483648 bytes"),
    ):
        unpack(path, into, emit=lambda event: None)
    assert tree(into) == {}


def test_many_headers_are_refused(tmp_path, into):
    one = tar_header("pax", 2**20, tarfile.XHDTYPE) + bytes(2**20)
    (tmp_path / "x.tgz").write_bytes(gzip.compress(one * 65, compresslevel=1))
    with memory_of_at_most(2**24), pytest.raises(DataError, match="found 'pax', with a header"):
        unpack(tmp_path / "x.tgz", into, emit=lambda event: None)


def test_fields_that_are_not_used_are_not_kept(tmp_path, into):
    """100,000 fields for all members, looked through at each of them, took hours of time."""
    headers = []
    for number in range(20):
        fields = "".join(f"12 {number:02d}{i:05x}=\n" for i in range(20_000)).encode()
        assert len(fields) == 12 * 20_000
        headers.append(tar_header("g", len(fields), tarfile.XGLTYPE) + padded(fields))
    data = b"".join(headers) + pax(path="b") + tar_header("a", 3) + padded(b"abc") + END
    (tmp_path / "x.tgz").write_bytes(gzip.compress(data, compresslevel=1))
    with memory_of_at_most(2**24):
        unpack(tmp_path / "x.tgz", into, emit=lambda event: None)
    assert tree(into) == {"b": b"abc"}


LONG = "/".join(["folder"] * 20) + "/" + "é" * 120 + ".txt"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read_as_tarfile_reads_it(tmp_path, into, form):
    content = {"a.txt": b"1", "b/" + "c" * 90: b"x" * 513, "empty": b""}
    if form != tarfile.USTAR_FORMAT:
        content |= {LONG: b"long", "ümlaut": b"2"}
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in content.items():
            entry = member(name)
            entry.size, entry.mtime = len(data), 1.5
            tar.addfile(entry, io.BytesIO(data))
    unpack(tmp_path / "x.tar", into, emit=lambda event: None)
    assert tree(into) == content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pax(GNU__sparse__major=1) + tar_header("a", 0) + END, "found 'a', a sparse file"),
        (tar_header("a", 0, tarfile.GNUTYPE_SPARSE) + END, "found 'a', a sparse file"),
        (pax(size=-512) + tar_header("a", 0) + END, r"damaged or incomplete \(a member of -512"),
        (pax(size=2**40) + tar_header("a", 0) + END, "found more at 'a'"),
        (pax(path="../evil") + tar_header("a", 0) + END, "'../evil', outside the folder"),
        (pax(path="a/" * 2000 + "x") + tar_header("a", 0) + END, "a name of 4001 characters"),
        (pax(path="a/" * 40 + "x") + tar_header("a", 0) + END, "a name of 81 characters"),
        (pax(path="../a\nb\x1b[31m") + tar_header("a", 0) + END, r"'\.\./a\?b\?\[31m'"),
        (
            tar_header("p", 5, tarfile.XHDTYPE) + padded(b"0 a=b") + END,
            "extended header is damaged",
        ),
        (tar_header("p", 9, tarfile.XHDTYPE) + padded(b"99 a=b\n") + END, "extended header is"),
        (tar_header("a", 10) + padded(b"12345"), "no end of archive"),
        (tar_header("a", 1000) + padded(b"12345"), "ends early"),
        (tar_header("a", 0) + END + bytes(2**24), "more than 16 MiB follow its end"),
    ],
)
@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_false_headers_are_refused_in_one_line(tmp_path, into, name, data, message):
    (tmp_path / name).write_bytes(gzip.compress(data) if name == "x.tgz" else data)
    with pytest.raises(DataError, match=message) as error:
        unpack(tmp_path / name, into, emit=lambda event: None)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert set(tree(tmp_path)) <= {name, "into/a"}


def test_a_size_in_an_extended_header_counts(tmp_path, into):
    data = pax(size=3, path="b") + tar_header("a", 0) + padded(b"abc") + END
    (tmp_path / "x.tar").write_bytes(data)
    unpack(tmp_path / "x.tar", into, emit=lambda event: None)
    assert tree(into) == {"b": b"abc"}


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_the_number_of_members_is_bounded(tmp_path, into, monkeypatch, kind):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    path = tmp_path / f"x.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, CONTENT)
    with pytest.raises(DataError, match="may hold 2 members, found more"):
        unpack(path, into, emit=lambda event: None)
    assert len(tree(into)) == (0 if kind == "zip" else 2)


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_bombs_are_refused(tmp_path, into, monkeypatch, kind):
    monkeypatch.setattr(archives, "RATIO_FROM", 2**20)
    path = tmp_path / f"x.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {"a": bytes(2**20), "b": bytes(2**20)})
    with pytest.raises(DataError, match=r"may unpack to 100 times .* found more at 'b'"):
        unpack(path, into, emit=lambda event: None)
    assert set(tree(into)) == (set() if kind == "zip" else {"a"})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (10, "Bad CRC"), (999, "Bad CRC"), (1001, "ends early"), (2**31, "found more at 'a'"),
    ],
)  # fmt: skip
def test_a_zip_that_lies_about_sizes(tmp_path, into, size, message):
    path = write_zip(tmp_path / "x.zip", {"a": b"x" * 1000})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, size)
    struct.pack_into("<I", data, 22, size)
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        unpack(path, into, emit=lambda event: None)


def test_a_zip_of_overlapping_members(tmp_path, into, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FROM", 2**20)
    path = write_zip(tmp_path / "x.zip", {"a": bytes(2**18)})
    data = path.read_bytes()
    at, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    listed = data[at:end] * 500
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 500, 500, len(listed), at, 0)
    path.write_bytes(data[:at] + listed + tail)
    with pytest.raises(DataError, match="found more at 'a'"):
        unpack(path, into, emit=lambda event: None)
    assert tree(into) == {}


def test_a_zip_whose_list_is_huge(tmp_path, into):
    path = tmp_path / "x.zip"
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**31 - 100, 100, 0)
    with path.open("wb") as file:
        file.truncate(2**31)
        file.seek(2**31)
        file.write(tail)
    with memory_of_at_most(2**24), pytest.raises(DataError, match="found a list of 2047 MiB"):
        unpack(path, into, emit=lambda event: None)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_compressed_in_another_way(tmp_path, into, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as zipped:
        zipped.writestr("a", bytes(1000))
    with pytest.raises(DataError, match="'a', compressed in another way than by deflate"):
        unpack(tmp_path / "x.zip", into, emit=lambda event: None)


def test_archives_inside_are_files_like_any_other(tmp_path, into):
    inner = write_zip(tmp_path / "inner.zip", CONTENT).read_bytes()
    unpack(write_zip(tmp_path / "x.zip", {"inner.zip": inner}), into, emit=lambda event: None)
    assert tree(into) == {"inner.zip": inner}


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
def test_free_space_is_looked_at_before_anything_is_written(tmp_path, into, monkeypatch, name):
    path = (write_zip if name == "x.zip" else write_tar)(tmp_path / name, {"a": b"1"})
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(9, 9, 10**7))
    with pytest.raises(DataError, match=r"found 0\.01 GB free; free space there, or name") as error:
        unpack(path, into, emit=lambda event: None)
    assert str(tmp_path) in str(error.value)
    assert tree(into) == {}


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=3000), parts=st.integers(1, 4), size=st.integers(1, 4000))
def test_gunzip_is_the_standard_librarys(data, parts, size):
    whole = gzip.compress(data) * parts + bytes(7)
    stream = Gunzip(io.BytesIO(whole))
    pieces = iter(lambda: stream.read(size), b"")
    assert b"".join(pieces) == gzip.decompress(whole)
    cut = Gunzip(io.BytesIO(whole[: len(whole) - 7 - 5]))
    with pytest.raises(EOFError):
        cut.readall()
