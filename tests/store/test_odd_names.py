"""A store in a folder of any name: all its files lie in that folder, and no other is made."""

import json
import os
import sqlite3
import string
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from gatesearch.store.backup import BACKUPS, DATABASE, back_up, damage, last_backup, restore
from gatesearch.store.database import close_database, open_database
from gatesearch.store.lock import holder, locked
from gatesearch.store.status import BOARD, StatusFile, read_status
from gatesearch.store.upgrade import upgrade

PRINTABLE = "".join(sorted(set(string.printable) - set("/\r\x0b\x0c")))
NAMES = [
    PRINTABLE,
    # those that mean something in a URL, a template, a pattern or to SQLite
    *("s%5fu", "q%20q", "a?1", "a?mode=memory", "a#1", "a&b=c", "a+b", "a;b", "%", "%%", "%zz"),
    *("{SCHEMA_VERSION}", "{x}", "{", "}", "{}", "%(here)s", "$HOME", "~", "~root", "\\", "a\\b"),
    *("file:a", "file:a?mode=ro", ":memory:", "a:b@c", "sqlite:", "*", "[a-z]", "**", "'", '"'),
    *("-x", "--out", " ", " a ", ".a", "...", "a\nb", "\n", "\t"),
    *("é", "日本語", "\u202e", "\udcff"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_store(folder: Path, study: str) -> None:
    folder.mkdir(parents=True)
    with locked(folder):
        storage = open_database(folder)
        handle = optuna.create_study(study_name=study, storage=storage)
        for key, value in (("name", study), ("fingerprint", "f00d"), ("format", 2)):
            handle.set_user_attr(key, value)
        handle.set_user_attr("definition", {})
        close_database(storage)


def name_in(database: Path) -> str:
    # Opened from within its folder, so that no part of the path can be misread here.
    before = Path.cwd()
    os.chdir(database.parent)
    try:
        with closing(sqlite3.connect(database.name)) as opened:
            rows = opened.execute("SELECT study_name FROM studies").fetchall()
    finally:
        os.chdir(before)
    ((name,),) = rows
    return str(name)


def entries(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.mark.slow("many stores")
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_every_file_of_a_store_lies_in_its_folder(here, relative) -> None:
    start = Path() if relative else here
    for number, name in enumerate(NAMES):
        write_store(start / name, f"study{number}")
    assert entries(here) == set(NAMES)
    for number, name in enumerate(NAMES):
        folder = start / name
        assert name_in(folder / DATABASE) == f"study{number}"
        back_up(folder)
        upgrade(folder)
        StatusFile(folder, study=f"study{number}", fingerprint="f00d", wanted=4)
        (folder / DATABASE).write_bytes(b"garbage" * 1000)
        assert damage(folder / DATABASE) == "file is not a database"
        assert last_backup(folder).path == folder / BACKUPS[0]
        restored = restore(folder)
        os.remove(restored.damaged)
        assert name_in(folder / DATABASE) == f"study{number}"
        assert holder(folder) is None
        (folder / BOARD).unlink()
        told = read_status(folder)
        assert (told["study"], told["damage"]) == (f"study{number}", None)
        json.dumps(told).encode("ascii")
        assert entries(folder) == {DATABASE, BACKUPS[0], "lock"}
    assert entries(here) == set(NAMES)


@pytest.mark.slow("many stores")
@pytest.mark.parametrize("character", [c for c in PRINTABLE if not c.isalnum()])
def test_each_character_in_the_midst_of_a_name(here, character) -> None:
    names = [f"a{character}1", f"a{character}2"]
    for name in names:
        write_store(here / name, name)
    assert entries(here) == set(names)
    for name in names:
        assert name_in(here / name / DATABASE) == name
        assert entries(here / name) == {DATABASE, "lock"}


def test_a_folder_behind_a_link_is_the_one_that_the_system_finds(here) -> None:
    """`link/../store` is beside the folder that the link leads to, not beside the link."""
    (here / "far" / "away").mkdir(parents=True)
    (here / "link").symlink_to("far/away")
    write_store(Path("link/../a?1"), "study")
    assert entries(here / "far") == {"away", "a?1"}
    assert entries(here) == {"far", "link"}
    assert name_in(here / "far" / "a?1" / DATABASE) == "study"
    back_up(Path("link/../a?1"))
    assert entries(here / "far" / "a?1") == {DATABASE, BACKUPS[0], "lock"}


def test_a_folder_of_two_slashes(here) -> None:
    folder = Path(f"/{here}") / "a%b"
    write_store(folder, "study")
    back_up(folder)
    assert entries(here / "a%b") == {DATABASE, BACKUPS[0], "lock"}
