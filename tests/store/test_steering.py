"""Which networks of a store can be steered, and how well they obey."""

import json
import math
from dataclasses import replace

import pytest

from gatesearch.results import Result, StudyRecord, TaskInfo
from gatesearch.store.steering import controllability

TASKS = (
    TaskInfo("a", "mIoU", "%", True, "semseg", "classes"),
    TaskInfo("b", "RMSE", "m", False, "depth", "range"),
)


def network(method, a, b, gflops, trial=None, prefer=None, budget="", name="prefer", **more):
    """Losses of a and b relative to single-task networks of 10 and 1."""
    params = {f"{name}.a": prefer[0], f"{name}.b": prefer[1]} if prefer else {}
    return Result(
        method, 0, trial, params=params, budget=budget, gflops=gflops, params_m=gflops,
        metrics={"validation": {"a": 10 / a, "b": b}}, **more,
    )  # fmt: skip


BASELINES = (network("stl", 1, 1, 3.0), network("mtl", 1.1, 1.1, 1.0))


def record(*trials: Result) -> StudyRecord:
    return StudyRecord("s", "f", {}, "p", "", TASKS, baselines=BASELINES, trials=trials)


def test_by_method_and_budget() -> None:
    found = controllability(
        record(
            network("ecmt", 0.5, 1.5, 0.50, 0, (0.9, 0.3), "0.5xMTL"),
            network("ecmt", 1.5, 0.5, 0.30, 1, (0.2, 0.6), "0.5xMTL"),
            network("ecmt", 1.0, 1.0, 0.60, 2, (1.0, 1.0)),
            network("one_shot", 1.0, 1.0, 2.00, 3, (0.0, 0.0), name="share"),
            network("interrogate", 1.0, 1.0, 2.00, 4),
            network("ecmt", 0.1, 0.1, 0.50, 5, (1.0, 1.0), "0.5xMTL", state="failed"),
        )
    )
    assert [(row.method, row.budget, row.n) for row in found] == [
        ("ecmt", "0.5xMTL", 2), ("ecmt", "", 1), ("one_shot", "", 1),
    ]  # fmt: skip
    first = found[0]
    assert first.hypervolume == pytest.approx(1.25)
    assert first.uniformity == pytest.approx(1)  # 0.9 x 0.5 = 0.3 x 1.5, 0.2 x 1.5 = 0.6 x 0.5
    assert first.budgets_hit == 0.5  # 0.30 is far below 0.5 x 1.0
    assert [(row.hypervolume, row.uniformity, row.budgets_hit) for row in found[1:]] == [
        (pytest.approx(1), pytest.approx(1), 1.0)
    ] * 2


def test_several_budgets_and_latency() -> None:
    own = {"prefer": (1.0, 1.0)}
    timed = network("ecmt", 1, 1, 0.5, 0, budget="0.9G+12ms@cpu", latency_ms=11.5, **own)
    assert controllability(record(timed))[0].budgets_hit == 1.0
    assert controllability(record(replace(timed, latency_ms=None)))[0].budgets_hit == 0.0
    alone = replace(record(network("ecmt", 1, 1, 0.5, 0, budget="2xMTL", **own)), baselines=())
    (row,) = controllability(alone)
    assert math.isnan(row.budgets_hit)
    assert math.isnan(row.hypervolume)
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["uniformity"] is None


def test_nothing_to_steer() -> None:
    assert controllability(record()) == []
    partly = network("ecmt", 1, 1, 1, 0)
    assert controllability(record(replace(partly, params={"prefer.a": 1.0}))) == []
