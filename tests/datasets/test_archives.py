"""Archives that mean harm, and archives that were cut short."""

import io
import stat
import tarfile
import zipfile
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatesearch.datasets import archives
from gatesearch.datasets.archives import is_archive, unpack
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
    with pytest.raises(DataError, match="two members claim"):
        unpack(path, into, emit=lambda event: None)


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
