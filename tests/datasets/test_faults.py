"""The table of faults: one screen, every kind, the cure once or per row."""

from pathlib import Path

from gatesearch.datasets.faults import Fault, FileFaultError, as_fault, fault_table, first_names
from gatesearch.errors import DataError


def test_a_table_by_hand():
    faults = [
        Fault("wrong size", "b.png", "found 2", "resize it"),
        Fault("grey", "x", "c", "become colour", 3, is_warning=True),
        Fault("wrong size", "a.png", "found 1", "resize it"),
        Fault("unreadable", "d.png", "cut off", "get it again"),
        Fault("unreadable", "c.png", "no image", "convert it"),
    ]
    assert fault_table(faults, where="own").splitlines() == [
        "own has 4 faults:",
        "  wrong size (2): resize it",
        "    a.png: found 1",
        "    b.png: found 2",
        "  unreadable (2)",
        "    c.png: no image; convert it",
        "    d.png: cut off; get it again",
        "  warning: grey (3): become colour",
        "    x: c",
    ]


def test_many_faults_of_many_kinds_fit_on_one_screen():
    faults = [Fault(f"kind {i % 7}", f"{i}", "x" * 500, "y") for i in range(900)]
    lines = fault_table(faults, where="own").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 200
    assert all(any(f"kind {i} (" in line for line in lines) for i in range(7))
    assert any("and " in line and " more" in line for line in lines)


def test_line_breaks_in_names_make_no_lines():
    assert len(fault_table([Fault("k", "a\nb\rc", "x", "y")], where="own").splitlines()) == 3


def test_an_error_of_a_file_is_cut_into_rule_and_cure():
    path = Path("/own/a.png")
    fault = as_fault(DataError(f"{path} must be small, found 3; make it so"), path, Path("/own"))
    assert (fault.place, fault.found, fault.cure) == (
        "a.png", "must be small, found 3", "make it so")  # fmt: skip
    error = FileFaultError("kind", path, "must be b", "mend it")
    assert str(error) == "/own/a.png must be b; mend it"
    assert as_fault(error, path, Path("/elsewhere")).place == "/own/a.png"


def test_five_names_are_shown():
    assert first_names("abcde") == "a, b, c, d, e"
