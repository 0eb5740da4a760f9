"""Damaged files of a store through the command line: refused, and taken once they are put right."""

import json
import os
import sqlite3
from contextlib import closing

import pytest

from gatesearch.checksums import with_checksum, without_checksum
from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import TINY, contents

pytestmark = pytest.mark.end_to_end

LAST = "SELECT max(trial_id) FROM trials"


@pytest.fixture
def untaken(own_tiny):
    """A store whose last trial is in its folder alone, as after a restored backup."""
    store = own_tiny / "runs" / "tiny"
    with closing(sqlite3.connect(store / "study.db")) as database, database:
        for table in ("trial_values", "trial_params", "trial_user_attributes", "trials"):
            database.execute(f"DELETE FROM {table} WHERE trial_id = ({LAST})")
    return store


def changed(data: bytes, **values) -> bytes:
    """A result with other figures and the right checksum."""
    table = without_checksum(json.loads(data))
    table["result"] |= values
    return json.dumps(with_checksum(table)).encode()


DAMAGE = {
    "a string for a number": lambda data: changed(data, gflops="1.5"),
    "a number for curves": lambda data: changed(data, curves=3),
    "another trial's number": lambda data: changed(data, trial=0),
    "a flipped digit": lambda data: data.replace(b'"epochs": 2', b'"epochs": 3'),
    "cut": lambda data: data[:-200],
    "deep": lambda data: b"[" * 100_000,
}


def test_a_damaged_result_is_refused_until_it_is_put_right(tiny, untaken, cli) -> None:
    expected = read_store(tiny / "runs" / "tiny")
    run = ("run", "--study", TINY, "--n-trials", 3)
    path = untaken / "trials" / "0002" / "result.json"
    whole = path.read_bytes()
    for name, damage in DAMAGE.items():
        path.write_bytes(damage(whole))
        assert path.read_bytes() != whole, name
        said = cli(*run).refused(4)
        assert len(said.splitlines()) <= 2, said
        assert f"{path.relative_to(cli.folder)}" in said
        assert [trial.trial for trial in read_store(untaken).trials] == [0, 1]
    report = cli("report", "--study", TINY)
    assert report.code == 0
    assert "folders of trials 2 are not in the database" in " ".join(report.stderr.split())
    path.write_bytes(whole)
    done = cli(*run)
    assert done.code == 0, done.stderr
    assert "epochs" not in done.stderr  # nothing was trained again
    assert repr(read_store(untaken)) == repr(expected).replace(str(tiny), str(cli.folder))


@pytest.mark.parametrize("name", ["lock", "log.jsonl", "status.json", "trials", "study.db-journal"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_refused_and_what_they_lead_to_is_left(
    own_tiny, cli, name, kind
) -> None:
    store, target = own_tiny / "runs" / "tiny", cli.folder / "target"
    target.mkdir()
    (target / "file").write_text("precious")
    if (store / name).exists():
        (store / name).rename(cli.folder / "aside")
    if kind == "link":
        (store / name).symlink_to(target if name == "trials" else target / "file")
    else:
        os.mkfifo(store / name)
    before = contents(cli.folder)
    said = cli("run", "--study", TINY, "--n-trials", 4).refused(4)
    assert f"{name} must be a " in said
    for verb in (("status",), ("report",), ("select",)):
        assert cli(*verb, "--study", TINY).code in (0, 4)
    after = {k: v for k, v in contents(cli.folder).items() if not k.startswith("reports/")}
    assert after == {k: v for k, v in before.items() if not k.startswith("reports/")}
    assert (target / "file").read_text() == "precious"
    assert [path.name for path in target.iterdir()] == ["file"]
