"""Checksums are SHA-256, as other tools compute it, and do not depend on the order of keys."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from gatesearch.checksums import checksum, file_checksum, with_checksum, without_checksum
from gatesearch.files import FileRefusedError


def test_values_are_hashed_as_compact_json() -> None:
    # printf '%s' '{"a":["x",null],"b":1.5}' | sha256sum
    expected = hashlib.sha256(b'{"a":["x",null],"b":1.5}').hexdigest()
    assert checksum({"b": 1.5, "a": ["x", None]}) == expected
    assert checksum([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_values_that_differ_have_other_checksums() -> None:
    values: list[object] = [0, 0.0, -0.0, "0", None, math.nan, math.inf, [], {}, {"a": 0}, "é", "ü"]
    assert len({checksum(value) for value in values}) == len(values)


def test_files_are_hashed_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # The example of FIPS 180-2.
    assert file_checksum(path) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    path.write_bytes(b"x" * (2**20 + 1))
    assert file_checksum(path) == hashlib.sha256(b"x" * (2**20 + 1)).hexdigest()


def test_files_that_are_not_regular_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(FileRefusedError, match="found a symbolic link"):
        file_checksum(tmp_path / "link")


def test_a_table_carries_its_checksum() -> None:
    table = {"a": [1.5, math.inf], "b": {"c": "ü"}}
    stored = with_checksum(table)
    assert stored == {**table, "checksum": checksum(table)}
    assert without_checksum(json.loads(json.dumps(stored))) == table


def test_a_table_that_was_changed_is_refused() -> None:
    stored = with_checksum({"a": 1, "b": None})
    nothing = {name: value for name, value in stored.items() if name != "checksum"}
    changed = [stored | {"a": 1.0}, stored | {"c": 0}, stored | {"checksum": ["x"]}, nothing]
    changed += [{"A": 1, "b": None, "checksum": stored["checksum"]}]
    for table in changed:
        with pytest.raises(ValueError, match="not those that it was written with"):
            without_checksum(table)
