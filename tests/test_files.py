"""Reading refuses what is no regular, bounded, valid file; writing replaces links."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from gatesearch.files import FileRefusedError, open_regular, read_bytes, read_json, write_atomic


@dataclass(frozen=True)
class Point:
    x: int
    names: tuple[str, ...] = ()


def make(kind: str, path: Path) -> None:
    """Put something that is no regular file at a path."""
    target = path.with_name("target")
    target.write_text('{"x": 1}')
    if kind == "a symbolic link":
        path.symlink_to(target)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a symbolic link", "a folder", "a named pipe"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, flags: int) -> None:
    path = tmp_path / "file"
    make(kind, path)
    with pytest.raises(FileRefusedError, match=f"must be a regular file, found {kind}"):
        open_regular(path, flags)
    assert (tmp_path / "target").read_text() == '{"x": 1}'


def test_devices_are_refused() -> None:
    with pytest.raises(FileRefusedError, match="found a device"):
        read_bytes(Path("/dev/zero"))


def test_missing_files_are_missing_and_new_ones_are_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "file")
    os.close(open_regular(tmp_path / "file", os.O_RDWR | os.O_CREAT))
    assert read_bytes(tmp_path / "file") == b""


def test_links_in_the_names_of_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"1")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read_bytes(tmp_path / "linked" / "file") == b"1"


def test_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert len(read_bytes(tmp_path / "file", limit=100)) == 100
    with pytest.raises(FileRefusedError, match="must have at most"):
        read_bytes(tmp_path / "file", limit=99)


def test_json_is_validated_without_conversion(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"x": 1, "names": ["a"]}')
    assert read_json(path, Point) == Point(1, ("a",))


@pytest.mark.parametrize(
    "text",
    ['{"x": "1"}', '{"x": 1.5}', "{}", "[1]", "1", "", '{"x": 1', '{"x": ' + "[" * 100_000, "\xff"],
)
def test_damaged_json_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileRefusedError, match="is damaged") as caught:
        read_json(path, Point)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


def test_writing_replaces_links_and_never_writes_through_them(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    path = tmp_path / "file"
    path.symlink_to(target)
    (tmp_path / f".file.{os.getpid()}").symlink_to(target)
    write_atomic(path, b"new")
    assert target.read_bytes() == b"kept"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "file",
        "target",
    ]
