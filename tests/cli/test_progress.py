"""Events as lines of a pipe and of the log."""

import json
from pathlib import Path

import numpy as np
import pytest

from gatesearch.cli.progress import _lines, _Pace, emitter
from gatesearch.errors import DataError


def progress(done: int, **more) -> dict:
    epochs = {"stage": "stl", "done": done, "total": 100, "unit": "epochs"}
    return {"event": "progress", "message": "", **epochs, **more}


def test_lines_are_throttled_and_say_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 1.0, 5.0, 12.0, 13.0, 14.0])
    show = _lines(clock=lambda: next(now))
    for done in (0, 1, 4, 10, 11, 100):
        show(progress(done, **{"loss.depth": 0.5}))
    told = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    # 10 epochs in 12 s leave 90 epochs, 108 s
    assert told == [
        "stl: 0/100 epochs, loss depth 0.5",
        "stl: 10/100 epochs, 0:01:48 left, loss depth 0.5",
        "stl: 100/100 epochs, loss depth 0.5",
    ]


def test_time_left_counts_from_where_a_resumed_stage_began(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = iter([0.0, 10.0])
    show = _lines(clock=lambda: next(now))
    show(progress(90))
    show(progress(95))
    assert capsys.readouterr().err.splitlines()[-1].endswith("stl: 95/100 epochs, 0:00:10 left")


def test_every_event_is_kept_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "log.jsonl"
    with emitter(log=log) as emit:
        emit({"event": "warning", "message": "[bold]no markup[/bold] here"})
        for done in range(3):
            emit(progress(done, **{"loss.depth": np.float32(0.5)}))
    with emitter(log=log) as emit:
        emit({"event": "log", "message": "again"})
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["warning", *["progress"] * 3, "log"]
    assert entries[1]["loss.depth"] == 0.5
    assert all(entry["time"][:2] == "20" for entry in entries)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "warning: [bold]no markup[/bold] here" in printed.err


def test_without_events_there_is_no_log(tmp_path: Path) -> None:
    with emitter(log=tmp_path / "store" / "log.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder must be")
    with (
        pytest.raises(DataError, match=r"cannot write .*log\.jsonl .*choose another --out"),
        emitter(log=tmp_path / "store" / "log.jsonl") as emit,
    ):
        emit({"event": "log", "message": "x"})


def test_a_stage_of_two_steps_has_its_time_left_behind_the_first() -> None:
    pace = _Pace()
    steps = [({"stage": "search", "done": done, "total": 2}, 3600.0 * done) for done in (0, 1, 2)]
    # an hour a trial: none known, one hour left, nothing left
    assert [pace.left(event, now) for event, now in steps] == [None, 3600.0, None]
    # forgotten at its end, so that the stage of the same name begins anew
    assert pace.left({"stage": "search", "done": 1, "total": 2}, 9999.0) is None
