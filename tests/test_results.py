"""Records on disk, and the figures computed from them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatesearch.errors import StudyRefusedError
from gatesearch.results import (
    STATES,
    Result,
    StudyRecord,
    TaskInfo,
    delta,
    front,
    reference,
)
from gatesearch.summary import point, summary

FULL = Result(
    method="interrogate",
    seed=3,
    trial=7,
    params={"lambda_s": 0.1 + 0.2, "tau.depth": 1 / 3},
    metrics={"validation": {"depth": 0.1}, "test": {"depth": 2e-17}},
    details={"validation": {"depth": {"abs rel": 0.25}}, "test": {}},
    gflops=12.5,
    uncounted={"aten::sort": 2},
    curves={"loss.depth": (1.5, 0.7)},
    layers=("stem", "layer1.0"),
    sharing={"depth": (0.0, 1.0)},
    environment={"torch": "2.15.0"},
    files={"model.safetensors": "0f" * 32},
)


LATER_THAN_7 = ("control", "of", "width", "gates", "task_gflops")


class TestResultOnDisk:
    @pytest.mark.parametrize("result", [FULL, Result("stl", 0), Result("mtl", 1, state="failed")])
    def test_round_trip_through_text_is_exact(self, result):
        assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result

    @given(st.floats(allow_nan=False))
    def test_no_digit_is_lost(self, value):
        result = Result("stl", 0, metrics={"test": {"a": value}})
        again = Result.from_json(json.loads(json.dumps(result.to_json())))
        assert again.metrics["test"]["a"] == value

    @pytest.mark.parametrize("version", [0, 2, 3, 5, 10, None, "4", "6", "7", "8"])
    def test_another_format_is_refused(self, version):
        stored = FULL.to_json() | {"format": version}
        with pytest.raises(StudyRefusedError, match="must have format 4, 6, 7, 8 or 9, found"):
            Result.from_json(stored)

    def test_results_of_format_6_have_no_further_figures(self):
        stored = dataclasses.replace(FULL, details={}).to_json() | {"format": 6}
        for name in ("details", *LATER_THAN_7):
            del stored[name]
        for read in (Result.from_json, lambda value: Result.from_text(json.dumps(value))):
            assert read(stored) == dataclasses.replace(FULL, details={})
            with pytest.raises(
                StudyRefusedError, match=r"of format 6, found unknown \['details'\]"
            ):
                read(stored | {"details": {}})

    def test_results_of_format_7_are_of_no_control(self):
        stored = FULL.to_json() | {"format": 7}
        for name in LATER_THAN_7:
            del stored[name]
        for read in (Result.from_json, lambda value: Result.from_text(json.dumps(value))):
            assert read(stored) == FULL
            with pytest.raises(StudyRefusedError, match=r"of format 7, found unknown \['of'\]"):
                read(stored | {"of": 3})

    def test_results_of_format_8_have_no_costs_of_tasks(self):
        stored = FULL.to_json() | {"format": 8}
        del stored["task_gflops"]
        for read in (Result.from_json, lambda value: Result.from_text(json.dumps(value))):
            assert read(stored) == FULL

    def test_unknown_and_missing_keys_are_named(self):
        stored = FULL.to_json() | {"extra": 1}
        del stored["gflops"]
        with pytest.raises(
            StudyRefusedError, match=r"unknown \['extra'\] and missing \['gflops'\]"
        ):
            Result.from_json(stored)


# What gatesearch 0.1.0 wrote of a trial that it stopped early.
FORMAT_4 = """
{"format": 4, "method": "interrogate", "seed": 3, "trial": 7, "weighting": "uniform",
 "state": "pruned", "reason": "depth is behind the median of 4 trials", "role": "network",
 "budget": "1.3xMTL", "params": {"lambda_s": 0.25, "tau.depth": 0.5, "regulariser": "hinge"},
 "metrics": {"validation": {"depth": 0.75}}, "gflops": 0.0, "backbone_gflops": 0.0,
 "params_m": 0.0, "latency_ms": null, "uncounted": {"aten::sort": 2}, "epochs": 2,
 "train_seconds": 12.5, "train_images": 128, "train_pflops": 0.5, "reused_seconds": 2.5,
 "reused_images": 64, "reused_pflops": 0.25, "curves": {"loss.depth": [1.5, 0.75]},
 "layers": ["stem"], "sharing": {"depth": [0.5]}, "environment": {"torch": "2.11.0"},
 "attempts": 2}
"""


class TestFormat4:
    def test_a_stored_record_is_read_and_its_words_are_those_of_today(self):
        assert Result.from_json(json.loads(FORMAT_4)) == Result(
            method="interrogate",
            seed=3,
            trial=7,
            weighting="uniform",
            state="stopped",
            reason="depth is behind the median of 4 trials",
            part="",
            budget="1.3xMTL",
            params={"lambda_s": 0.25, "tau.depth": 0.5, "regulariser": "hinge"},
            metrics={"validation": {"depth": 0.75}},
            uncounted={"aten::sort": 2},
            epochs=2,
            train_seconds=12.5,
            train_images=128,
            train_pflops=0.5,
            reused_seconds=2.5,
            reused_images=64,
            reused_pflops=0.25,
            curves={"loss.depth": (1.5, 0.75)},
            layers=("stem",),
            sharing={"depth": (0.5,)},
            environment={"torch": "2.11.0"},
            attempts=2,
        )

    @pytest.mark.parametrize(
        ("role", "method", "part"),
        [
            ("network", "interrogate", ""),
            ("warmup", "interrogate", "warm-up"),
            ("supernet_warmup", "one_shot", "warm-up"),
            ("supernet", "one_shot", "supernet"),
        ],
    )
    def test_a_role_becomes_a_part_of_its_method(self, role, method, part):
        result = Result.from_json(json.loads(FORMAT_4) | {"role": role})
        assert (result.method, result.part) == (method, part)

    def test_a_trial_cut_from_the_one_shot_supernet_is_of_that_method(self):
        stored = json.loads(FORMAT_4) | {"params": {"share.depth": 0.5}}
        assert Result.from_json(stored).method == "one_shot"

    @pytest.mark.parametrize("state", ["complete", "failed"])
    def test_other_states_stay(self, state):
        assert Result.from_json(json.loads(FORMAT_4) | {"state": state}).state == state

    def test_what_is_read_is_written_in_the_new_format(self):
        stored = Result.from_json(json.loads(FORMAT_4)).to_json()
        assert (stored["format"], stored["state"], stored["details"]) == (9, "stopped", {})
        assert "role" not in stored

    @pytest.mark.parametrize("role", [{}, {"role": "boss"}, {"role": None}, {"role": [1]}])
    def test_a_damaged_role_is_refused(self, role):
        stored = json.loads(FORMAT_4)
        del stored["role"]
        with pytest.raises(StudyRefusedError, match="of format 4 must have a role of network, "):
            Result.from_json(stored | role)

    @pytest.mark.parametrize("params", [None, 3, ["share.x"], "share.x"])
    def test_damaged_parameters_are_refused(self, params):
        with pytest.raises(StudyRefusedError, match="a stored result is damaged: params"):
            Result.from_json(json.loads(FORMAT_4) | {"params": params})

    def test_results_of_format_7_are_of_no_control(self):
        stored = FULL.to_json() | {"format": 7}
        for name in LATER_THAN_7:
            del stored[name]
        for read in (Result.from_json, lambda value: Result.from_text(json.dumps(value))):
            assert read(stored) == FULL
            with pytest.raises(StudyRefusedError, match=r"of format 7, found unknown \['of'\]"):
                read(stored | {"of": 3})

    def test_unknown_and_missing_keys_are_named(self):
        stored = json.loads(FORMAT_4) | {"extra": 1}
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
            "details": {},
            "split": "test",
        }
        baseline = point(record, record.baselines[0])
        assert (baseline["method"], baseline["weighting"]) == ("stl", "uniform")
        assert "trial" not in baseline

    def test_points_fall_back_on_validation(self):
        trial = network("interrogate", 2.0, 5.0, trial=0, metrics={"validation": {"a": 51.0}})
        shown = point(study(trial), trial)
        assert (shown["split"], shown["delta_mtl"]) == ("validation", pytest.approx(2.0))

    def test_summary_counts_every_state_under_its_published_key(self):
        trials = [
            Result("mtl", 0, number, state=state)
            for number, state in enumerate(["complete", "failed", "failed", *["stopped"] * 3])
        ]
        assert {trial.state for trial in trials} == set(STATES)
        counts = summary(study(*trials), Path("s.pdf"))["trials"]
        assert counts == {"complete": 1, "failed": 2, "pruned": 3}

    def test_what_several_start_from_counts_once(self):
        start = Result("interrogate", 0, part="warm-up", train_seconds=5.0, train_images=50)
        trials = [
            Result("interrogate", 0, n, train_seconds=8.0, reused_seconds=5.0, train_images=80,
                   reused_images=50, train_pflops=0.5)
            for n in range(2)
        ]  # fmt: skip
        record = dataclasses.replace(study(*trials, baselines=()), starts=(start,))
        assert record.training_seconds == 5 + 2 * (8 - 5)
        assert record.training_images == 50 + 2 * (80 - 50)
        assert record.training_pflops == 2 * 0.5

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
            "study", "fingerprint", "protocol", "trials", "front", "baselines", "controls",
            "comparisons", "controllability", "report",
        ]  # fmt: skip


class TestStoredText:
    def test_what_is_written_is_read_to_the_bit(self):
        odd = dataclasses.replace(
            FULL,
            curves={"loss": (math.nan, 1.0, math.inf, -math.inf)},
            metrics={"validation": {"a": math.nan, "b": -math.inf, "c": 5e-324, "d": 0.1 + 0.2}},
        )
        again = Result.from_text(json.dumps(odd.to_json()))
        assert repr(again) == repr(Result.from_json(odd.to_json()))
        assert repr(again.metrics) == repr(odd.metrics)
        assert again == Result.from_json(odd.to_json())  # also where they hold NaN
        assert Result.from_text(json.dumps(FULL.to_json())) == FULL

    @pytest.mark.parametrize(
        "change",
        [
            {"gflops": "1.5"}, {"gflops": -1.5}, {"gflops": math.nan}, {"gflops": math.inf},
            {"gflops": None}, {"gflops": True}, {"latency_ms": -1.0}, {"curves": 3},
            {"curves": {"loss": 3.0}}, {"curves": {"loss": ["a"]}}, {"curves": {"loss": [None]}},
            {"trial": -1}, {"trial": 1.5}, {"trial": "1"}, {"seed": 1.0}, {"seed": None},
            {"epochs": -2}, {"attempts": "2"}, {"uncounted": {"aten::sort": -1}},
            {"uncounted": {"aten::sort": 0.5}}, {"state": "completed"}, {"state": ["complete"]},
            {"params": {"x": math.nan}}, {"params": {"x": [1.0]}}, {"params": []},
            {"metrics": {"train": {"a": 1.0}}}, {"metrics": {"test": 1.0}}, {"layers": "stem"},
            {"layers": [1]}, {"environment": {"torch": 2}}, {"reason": None}, {"method": 7},
        ],
        ids=str,
    )  # fmt: skip
    def test_wrong_types_and_ranges_are_refused_by_name(self, change):
        stored = FULL.to_json() | change
        (name,) = change
        for read in (Result.from_json, lambda value: Result.from_text(json.dumps(value))):
            with pytest.raises(StudyRefusedError, match=f"a stored result is damaged: {name}"):
                read(stored)

    @pytest.mark.parametrize(
        "text",
        ["", "null", "[]", "{}", "1", '{"format": 5}', '{"format": 4}', "[" * 100_000, "\ud800"],
        ids=lambda text: text[:9].encode("ascii", "replace").decode(),
    )
    def test_what_is_no_result_is_refused_in_one_line(self, text):
        with pytest.raises(StudyRefusedError, match="a stored result is damaged") as caught:
            Result.from_text(text)
        assert "\n" not in str(caught.value)

    def test_every_key_is_needed_and_no_other_is_known(self):
        stored = FULL.to_json()
        for name in stored:
            without = {key: value for key, value in stored.items() if key != name}
            with pytest.raises(StudyRefusedError, match=f"{name}: Field required"):
                Result.from_text(json.dumps(without))
        with pytest.raises(StudyRefusedError, match="gflopt: Extra inputs"):
            Result.from_text(json.dumps(stored | {"gflopt": 1.0}))


def test_every_searched_method_has_a_front_of_its_own():
    def trial(number, method, error, gflops):
        metrics = {"validation": {"depth": error}}
        return Result(method, 0, trial=number, metrics=metrics, gflops=gflops)

    stl = Result("stl", 0, metrics={"validation": {"depth": 1.0}}, gflops=4.0)
    trials = (
        trial(0, "interrogate", 0.5, 2.0),
        trial(1, "interrogate", 0.6, 3.0),  # dominated by trial 0
        trial(2, "branch", 0.9, 3.0),  # by trial 0 too, but by no other of its method
        trial(3, "branch", 0.95, 2.5),
        trial(4, "lomt", math.nan, 1.0),
    )
    record = StudyRecord(
        "x",
        "f",
        {},
        "p",
        "",
        (TaskInfo("depth", "RMSE", "m", False, "depth", "depth"),),
        (stl,),
        trials,
    )
    assert [t.trial for t in front(record)] == [0]
    numbers = {method: [t.trial for t in own] for method, own in record.fronts.items()}
    assert numbers == {"interrogate": [0], "branch": [3, 2]}
    shown = summary(record, Path("x.pdf"))
    assert [p["trial"] for p in shown["front"]] == [0]
    assert [p["trial"] for p in shown["fronts"]["branch"]] == [3, 2]
    assert "fronts" not in summary(dataclasses.replace(record, trials=trials[:2]), Path("x.pdf"))
