"""Choosing a network of a store by budget and preference."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from gatesearch.errors import UsageError
from gatesearch.results import Result, StudyRecord, TaskInfo
from gatesearch.store.selection import select

TASKS = (
    TaskInfo("a", "mIoU", "%", True, "semseg", "classes"),
    TaskInfo("b", "RMSE", "m", False, "depth", "range"),
)


def network(method: str, a: float, b: float, gflops: float, trial: int | None = None, **more):
    """Gains of a and b in percent over single-task networks of 10 and 1."""
    metrics = {"validation": {"a": 10 * (1 + a / 100), "b": 1 - b / 100}}
    return Result(method, 0, trial, metrics=metrics, gflops=gflops, params_m=gflops, **more)


RECORD = StudyRecord(
    "s", "f", {}, "p", "", TASKS,
    baselines=(network("stl", 0, 0, 3.0), network("mtl", 5, 1, 1.0), network("mtan", 9, 9, 2.5)),
    trials=(
        network("interrogate", 8, 0, 1.2, 0, task_gflops={"a": 0.9, "b": 1.1}),
        network("interrogate", 2, 5, 1.3, 1, latency_ms=4.0),
        network("interrogate", 9, 6, 2.0, 2, latency_ms=9.0),
        network("interrogate", 99, 99, 1.0, 3, state="failed"),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("budgets", "prefer", "name", "gain", "other", "other_gain"),
    [
        ((), {}, "mtan", 9.0, "trial 2", 7.5),
        (("1.3xMTL",), {}, "trial 0", 4.0, "mtl", 3.0),
        (("1.3xMTL",), {"b": 2.0}, "trial 1", 4.0, "mtl", (5 + 2 * 1) / 3),
        (("1.25xMTL",), {"b": 9.0}, "mtl", 1.4, "trial 0", 0.8),
        (("1.1xMTL",), {}, "mtl", 3.0, None, math.nan),  # no trial is as cheap
        (("1.9G",), {}, "trial 0", 4.0, "mtl", 3.0),
        # All keep to them, though no search needs as much.
        (("9G", "2xSTL"), {}, "mtan", 9.0, "trial 2", 7.5),
        (("2M", "0.45xSTL"), {"b": 2.0}, "trial 1", 4.0, "mtl", (5 + 2 * 1) / 3),
        # Latency was measured of these trials alone.
        (("5ms",), {}, "trial 1", 3.5, None, math.nan),
        (("9ms",), {}, "trial 2", 7.5, None, math.nan),
        # What a task costs alone was counted for this trial alone.
        (("a:0.9G", "1.2xMTL"), {}, "trial 0", 4.0, None, math.nan),
        (("b:0.4xSTL",), {}, "trial 0", 4.0, None, math.nan),
    ],
)
def test_the_best_of_all_networks_within_all_bounds(
    budgets, prefer, name, gain, other, other_gain
) -> None:
    found = select(RECORD, budgets=budgets, prefer=prefer)
    assert found.result.name == name
    assert found.gain == pytest.approx(gain)
    assert (None if found.other is None else found.other.name) == other
    assert found.other_gain == pytest.approx(other_gain, nan_ok=True)


def test_single_task_networks_are_candidates_too() -> None:
    worse = tuple(replace(r, metrics=network("", -5, -5, 1).metrics) for r in RECORD.trials)
    record = replace(RECORD, baselines=RECORD.baselines[:1], trials=worse)
    found = select(record)
    assert (found.result.name, found.gain, found.other.name) == ("stl", 0.0, "trial 0")
    assert found.other_gain == pytest.approx(-5)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            ("3ms", "2G"),
            r"none of 6 finished networks, baselines included, keeps to 3ms, 2G; the cheapest, "
            r"mtl, takes 1 GFLOPs and 1 M .*; latency was measured for 2 of them, .*: go "
            r"--study 'a b' --budget 3ms --budget 2G$",
        ),
        (
            ("0.9G",),
            r"0.9G is 0.9 GFLOPs, out of reach: .* networks go from 1 GFLOPs \(mtl\) to 3",
        ),
        (("a:0.8G",), r"keeps to a:0.8G; .*; what each task costs alone was counted for 1 of them"),
        (("d:2G",), r"unknown task 'd'.*\(known: a, b"),
        (("soon",), "a budget must be a number with a unit"),
    ],
)
def test_bounds_that_nothing_keeps_to(budgets, message) -> None:
    with pytest.raises(UsageError, match=message):
        select(RECORD, budgets=budgets, run="go --study 'a b'")


def test_bounds_below_the_multi_task_network_where_a_method_goes_there() -> None:
    narrow = network("ecmt", -5, -5, 0.5, 7)
    record = replace(RECORD, trials=(*RECORD.trials, narrow))
    assert select(record, budgets=["0.6xMTL"]).result.name == "trial 7"
    with pytest.raises(UsageError, match=r"keeps to 0.4xMTL; the cheapest, trial 7, takes 0.5 GF"):
        select(record, budgets=["0.4xMTL"])


def test_stores_that_cannot_answer() -> None:
    with pytest.raises(UsageError, match=r"holds no finished network to select; go on with: go$"):
        select(StudyRecord("s", "f", {}, "p", "", TASKS), run="go")
    failed = replace(RECORD, baselines=(), trials=(replace(RECORD.trials[3], reason="a nan"),))
    with pytest.raises(UsageError, match="no finished network to select; trial 3 failed: a nan;"):
        select(failed)
    alone = StudyRecord("s", "f", {}, "p", "", TASKS, RECORD.baselines[:1], RECORD.trials)
    missing = r"1.3xMTL is a multiple of the cost of mtl, which .*: go --methods stl,mtl --n-trials"
    with pytest.raises(UsageError, match=missing):
        select(alone, budgets=["1.3xMTL"], run="go")
    # Bounds that are no multiple of a baseline, or of one that is there, need no other.
    for budgets in (["2G"], ["0.7xSTL"], ["2.1M"]):
        assert select(alone, budgets=budgets).result.name == "trial 2"
    with pytest.raises(UsageError, match=r"none of 4 .* keeps to 1.1G; the cheapest, trial 0, ta"):
        select(alone, budgets=["1.1G"], run="go")


def test_a_gain_that_is_undefined_says_why() -> None:
    zero = network(
        "stl",
        0,
        0,
        3.0,
    )
    zero = replace(zero, metrics={"validation": {"a": 0.0, "b": 1.0}})
    record = replace(RECORD, baselines=(zero, *RECORD.baselines[1:]))
    with pytest.raises(UsageError, match=(
        "Δ_MTL is undefined for all 6 finished networks of s: the single-task network of a has 0"
    )):  # fmt: skip
        select(record)


def test_no_torch_is_loaded() -> None:
    code = "import sys, gatesearch.store.selection; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
