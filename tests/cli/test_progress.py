"""Events on a terminal, as lines of a pipe, and in the log."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from gatesearch.cli import progress
from gatesearch.cli.progress import TimeLeft, emitter, show_lines
from gatesearch.errors import DataError, StudyRefusedError
from gatesearch.events import Log, NetworkTrained, Progress, Warned


def epochs(done: int, **values: float) -> Progress:
    return Progress("stl", done, 100, "epochs", values=values)


def test_lines_are_throttled_and_say_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 1.0, 5.0, 12.0, 13.0, 14.0])
    show = show_lines(clock=lambda: next(now))
    for done in (0, 1, 4, 10, 11, 100):
        show(epochs(done, **{"loss.depth": 0.5, "lr": 0.1}))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    # 10 epochs in 12 s leave 90 epochs, 108 s
    assert lines == [
        "stl: 0/100 epochs, loss depth 0.5",
        "stl: 10/100 epochs, 0:01:48 left, loss depth 0.5",
        "stl: 100/100 epochs, loss depth 0.5",
    ]


def test_time_left_counts_from_where_a_resumed_stage_began(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = iter([0.0, 10.0])
    show = show_lines(clock=lambda: next(now))
    show(epochs(90))
    show(epochs(95))
    assert capsys.readouterr().err.splitlines()[-1].endswith("stl: 95/100 epochs, 0:00:10 left")


def test_messages_are_never_held_back(capsys: pytest.CaptureFixture[str]) -> None:
    show = show_lines(clock=lambda: 0.0)
    for event in (Log("a"), Log("a"), Warned("b"), NetworkTrained("c", trial=True)):
        show(event)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["a", "a", "warning: b", "c"]


def test_every_event_is_kept_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "log.jsonl"
    with emitter(log=log) as emit:
        emit(Warned("[bold]no markup[/bold] here"))
        assert not log.parent.exists(), "nothing is made before the run has made its folder"
        log.parent.mkdir()
        for done in range(3):
            emit(epochs(done, **{"loss.depth": 0.5}))
    with emitter(log=log) as emit:
        emit(Log("again"))
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
        emit(Log("x"))


def test_a_terminal_has_a_bar_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(
        progress, "err", Console(file=terminal, force_terminal=True, width=100, highlight=False)
    )
    with emitter() as emit:
        emit(epochs(40))
        emit(Progress("search", 1, 4, "[trials]"))
        # A line of text makes rich draw the bars below it anew.
        emit(Warned("[bold]no markup[/bold] here"))
    text = terminal.getvalue()
    assert "40/100" in text
    assert "[trials]" in text
    assert "warning: [bold]no markup[/bold] here" in text


class TestTimeLeft:
    def test_a_stage_of_two_steps_has_its_time_left_behind_the_first(self) -> None:
        left = TimeLeft()
        steps = [(Progress("search", done, 2, "trials"), 3600.0 * done) for done in (0, 1, 2)]
        # an hour per trial: none known, one hour left, nothing left
        assert [left.seconds(event, now) for event, now in steps] == [None, 3600.0, None]

    def test_a_stage_is_forgotten_at_its_end(self) -> None:
        left = TimeLeft()
        left.seconds(Progress("search", 0, 2, "trials"), 0.0)
        left.seconds(Progress("search", 2, 2, "trials"), 10.0)
        # The next stage of that name begins anew: its first event gives no speed.
        assert left.seconds(Progress("search", 1, 2, "trials"), 9999.0) is None

    def test_stages_have_a_speed_each(self) -> None:
        left = TimeLeft()
        for stage in ("stl", "mtl"):
            left.seconds(Progress(stage, 0, 10, "epochs"), 0.0)
        assert left.seconds(Progress("stl", 5, 10, "epochs"), 1.0) == 1.0
        assert left.seconds(Progress("mtl", 1, 10, "epochs"), 1.0) == 9.0


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_log_is_written_only_if_it_is_a_regular_file(tmp_path, kind) -> None:
    log, target = tmp_path / "log.jsonl", tmp_path / "target"
    target.write_text("kept")
    if kind == "link":
        log.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(log)
    else:
        log.mkdir()
    with (
        pytest.raises(StudyRefusedError, match=r"log\.jsonl must be a regular file"),
        emitter(log) as emit,
    ):
        emit(Warned("x"))
    assert target.read_text() == "kept"
