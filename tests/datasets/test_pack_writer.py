"""Packs are whole or absent, and what was there before stays until then."""

import resource
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from gatesearch.cli.data import prepare
from gatesearch.datasets.pack_reader import check_pack, open_pack
from gatesearch.datasets.pack_writer import add_notes
from gatesearch.datasets.scratch import scratch_folder
from gatesearch.errors import DataError, UsageError
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


def test_a_pack_behind_a_link_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "disk" / "toy-5")
    (tmp_path / "data" / "toy-5").symlink_to(tmp_path / "disk" / "toy-5")
    write(tmp_path / "data" / "toy-5", frames=lambda number: frame(number + 50))
    add_notes(tmp_path / "data" / "toy-5", ["a note"])
    assert (tmp_path / "data" / "toy-5").is_symlink()
    stored = check_pack(tmp_path / "disk" / "toy-5")
    np.testing.assert_array_equal(stored.array("train", "image")[0], frame(50)["image"])
    assert stored.manifest.notes == ("a note",)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["toy-5"]


def test_free_space_is_looked_at_before_frames_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 10**7))
    with pytest.raises(DataError, match=r"cannot write .*found 0\.01 GB free; free space there"):
        write(tmp_path / "toy-5")
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_is_no_text_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"--note takes text .*, found 'a\\udcff'; write it"):
        prepare("scenes", data=tmp_path / "data", note=["fine: ü", "a\udcff"])
    assert not (tmp_path / "data").exists()
