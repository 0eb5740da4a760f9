"""Paired differences between a trial and its controls, worked by hand."""

import math
from pathlib import Path

import pytest

from gatesearch.comparisons import (
    Comparison,
    comparisons,
    controlled_trials,
    spread_of_patterns,
)
from gatesearch.report.controls import sections, sharing_sentences
from gatesearch.results import Result, StudyRecord, TaskInfo
from gatesearch.store.selection import select
from gatesearch.summary import point, summary


def network(value, seed, split="validation", **values) -> Result:
    return Result(
        values.pop("method", "control"), seed, metrics={split: {"a": value}}, gflops=1.0, **values
    )


def study(*controls, trials=(), split="validation") -> StudyRecord:
    baselines = [network(100.0, seed, split, method="stl") for seed in range(3)]
    return StudyRecord(
        "s", "0", {}, "p", "", (TaskInfo("a", "m", "%", True, "semseg", "classes"),),
        baselines=tuple(baselines), trials=tuple(trials), controls=controls,
    )  # fmt: skip


def of(kind, value, seed, **values) -> Result:
    return network(value, seed, control=kind, of=4, **values)


TRIAL = network(103.0, 0, method="interrogate", trial=4)
THREE = study(
    of("repeat", 101.0, 1, method="interrogate"),
    of("repeat", 102.0, 2, method="interrogate"),
    *(of("random", value, seed) for seed, value in enumerate((100.0, 101.0, 100.0))),
    *(of("fresh", value, seed) for seed, value in enumerate((101.0, 101.5, 101.0))),
    *(of("mtl@B", value, seed) for seed, value in enumerate((104.0, 102.0, 103.0))),
    trials=[TRIAL],
)


def test_differences_are_of_one_seed_each() -> None:
    rows = {(row.a, row.b): row for row in comparisons(THREE)}
    # 103-100, 101-101, 102-100 percent of 100.
    row = rows["trial 4", "random of trial 4"]
    assert (row.n, row.mean) == (3, pytest.approx(5 / 3))
    assert row.sd == pytest.approx(math.sqrt(7 / 3))
    # t of two degrees of freedom is 4.303.
    assert row.margin == pytest.approx(4.303 * math.sqrt(7 / 3) / math.sqrt(3))
    assert row.verdict == "", "the interval has 0"
    widened = rows["trial 4", "mtl@B of trial 4"]
    assert (widened.mean, widened.sd, widened.margin) == (-1.0, 0.0, 0.0)
    assert widened.verdict == "mtl@B of trial 4"
    assert rows["fresh of trial 4", "random of trial 4"].mean == pytest.approx(2.5 / 3)
    assert ("fresh of trial 4", "mtl@B of trial 4") in rows, "trained alike too"


def test_one_pair_has_no_interval() -> None:
    (row,) = comparisons(study(of("even", 100.0, 0), trials=[TRIAL]))
    assert row == Comparison("trial 4", "even of trial 4", 1, pytest.approx(3.0), None)
    assert row.to_json()["interval"] is None
    assert (
        "(1 pair, no interval)"
        in sharing_sentences(study(of("random", 100.0, 0), trials=[TRIAL]))[0]
    )


def test_failed_and_undefined_controls_are_left_out() -> None:
    record = study(
        of("random", math.nan, 0), Result("control", 0, state="failed", control="even", of=4),
        trials=[TRIAL],
    )  # fmt: skip
    assert comparisons(record) == []
    assert list(controlled_trials(record)[0].controls) == ["random"]


def test_the_sentence_names_the_better_network_and_what_is_chance() -> None:
    (sentence,) = sharing_sentences(THREE)
    assert sentence == (
        "MTL at the width of the same cost (mtl@B) is the better network. Sharing of trial 4 at "
        "equal cost and training, against random ones: +1.67 ± 3.79 (3 pairs), within chance; "
        "mtl@B: −1.00 ± 0.00 (3 pairs); its pattern trained anew: +0.83 ± 3.13 (3 pairs), within "
        "chance. Its pattern trained anew, against random ones: +0.83 ± 0.72 (3 pairs); mtl@B: "
        "−1.83 ± 3.13 (3 pairs), within chance."
    )


def test_the_better_network_is_selected() -> None:
    chosen = select(THREE)
    assert (chosen.result.control, chosen.result.seed) == ("mtl@B", 0)
    assert chosen.other is TRIAL
    assert point(THREE, chosen.result)["control"] == "mtl@B"


def test_the_object_of_run_has_controls() -> None:
    found = summary(THREE, Path("s.pdf"))
    assert [(c["control"], c["of"], c["seed"]) for c in found["controls"]][:3] == [
        ("repeat", 4, 1), ("repeat", 4, 2), ("random", 4, 0),
    ]  # fmt: skip
    assert found["comparisons"][0] == {
        "a": "trial 4", "b": "random of trial 4", "metric": "delta_mtl", "n": 3,
        "mean": pytest.approx(5 / 3), "sd": pytest.approx(math.sqrt(7 / 3)),
        "interval": pytest.approx([5 / 3 - 3.7948, 5 / 3 + 3.7948], abs=1e-3),
    }  # fmt: skip


def test_test_figures_are_compared_where_all_have_them() -> None:
    trial = network(90.0, 0, "test", method="interrogate", trial=4)
    record = study(of("random", 80.0, 0, split="test"), trials=[trial], split="test")
    (section,) = sections(record)
    assert "test split" in section.subtitle
    (row,) = comparisons(record)
    assert row.mean == pytest.approx(10.0)


def test_drawn_patterns_are_told_from_seeds() -> None:
    """Means 101 and 103; within a pattern variances of 2 and 8."""
    record = study(
        of("pattern1", 100.0, 0), of("pattern1", 102.0, 1),
        of("pattern2", 101.0, 0), of("pattern2", 105.0, 1),
        trials=[TRIAL],
    )  # fmt: skip
    between, within = spread_of_patterns(record, controlled_trials(record)[0])
    assert (between, within) == (pytest.approx(math.sqrt(2)), pytest.approx(math.sqrt(5)))
