"""Choosing a network of a store by budget and preference."""

import subprocess
import sys

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
        network("interrogate", 8, 0, 1.2, 0),
        network("interrogate", 2, 5, 1.3, 1, latency_ms=4.0),
        network("interrogate", 9, 6, 2.0, 2, latency_ms=9.0),
        network("interrogate", 99, 99, 1.0, 3, state="failed"),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("budgets", "prefer", "trial", "gain", "better"),
    [
        ((), {}, 2, 7.5, ["mtan"]),
        (("1.3xMTL",), {}, 0, 4.0, []),
        (("1.3xMTL",), {"b": 2.0}, 1, 4.0, []),
        (("1.25xMTL",), {"b": 9.0}, 0, 0.8, ["mtl"]),
        (("1.9G",), {}, 0, 4.0, []),
        (("2M", "0.45xSTL"), {"b": 2.0}, 1, 4.0, []),
        (("5ms",), {}, 1, 3.5, []),
        (("9ms",), {}, 2, 7.5, []),
    ],
)
def test_the_best_within_all_bounds(budgets, prefer, trial, gain, better) -> None:
    found = select(RECORD, budgets=budgets, prefer=prefer)
    assert found.result.trial == trial
    assert found.gain == pytest.approx(gain)
    assert [result.method for result in found.better] == better


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            ("1.1xMTL",),
            r"none of 3 finished trials keeps to 1\.1xMTL; the cheapest, trial 0, takes",
        ),
        (("3ms",), "none of 3 finished trials keeps to 3ms"),
        (("9G",), r"out of reach: this study's networks go from 1 GFLOPs \(mtl\) to 3 GFLOPs"),
        (("soon",), "a budget must be a number with a unit"),
    ],
)
def test_bounds_that_nothing_keeps_to(budgets, message) -> None:
    with pytest.raises(UsageError, match=message):
        select(RECORD, budgets=budgets)


def test_stores_that_cannot_answer() -> None:
    with pytest.raises(UsageError, match="holds no finished trial"):
        select(StudyRecord("s", "f", {}, "p", "", TASKS))
    alone = StudyRecord("s", "f", {}, "p", "", TASKS, RECORD.baselines[:1], RECORD.trials)
    with pytest.raises(UsageError, match="checked against the baselines mtl and stl"):
        select(alone, budgets=["2G"])


def test_no_torch_is_loaded() -> None:
    code = "import sys, gatesearch.store.selection; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
