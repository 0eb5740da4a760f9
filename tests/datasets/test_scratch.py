"""Packs are exchanged in one step; what a killed process leaves is found again or removed."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from gatesearch import load_study
from gatesearch.cli.data import check
from gatesearch.datasets import DATASETS, ensure_pack, scratch
from gatesearch.datasets.exchange import exchange
from gatesearch.datasets.pack_reader import check_pack, open_pack
from gatesearch.datasets.pack_writer import add_notes
from gatesearch.datasets.scratch import put_in_place, remove_leftovers, scratch_folder
from gatesearch.errors import DataError
from tests.datasets.toys import frame, write

# What the interpreter reports before it does them (`sys.addaudithook`).
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
KILLED = 9

TOY = load_study("nyud", ["protocol.size=[3, 4]"])


def killed_at(number: int, act) -> bool:
    """Do something in a child process that ends before its n-th operation on files.

    Returns:
        Whether it was killed; False if it had fewer operations, and finished.
    """
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, arguments: object) -> None:
            nonlocal left
            if event in OPERATIONS:
                left -= 1
                if left == 0:
                    os._exit(KILLED)

        real = scratch.exchange

        def counted(one: Path, other: Path) -> bool:
            count("os.rename", ())
            return real(one, other)

        scratch.exchange = counted
        sys.addaudithook(count)
        try:
            act()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def other_frame(number: int):
    return frame(number + 50)


def cannot_exchange(one: Path, other: Path) -> bool:
    return False


@pytest.mark.slow("processes")
@pytest.mark.parametrize(
    ("begin", "swap"),
    [
        ("open", exchange), ("check", cannot_exchange), ("prepare", exchange),
        ("prepare", cannot_exchange),
    ],
)  # fmt: skip
def test_a_kill_between_any_two_operations_loses_nothing(tmp_path, monkeypatch, swap, begin):
    monkeypatch.setattr(scratch, "exchange", swap)
    old = open_pack(write(tmp_path / "kept" / "toy-5")).digest
    new = open_pack(write(tmp_path / "other" / "toy-5", frames=other_frame)).digest
    data = tmp_path / "data"
    found = []
    for number in range(1, 500):
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", data)
        killed = killed_at(number, lambda: write(data / "toy-5", frames=other_frame))
        if begin == "prepare":
            with scratch_folder(data / "another"):
                pass
        if begin == "check":
            remove_leftovers(data)
            assert [path.name for path in data.iterdir()] == ["toy-5"]
        found.append(check_pack(data / "toy-5").digest)
        remove_leftovers(data)
        assert [path.name for path in data.iterdir()] == ["toy-5"]
        if not killed:
            break
    turn = found.index(new)
    assert found == [old] * turn + [new] * (len(found) - turn)
    assert len(found) - turn > 3  # also killed while the old one was removed


@pytest.mark.slow("processes")
def test_a_kill_while_notes_are_added_loses_nothing(tmp_path):
    data = tmp_path / "data"
    before = open_pack(write(data / "toy-5"))
    for number in range(1, 100):
        killed = killed_at(number, lambda: add_notes(data / "toy-5", ["a note"]))
        notes = check_pack(data / "toy-5").manifest.notes
        assert notes in ((), ("a note",))
        remove_leftovers(data)
        assert [path.name for path in data.iterdir()] == ["toy-5"]
        if not killed or notes:
            break
    assert check_pack(data / "toy-5").digest == before.digest
    assert notes == ("a note",)


def test_the_system_swaps_two_folders_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a"]
    assert not exchange(tmp_path / "a", tmp_path / "missing")
    assert (tmp_path / "a" / "b").exists()


def test_a_failed_rename_is_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "exchange", cannot_exchange)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "old").touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / ".pack.partial-1-00", tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    assert [path.name for path in (tmp_path / "pack").iterdir()] == ["old"]


def test_a_pack_is_waited_for_while_a_live_process_replaces_it(tmp_path):
    """Between the two renames of a live process a reader waits, and does not put the old back."""
    aside = tmp_path / ".toy-5.replaced-1-00"
    write(aside.with_name("toy-5")).rename(aside)
    write(tmp_path / "new" / "toy-5", frames=other_frame)
    expected = open_pack(tmp_path / "new" / "toy-5").digest
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        with scratch._lock(aside, wait=True):
            os.write(say, b"1")
            time.sleep(0.3)
            os.rename(tmp_path / "new" / "toy-5", tmp_path / "toy-5")
        os._exit(0)
    os.read(ready, 1)
    try:
        assert open_pack(tmp_path / "toy-5").digest == expected
    finally:
        os.waitpid(child, 0)


@pytest.mark.parametrize("purpose", ["partial", "unpacked"])
def test_leftovers_of_killed_processes_go_and_those_of_live_ones_stay(tmp_path, purpose):
    def hold() -> int:
        ready, say = os.pipe()
        child = os.fork()
        if child == 0:
            with scratch_folder(tmp_path / "toy-5", purpose=purpose) as fresh:
                (fresh / "file").touch()
                os.write(say, b"1")
                time.sleep(60)
        os.read(ready, 1)
        return child

    live, killed = hold(), hold()
    try:
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
        for name in ("notes.txt", ".toy-5.partial-1.txt", ".hidden"):
            (tmp_path / name).touch()
        with scratch_folder(tmp_path / "another"):
            names = {path.name for path in tmp_path.iterdir()}
            assert any(name.startswith(f".toy-5.{purpose}-{live}-") for name in names)
            assert not any(name.startswith(f".toy-5.{purpose}-{killed}-") for name in names)
            assert len(names) == 5
        with scratch_folder(tmp_path / "toy-5", purpose=purpose) as fresh:
            assert fresh.name.startswith(f".toy-5.{purpose}-{os.getpid()}-")
    finally:
        os.kill(live, signal.SIGKILL)
        os.waitpid(live, 0)


def test_links_that_look_like_leftovers_are_left_alone(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "thesis.tex").touch()
    (tmp_path / ".toy-5.partial-1-00").symlink_to(tmp_path / "real")
    remove_leftovers(tmp_path)
    assert (tmp_path / "real" / "thesis.tex").exists()


def test_without_locks_leftovers_go_after_a_day(tmp_path, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(scratch.fcntl, "flock", no_locks)
    day_old, fresh = tmp_path / ".toy-5.partial-1-00", tmp_path / ".toy-5.partial-2-00"
    for leftover in (day_old, fresh):
        leftover.mkdir()
    os.utime(day_old, (0, 0))
    with scratch_folder(tmp_path / "toy-5"):
        assert not day_old.exists()
        assert fresh.exists()


def test_a_pack_that_was_moved_aside_is_not_put_over_another(tmp_path):
    aside = tmp_path / ".toy-5.replaced-1-00"
    write(tmp_path / "toy-5").rename(aside)
    new = open_pack(write(tmp_path / "toy-5", frames=other_frame)).digest
    assert check_pack(tmp_path / "toy-5").digest == new
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-5"]
    with pytest.raises(DataError, match="no pack at"):
        open_pack(tmp_path / "elsewhere" / "toy-5")


def test_check_and_run_find_a_pack_that_was_moved_aside(tmp_path, capsys):
    data = tmp_path / "data"
    digest = open_pack(write(data / "nyud-40", classes=40)).digest
    (data / "nyud-40").rename(data / ".nyud-40.replaced-1-00")
    check("nyud", data)
    assert f"whole: {data / 'nyud-40'}: 3 train + 1 test frames" in capsys.readouterr().out
    (data / "nyud-40").rename(data / ".nyud-40.replaced-1-00")
    (data / ".nyud-13.partial-1-00").mkdir()
    pack = ensure_pack(DATASETS["nyud"], TOY, data=data, emit=lambda event: None)
    assert pack.digest == digest
    assert [path.name for path in data.iterdir()] == ["nyud-40"]


def test_a_data_folder_that_cannot_be_written_is_read(tmp_path):
    write(tmp_path / "nyud-40", classes=40)
    (tmp_path / ".nyud-13.partial-1-00").mkdir()
    tmp_path.chmod(0o500)
    try:
        pack = ensure_pack(DATASETS["nyud"], TOY, data=tmp_path, emit=lambda event: None)
        assert pack.size == (3, 4)
    finally:
        tmp_path.chmod(0o700)
