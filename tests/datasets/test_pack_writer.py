"""Packs are whole or absent, and what was there before stays until then."""

import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from gatesearch.datasets.pack_reader import check_pack, open_pack
from gatesearch.datasets.pack_writer import add_notes, scratch_folder
from gatesearch.errors import DataError
from tests.datasets.toys import frame, write


class StoppedError(Exception):
    """Stands for whatever stops a preparation half way."""


def test_the_old_pack_stays_until_the_new_one_is_whole(folder):
    before = open_pack(folder).digest

    def stops(number):
        if number == 2:
            raise StoppedError
        return frame(number + 50)

    with pytest.raises(StoppedError):
        write(folder, frames=stops)
    assert check_pack(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["toy-5"]
    write(folder, frames=lambda number: frame(number + 50))
    assert check_pack(folder).digest != before
    assert [path.name for path in folder.parent.iterdir()] == ["toy-5"]


def test_frames_must_match_what_was_announced(tmp_path):
    with pytest.raises(ValueError, match=r"depth must be \(3, 4\), found \(4, 3\)"):
        write(tmp_path / "p", frames=lambda i: frame(i) | {"depth": np.zeros((4, 3), "f4")})
    with pytest.raises(ValueError, match="every frame must have"):
        write(tmp_path / "p", frames=lambda i: {"image": frame(i)["image"]} if i else frame(i))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_of_at_most(limit):
    """No file may grow beyond `limit` bytes, as on a full disk (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    with (
        files_of_at_most(200),
        pytest.raises(DataError, match=r"cannot write .*toy-5: .*free space"),
    ):
        write(tmp_path / "toy-5")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"cannot write .*another folder with --data"):
        write(tmp_path / "data" / "toy-5")


def test_what_is_no_pack_is_not_replaced(tmp_path):
    (tmp_path / "toy-5").mkdir()
    (tmp_path / "toy-5" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds something else"):
        write(tmp_path / "toy-5")
    assert (tmp_path / "toy-5" / "thesis.tex").read_text() == "years of work"


def test_leftovers_of_killed_runs_go_after_a_day(tmp_path):
    day_old, fresh = tmp_path / ".toy-5.partial-1", tmp_path / ".toy-5.partial-2"
    for leftover in (day_old, fresh):
        leftover.mkdir()
    os.utime(day_old, (0, 0))
    with scratch_folder(tmp_path / "toy-5") as partial:
        assert partial.name == f".toy-5.partial-{os.getpid()}"
        assert not day_old.exists()
        assert fresh.exists()
    assert not partial.exists()


@pytest.mark.parametrize("used", [False, True])
def test_folders_made_for_nothing_go(tmp_path, used) -> None:
    with scratch_folder(folder := tmp_path / "a" / "b" / "toy"):
        if used:
            folder.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == (["a", "b", "toy"] if used else [])


def test_notes_are_added_and_nothing_else_changes(folder):
    before = check_pack(folder)
    add_notes(folder, ["normals are pseudo-labels"])
    after = check_pack(folder)
    assert after.manifest.notes == (*before.manifest.notes, "normals are pseudo-labels")
    assert after.digest == before.digest
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "test", "train"]
