"""Records on disk, and what is read off them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatesearch.errors import StudyRefusedError
from gatesearch.results import (
    Result,
    StudyRecord,
    TaskInfo,
    delta,
    front,
    point,
    reference,
    summary,
)

FULL = Result(
    method="interrogate",
    seed=3,
    trial=7,
    params={"lambda_s": 0.1 + 0.2, "tau.depth": 1 / 3},
    metrics={"validation": {"depth": 0.1}, "test": {"depth": 2e-17}},
    gflops=12.5,
    uncounted={"aten::sort": 2},
    curves={"loss.depth": (1.5, 0.7)},
    layers=("stem", "layer1.0"),
    sharing={"depth": (0.0, 1.0)},
    environment={"torch": "2.15.0"},
)


class TestResultOnDisk:
    @pytest.mark.parametrize("result", [FULL, Result("stl", 0), Result("mtl", 1, state="failed")])
    def test_round_trip_through_text_is_exact(self, result):
        assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result

    @given(st.floats(allow_nan=False))
    def test_no_digit_is_lost(self, value):
        result = Result("stl", 0, metrics={"test": {"a": value}})
        again = Result.from_json(json.loads(json.dumps(result.to_json())))
        assert again.metrics["test"]["a"] == value

    @pytest.mark.parametrize("version", [0, 2, 3, None, "4"])
    def test_another_format_is_refused(self, version):
        stored = FULL.to_json() | {"format": version}
        with pytest.raises(StudyRefusedError, match="must have format 4, found"):
            Result.from_json(stored)

    def test_unknown_and_missing_keys_are_named(self):
        stored = FULL.to_json() | {"extra": 1}
        del stored["gflops"]
        with pytest.raises(
            StudyRefusedError, match=r"unknown \['extra'\] and missing \['gflops'\]"
        ):
            Result.from_json(stored)


def network(method, gain, gflops, *, trial=None, seed=0, **more):
    """A network whose only metric is `gain` percent over a baseline of 50 (validation) or 40."""
    metrics = {
        "validation": {"a": 50 * (1 + gain / 100)},
        "test": {"a": 40 * (1 + gain / 100)},
    }
    fields = {"metrics": metrics, "gflops": gflops} | more
    return Result(method, seed, trial, **fields)


STL = network("stl", 0, 10.0)


def study(*trials, baselines=(STL,)):
    return StudyRecord(
        name="s",
        fingerprint="f",
        definition={},
        protocol="p",
        published="",
        tasks=(TaskInfo("a", "mIoU", "%", True, "semseg", "classes"),),
        baselines=tuple(baselines),
        trials=tuple(trials),
    )


class TestRecord:
    def test_the_front_is_chosen_on_validation_and_sorted_by_cost(self):
        lucky = network("interrogate", 1.0, 9.0, trial=2)
        lucky = dataclasses.replace(lucky, metrics={**lucky.metrics, "test": {"a": 80.0}})
        trials = [
            network("interrogate", 3.0, 8.0, trial=0),
            network("interrogate", -1.0, 5.0, trial=1),
            lucky,
            network("interrogate", 9.0, 1.0, trial=3, state="failed"),
        ]
        assert [t.trial for t in front(study(*trials))] == [1, 0]

    def test_gain_is_against_the_same_seed(self):
        stls = [network("stl", 0, 10.0), network("stl", 10, 10.0, seed=1)]
        record = study(baselines=stls)
        trial = network("interrogate", 10, 5.0, trial=0, seed=1)
        assert reference(record, trial, "test") == stls[1].metrics["test"]
        assert delta(record, trial, "test") == pytest.approx(0.0)

    def test_gain_is_undefined_without_something_to_compare(self):
        trial = network("interrogate", 10, 5.0, trial=0, seed=4)
        record = study(trial)
        assert math.isnan(delta(record, trial, "test"))
        assert front(record) == []
        zero = study(baselines=[network("stl", -100, 10.0)])
        assert math.isnan(delta(zero, network("mtl", 0, 5.0), "test"))
        bare = Result("mtl", 0)
        assert math.isnan(delta(study(bare), bare, "validation"))

    def test_points_name_trials_and_baselines_differently(self):
        trial = network("interrogate", 2.0, 5.0, trial=4)
        record = study(trial, baselines=[network("stl", 0, 10.0)])
        shown = point(record, trial)
        assert shown == {
            "trial": 4,
            "seed": 0,
            "delta_mtl": pytest.approx(2.0),
            "gflops": 5.0,
            "backbone_gflops": 0.0,
            "params_m": 0.0,
            "metrics": {"a": pytest.approx(40.8)},
            "split": "test",
        }
        baseline = point(record, record.baselines[0])
        assert (baseline["method"], baseline["weighting"]) == ("stl", "uniform")
        assert "trial" not in baseline

    def test_points_fall_back_on_validation(self):
        trial = network("interrogate", 2.0, 5.0, trial=0, metrics={"validation": {"a": 51.0}})
        shown = point(study(trial), trial)
        assert (shown["split"], shown["delta_mtl"]) == ("validation", pytest.approx(2.0))

    def test_summary_is_strict_json_whatever_failed(self):
        nan = network("interrogate", 0, 5.0, trial=1, metrics={"test": {"a": math.nan}})
        record = study(
            network("interrogate", 1, 6.0, trial=0),
            nan,
            Result("interrogate", 0, 2, state="failed"),
        )
        found = summary(record, Path("s.pdf"))
        text = json.dumps(found, allow_nan=False)
        assert json.loads(text)["trials"] == {"complete": 2, "failed": 1, "pruned": 0}
        assert [item["trial"] for item in found["front"]] == [0]
        assert list(found) == [
            "study", "fingerprint", "protocol", "trials", "front", "baselines", "report",
        ]  # fmt: skip
