"""The tables, or the JSON object, that `run` and `report` print of a record."""

import dataclasses
import json
from pathlib import Path

import pytest

from gatesearch.cli import console
from gatesearch.cli.result import print_result
from gatesearch.results import Result, StudyRecord, TaskInfo


def result(method: str, trial: int | None = None, **figures) -> Result:
    return Result(method=method, seed=0, trial=trial, **figures)


RECORD = StudyRecord(
    name="rooms",
    fingerprint="0123456789ab",
    definition={},
    protocol="rooms-64",
    published="",
    tasks=(
        TaskInfo("seg", "mIoU", "%", True, "semseg", "classes", 8),
        TaskInfo("depth", "RMSE", "m", False, "depth", "range"),
    ),
    baselines=(
        result("stl", gflops=4.0, metrics={"validation": {"seg": 40.0, "depth": 0.5}}),
        result("mtl", state="failed", reason="diverged"),
    ),
    trials=(
        # (44 - 40) / 40 = 10 %, (0.5 - 0.45) / 0.5 = 10 %
        result("interrogate", 3, gflops=2.5, metrics={"validation": {"seg": 44.0, "depth": 0.45}}),
        result("interrogate", 4, state="failed", reason="out of memory"),
        result("interrogate", 5, state="stopped", reason="behind the median"),
    ),
)


def test_table_shows_the_front_beside_the_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(RECORD, Path("reports/rooms.pdf"), as_json=False)
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "trial 3" in line).split()
    assert row[2:6] == ["44.000", "0.450", "+10.00", "2.500"]
    headings = [line.split() for line in printed.splitlines()[2:5]]
    assert headings == [
        ["seg", "depth"],
        ["mIoU", "RMSE", "Δ_MTL", "params"],
        ["network", "(%)", "↑", "(m)", "↓", "(%)", "GFLOPs", "(M)"],
    ]
    assert "trial 4" not in printed
    assert "trial 5" not in printed
    assert printed.splitlines()[-2:] == [
        "trials: 1 complete, 1 failed, 1 stopped",
        "report: reports/rooms.pdf",
    ]


@pytest.mark.parametrize("width", [1, 20, 40])
def test_no_column_is_lost_on_a_narrow_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", width)
    print_result(RECORD, Path("r.pdf"), as_json=False)
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "44.000" in line).split()
    assert row[-5:] == ["44.000", "0.450", "+10.00", "2.500", "0.000"]


def test_json_is_one_strict_object_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(RECORD, Path("reports/rooms.pdf"), as_json=True)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = capsys.readouterr().out.splitlines()[-1]
    printed = json.loads(line, parse_constant=refuse)
    assert printed["front"][0]["trial"] == 3
    assert printed["front"][0]["delta_mtl"] == pytest.approx(10.0)
    assert printed["baselines"][1]["delta_mtl"] is None
    assert printed["report"] == "reports/rooms.pdf"
    # The published name of the count of stopped trials.
    assert printed["trials"] == {"complete": 1, "failed": 1, "pruned": 1}


def test_a_study_without_results_still_says_where_the_report_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = StudyRecord("rooms", "0", {}, "rooms-64", "", RECORD.tasks)
    print_result(empty, Path("r.pdf"), as_json=False)
    assert capsys.readouterr().out == "trials: 0 complete, 0 failed, 0 stopped\nreport: r.pdf\n"


def test_figures_of_two_seeds_are_never_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    again = Result("stl", 1, gflops=4.0, metrics={"validation": {"seg": 41.0, "depth": 0.5}})
    record = dataclasses.replace(RECORD, baselines=(*RECORD.baselines, again))
    print_result(record, Path("r.pdf"), as_json=False)
    _, first, second = capsys.readouterr().out.split("rooms (rooms-64), seed ")
    assert first.startswith("0, validation part: baselines, then the front")
    assert second.startswith("1, validation part: baselines, then the front")
    assert ("40.000" in first, "41.000" in first) == (True, False)
    assert ("40.000" in second, "41.000" in second) == (False, True)


def test_what_can_be_steered_is_in_the_object(capsys) -> None:
    steered = dataclasses.replace(
        RECORD.trials[0], method="ecmt", params={"prefer.seg": 0.5, "prefer.depth": 0.5}
    )
    record = dataclasses.replace(RECORD, trials=(steered, *RECORD.trials[1:]))
    print_result(record, Path("reports/rooms.pdf"), as_json=True)
    (entry,) = json.loads(capsys.readouterr().out)["controllability"]
    # Losses 40 / 44 and 0.45 / 0.5, up to a reference of 2.
    volume = (2 - 40 / 44) * (2 - 0.9)
    assert entry.pop("hypervolume") == pytest.approx(volume)
    assert entry.pop("uniformity") == pytest.approx(1, abs=1e-4)
    assert entry == {"method": "ecmt", "budget": "", "seed": 0, "budgets_hit": 1.0, "n": 1}
