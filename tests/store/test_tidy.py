"""Nothing but regular files and folders is taken in a store's folder; leftovers go."""

import fcntl
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from gatesearch.errors import DataError, StudyRefusedError
from gatesearch.store.backup import BACKUPS, DATABASE, back_up, damage, last_backup
from gatesearch.store.lock import holder, locked
from gatesearch.store.opening import read_store
from gatesearch.store.status import BOARD, StatusFile, read_status, restore_store

NETWORK = "trials/0003"
FILES = [
    DATABASE, f"{DATABASE}-journal", f"{DATABASE}-wal", f"{DATABASE}-shm", *BACKUPS, "lock", BOARD,
    "log.jsonl", "predictions.npz", f".{DATABASE}.12", f".{BOARD}.12",
    *(
        f"{NETWORK}/{name}"
        for name in (
            "spec.json", "attempts.json", "result.json", "events.jsonl", "stop", "lock",
            "model.safetensors", "model.json", "checkpoint-2.safetensors", ".spec.json.12",
        )
    ),
]  # fmt: skip
FOLDERS = ["trials", "baselines", "starts", NETWORK, "baselines/mtl-seed0"]


@pytest.fixture
def target(tmp_path) -> Path:
    """A file outside the store that a link leads to."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "target"
    path.write_text("precious")
    return path


@pytest.fixture
def store(tmp_path) -> Path:
    (tmp_path / "store" / NETWORK).mkdir(parents=True)
    return tmp_path / "store"


def put(kind: str, path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "symbolic link":
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(target.with_name("nothing"))
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # the whole path may be too long for a socket
        with closing(socket.socket(socket.AF_UNIX)) as opened:
            opened.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "named pipe", "socket"])
def test_what_is_no_regular_file_is_refused_before_anything_is_written(
    store, target, name, kind
) -> None:
    path = store / name
    put(kind, path, target)
    before = sorted(p for p in store.rglob("*") if p.name != "lock")
    with pytest.raises(StudyRefusedError) as caught, locked(store):
        pytest.fail("held")
    found = kind.replace("dangling", "symbolic")
    assert str(caught.value) == f"{path} must be a regular file, found a {found}; move it away"
    assert target.read_text() == "precious"
    assert sorted(os.listdir(target.parent)) == ["target"]
    assert sorted(p for p in store.rglob("*") if p.name != "lock") == before
    path.unlink()  # moved away, the store is taken
    with locked(store):
        pass


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_links_are_refused(store, target, name) -> None:
    path = store / name
    if path.is_dir():
        (store / NETWORK).rmdir()
        if name == "trials":
            path.rmdir()
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target.parent)
    with pytest.raises(StudyRefusedError, match="found a symbolic link"), locked(store):
        pytest.fail("held")
    assert sorted(os.listdir(target.parent)) == ["target"]


@pytest.mark.parametrize("name", ["more", f"{NETWORK}/more", "trials/more/deeper"])
def test_links_of_any_other_name_are_refused_too(store, target, name) -> None:
    put("symbolic link", store / name, target)
    with pytest.raises(StudyRefusedError, match=f"{name} must be a regular file"), locked(store):
        pytest.fail("held")


@pytest.mark.parametrize("name", [name for name in FILES if "/." not in f"/{name}"])
def test_a_folder_in_the_place_of_a_file_is_refused(store, name) -> None:
    (store / name).mkdir(parents=True)
    with (
        pytest.raises(StudyRefusedError, match="must be a regular file, found a folder"),
        locked(store),
    ):
        pytest.fail("held")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path, name) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(StudyRefusedError, match="must be a folder, found a file"), locked(tmp_path):
        pytest.fail("held")


def test_the_store_itself_may_be_a_link(store, target) -> None:
    link = target.with_name("link")
    link.symlink_to(store)
    (store / f".{BOARD}.7").touch()
    with locked(link):
        assert holder(link).pid == os.getpid()
    assert not (store / f".{BOARD}.7").exists()


def test_files_of_the_user_are_left(store) -> None:
    kept = [".gitignore", "notes.md", ".notes.12", "trials/notes.txt", f"{NETWORK}/.x.json.3"]
    for name in kept:
        (store / name).write_text("kept")
    (store / "exports" / "lock2").mkdir(parents=True)
    with locked(store):
        pass
    assert all((store / name).read_text() == "kept" for name in kept)


LEFT = [
    ".study.db.backup.71", ".study.db.backup.71-journal", ".study.db.71", ".status.json.71",
    ".predictions.npz.71", ".study.db.upgrade", ".study.db.0.1.0",
    *(
        f"{NETWORK}/.{name}.71"
        for name in (
            "spec.json", "attempts.json", "result.json", "model.safetensors", "model.json",
            "checkpoint-11.safetensors",
        )
    ),
]  # fmt: skip


def test_what_killed_processes_left_is_gone(store) -> None:
    for name in LEFT:
        (store / name).write_text("half")
    (store / NETWORK / "lock").touch()
    with locked(store):
        assert sorted(p.name for p in store.rglob("*") if p.is_file()) == ["lock", "lock"]


def test_what_a_worker_still_writes_is_left(store) -> None:
    for name in LEFT:
        (store / name).write_text("half")
    with (store / NETWORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with locked(store):
            left = [name for name in LEFT if (store / name).exists()]
    assert left == [name for name in LEFT if name.startswith(NETWORK)]


def test_a_store_that_another_process_has_locked_is_not_touched(store) -> None:
    (store / LEFT[0]).write_text("being written")
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StudyRefusedError, match="is in use"), locked(store):
            pytest.fail("held twice")
    assert (store / LEFT[0]).read_text() == "being written"


@pytest.mark.parametrize("kind", ["symbolic link", "named pipe"])
class TestReading:
    """Commands that only read are safe too."""

    def test_the_database(self, store, target, kind) -> None:
        put(kind, store / DATABASE, target)
        for read in (read_store, read_status, lambda out: damage(out / DATABASE), restore_store):
            with pytest.raises(StudyRefusedError, match=r"study\.db must be a regular file"):
                read(store)
        assert target.read_text() == "precious"

    def test_files_beside_the_database(self, store, target, kind) -> None:
        (store / DATABASE).write_bytes(b"x")
        put(kind, store / f"{DATABASE}-journal", target)
        for read in (read_store, read_status):
            with pytest.raises(StudyRefusedError, match=r"study\.db-journal must be a regular"):
                read(store)

    def test_the_lock(self, store, target, kind) -> None:
        (store / BOARD).touch()
        put(kind, store / "lock", target)
        with pytest.raises(StudyRefusedError, match="lock must be a regular file"):
            read_status(store)

    def test_a_backup_is_none(self, store, target, kind) -> None:
        put(kind, store / BACKUPS[0], target)
        assert last_backup(store) is None

    def test_backups_are_not_written_through(self, store, target, kind) -> None:
        (store / DATABASE).write_bytes(b"")
        put(kind, store / BACKUPS[0], target)
        with pytest.raises(StudyRefusedError, match=r"study\.db\.backup must be a regular file"):
            back_up(store)

    def test_the_status_is_passed_over(self, store, target, kind) -> None:
        put(kind, store / BOARD, target)
        found = read_status(store)
        assert found["passed_over"] == (
            f"{store / BOARD} must be a regular file, found a {kind}; move it away"
        )
        assert found["study"] == ""


def test_a_status_is_written_in_the_place_of_a_link(store, target) -> None:
    (store / BOARD).symlink_to(target)
    (store / f".{BOARD}.{os.getpid()}").symlink_to(target)
    StatusFile(store, study="tiny", fingerprint="f00d", wanted=1)
    assert target.read_text() == "precious"
    assert read_status(store)["study"] == "tiny"


def test_a_folder_that_cannot_be_read_names_the_cure(store, monkeypatch) -> None:
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gatesearch.store.tidy.os.scandir", denied)
    with pytest.raises(DataError, match="Permission denied; name another folder"), locked(store):
        pytest.fail("held")
