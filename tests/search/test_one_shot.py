"""One training for the whole front: choice of networks, and whole runs of a tiny study."""

import math
from types import SimpleNamespace

import optuna
import pytest
import torch
from safetensors.torch import load_file

from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.events import Progress
from gatesearch.methods import build_model, check_study
from gatesearch.methods.interrogate.options import default_patterns
from gatesearch.methods.space import Range
from gatesearch.pruning import extract, load_compact
from gatesearch.results import delta
from gatesearch.search.one_shot import (
    PatternScore,
    _fraction,
    _stored_count,
    _try_configurations,
    chosen,
)
from gatesearch.search.run import run
from gatesearch.store.opening import read_store
from gatesearch.store.optuna_trials import GAIN_AND_COST
from gatesearch.store.patterns import pattern_metrics
from gatesearch.tasks import build_tasks
from gatesearch.trials.costs import costs
from tests.search.tiny import epochs_of, ignore, interrupted_at, tiny

whole_run = pytest.mark.slow("whole run")
# The one training is twice as long as the others.
PHASES = ("one_shot.warmup=0.25", "one_shot.finetune=0.25", "one_shot.epochs=4")
QUICK = (
    *PHASES, "training.epochs=2", "one_shot.patterns=12", "one_shot.statistics=4",
    'tune=["one_shot"]',
)  # fmt: skip


def tried(*points: tuple[float, float]) -> list[PatternScore]:
    return [PatternScore({"share.a": macs}, macs, macs / 100, gain) for macs, gain in points]


def test_aims_bisect_the_range() -> None:
    aims = [_fraction(i) for i in range(9)]
    assert aims == [0, 1, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]


def test_points_take_the_best_below_their_aim() -> None:
    patterns = tried((0, 1), (40, 5), (45, 4), (50, 3), (51, 9), (95, 8), (100, 2))
    costs = [item.macs for item in chosen(patterns, 4)]
    # both ends first (95 is the best of 87.5 to 100), then 37.5 to 50
    assert costs == [0, 95, 40, 45]  # nothing is free below 25: the cheapest
    assert chosen(patterns, 2) == chosen(patterns, 4)[:2]


def test_no_more_points_than_patterns_within_the_budget() -> None:
    patterns = tried((0, 1), (60, 1), (101, 9))
    assert [item.macs for item in chosen(patterns, 2)] == [0, 60]
    with pytest.raises(UsageError, match=r"3 networks need as many patterns .* found 2 of 3 tried"):
        chosen(patterns, 3)


SPACE = {f"share.{task}": Range(0.0, 1.0, per_task=True) for task in ("semseg", "depth")}
SINGLE_TASK = {"semseg": 20.0, "depth": 0.5}


class Offering:
    """A supernet that measures nothing: mIoU rises with the share that semseg owns."""

    def __init__(self, patterns: int, stop_at: int | None = None) -> None:
        self.patterns, self.stop_at, self.measured = patterns, stop_at, []

    def measure(self, params):
        if len(self.measured) == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(params)
        semseg, depth = params["share.semseg"], params["share.depth"]
        return {"semseg": 20 + semseg, "depth": 0.5}, 1e9 * (1 + semseg + depth)


def tried_on(offering: Offering, patterns: optuna.Study, tmp_path, told=None, space=SPACE) -> None:
    study = tiny(tmp_path)
    context = SimpleNamespace(study=study, tasks=build_tasks(study.tasks))
    emit = ignore if told is None else told.append
    _try_configurations(
        offering, space, patterns, context, SINGLE_TASK, count=offering.patterns, emit=emit
    )


def test_configurations_begin_at_even_steps_between_the_ends(tmp_path) -> None:
    patterns = optuna.create_study(directions=list(GAIN_AND_COST))
    offering, told = Offering(patterns=13), []
    tried_on(offering, patterns, tmp_path, told)
    even = [{"share.semseg": i / 8, "share.depth": i / 8} for i in range(9)]
    assert offering.measured[:9] == even
    assert len(offering.measured) == 13
    assert [(e.done, e.total) for e in told if isinstance(e, Progress)] == [
        (done, 13) for done in range(14)
    ]
    first = patterns.trials[0]
    assert first.values == [0.0, 2.0]  # Δ_MTL in percent, GFLOPs
    assert patterns.trials[8].values == pytest.approx([100 * 1 / 20 / 2, 6.0])
    assert pattern_metrics(first) == SINGLE_TASK
    # What was tried stays; a larger number goes on from there.
    tried_on(Offering(patterns=13, stop_at=0), patterns, tmp_path)
    more = Offering(patterns=15)
    tried_on(more, patterns, tmp_path)
    assert len(more.measured) == 2


def test_configurations_go_on_where_they_were_cut_off(tmp_path) -> None:
    whole, cut = (optuna.create_study(directions=list(GAIN_AND_COST)) for _ in range(2))
    tried_on(Offering(patterns=14), whole, tmp_path)
    for stop_at in (3, 8):
        with pytest.raises(KeyboardInterrupt):
            tried_on(Offering(patterns=14, stop_at=stop_at), cut, tmp_path)
    tried_on(Offering(patterns=14), cut, tmp_path)
    complete = [optuna.trial.TrialState.COMPLETE]
    found, expected = (
        [trial.params for trial in study.get_trials(states=complete)] for study in (cut, whole)
    )
    assert found == expected


def test_configurations_of_undefined_gain_count_as_tried(tmp_path, monkeypatch) -> None:
    patterns = optuna.create_study(directions=list(GAIN_AND_COST))
    monkeypatch.setitem(SINGLE_TASK, "semseg", 0.0)
    offering = Offering(patterns=11)
    tried_on(offering, patterns, tmp_path)
    assert len(offering.measured) == 11
    assert len({tuple(params.values()) for params in offering.measured}) == 11
    tried_on(offering, patterns, tmp_path)
    assert len(offering.measured) == 11, "not tried again"
    assert {trial.user_attrs["metrics"]["fault"] for trial in patterns.trials} == {
        "the single-task network of semseg has 0, and the gain divides by it"
    }
    assert {trial.state for trial in patterns.trials} == {optuna.trial.TrialState.FAIL}


@pytest.mark.parametrize(
    ("scaled", "most", "stored", "tried_before", "count"),
    [
        (40, 1000, None, 0, 40),  # a new store
        (40, 1000, 30, 30, 30),  # another default began it
        (40, 1000, None, 7, 1000),  # gatesearch 0.1.0 began it
        (40, 40, 1000, 7, 40),  # the study says so
    ],
)
def test_how_many_configurations_a_store_tries(scaled, most, stored, tried_before, count) -> None:
    patterns = optuna.create_study(directions=list(GAIN_AND_COST))
    for _ in range(tried_before):
        patterns.tell(patterns.ask(), [0.0, 1.0])
    supernet = SimpleNamespace(patterns=scaled, most_patterns=most)
    assert _stored_count(stored, patterns, supernet) == count


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        # 3 x 100 epochs x 500 frames, a quarter, over 256 + 100 frames
        ({"epochs": 100, "train": 500, "validation": 100, "statistics": 256}, 105),
        # statistics of no more frames than there are: 3 * 40 * 60 / 4 / (60 + 15)
        ({"epochs": 40, "train": 60, "validation": 15, "statistics": 256}, 24),
        ({"epochs": 1, "train": 6, "validation": 4, "statistics": 256}, 16),
        ({"epochs": 10_000, "train": 5000, "validation": 10, "statistics": 64}, 1000),
    ],
)
def test_the_default_number_of_configurations_grows_with_the_training(sizes, count) -> None:
    assert default_patterns(**sizes) == count


def test_a_space_of_one_configuration(tmp_path) -> None:
    patterns = optuna.create_study(directions=list(GAIN_AND_COST))
    offering, single = Offering(patterns=4), {name: Range(0.5, 0.5) for name in SPACE}
    tried_on(offering, patterns, tmp_path, space=single)
    assert offering.measured == [dict.fromkeys(SPACE, 0.5)] * 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """(folder, study, record, events) of three points, the second one interrupted once."""
    folder = tmp_path_factory.mktemp("finished")
    study, events = tiny(folder, *QUICK), []
    emit = interrupted_at("trial 1", 4, hear=events.append)
    with pytest.raises(KeyboardInterrupt):
        run(study, n_trials=2, out=folder / "out", data=data, emit=emit)
    for points in (2, 3):
        record = run(study, n_trials=points, out=folder / "out", data=data, emit=events.append)
    return folder / "out", study, record, events


@whole_run
def test_one_supernet_serves_all_points(finished) -> None:
    out, study, record, events = finished
    assert read_store(out) == record
    assert [e for e in epochs_of(events) if e[0] not in ("stl", "mtl")] == [
        ("warm-up of one_shot", 1), ("supernet of one_shot", 2), ("supernet of one_shot", 3),
        ("trial 0", 4), ("trial 1", 4), ("trial 1", 4), ("trial 2", 4),
    ]  # fmt: skip
    supernet, warmup = record.starts
    assert (supernet.part, warmup.part) == ("supernet", "warm-up")
    assert not supernet.metrics
    assert supernet.reused_images == warmup.train_images == 6
    assert supernet.train_images == 6 + 12
    rates = [start.curves["lr"] for start in (warmup, supernet)]
    assert rates[0][-1] == pytest.approx(study.training.lr * 0.75**0.9)
    assert rates[1][-1] == pytest.approx(study.training.lr * 0.25**0.9)
    for trial in record.trials:
        assert trial.method == "one_shot"
        assert set(trial.params) == {"share.semseg", "share.depth"}
        assert (trial.epochs, trial.train_images, trial.reused_images) == (4, 24, 18)
        assert trial.curves["lr"][-1] == 0
        assert trial.reused_pflops == supernet.train_pflops
        assert math.isfinite(delta(record, trial, "validation"))
    # every network anew, the warm-up and the supernet once
    assert record.training_images == 2 * 12 + 6 + 12 + 3 * 6


@whole_run
def test_the_first_points_are_the_ends(finished) -> None:
    _, study, record, _ = finished
    ends = costs(study, ("mtl", "stl"))
    first, second, third = record.trials
    assert first.params == {"share.semseg": 0.0, "share.depth": 0.0}
    assert first.gflops == ends["mtl"].gflops
    assert second.gflops >= third.gflops >= first.gflops
    assert len({tuple(trial.params.values()) for trial in record.trials}) == 3


@whole_run
def test_points_are_cut_from_the_kept_supernet(finished) -> None:
    out, study, record, _ = finished
    supernet = build_model(study, "interrogate")
    supernet.load_state_dict(
        load_file(out / "starts" / "one_shot-supernet-seed0" / "model.safetensors")
    )
    for trial in record.trials:
        supernet.open_shares(torch.tensor([trial.params[f"share.{t}"] for t in study.tasks]))
        cut = extract(supernet)
        kept = load_compact(out / "trials" / f"{trial.trial:04d}" / "model")
        assert kept.description == cut.description


@whole_run
def test_separate_trials_and_budgets_share_the_store(finished, data) -> None:
    out, study, record, _ = finished
    separate = study.model_copy(update={"tune": ()})
    assert separate.fingerprint == study.fingerprint
    events = []
    options = {"out": out, "data": data, "emit": events.append}
    assert run(separate, n_trials=0, **options) == record
    more = run(study, n_trials=2, budgets=["0.8xSTL"], prefer={"depth": 5.0}, **options)
    new = more.trials[len(record.trials) :]
    assert [trial.budget for trial in new] == ["0.8xSTL"] * 2
    stl = costs(study, ("stl",))["stl"]
    assert all(trial.gflops <= 0.8 * stl.gflops for trial in new)
    progress = [event for event in events if isinstance(event, Progress)]
    assert not [event for event in progress if event.stage == "supernet of one_shot"]
    assert {event.done for event in progress if event.stage == "patterns"} == {12}


@whole_run
def test_options_of_the_supernet_bind_once_there_is_one(finished, data, tmp_path) -> None:
    out, record = finished[0], read_store(finished[0])
    other = tiny(tmp_path, *QUICK, "one_shot.epochs=5")
    options = {"data": data, "emit": ignore}
    with pytest.raises(StudyRefusedError, match=r"one_shot\.epochs: 4 -> 5"):
        run(other, n_trials=3, out=out, **options)
    assert read_store(out) == record

    before = run(tiny(tmp_path, "training.epochs=2"), n_trials=0, out=tmp_path / "out", **options)
    after = run(other, n_trials=0, out=tmp_path / "out", **options)
    assert after.baselines == before.baselines
    assert after.definition["options"]["one_shot"]["epochs"] == 5
    assert read_store(tmp_path / "out").fingerprint == check_study(other).fingerprint
    with pytest.raises(StudyRefusedError, match=r"training\.lr"):
        run(tiny(tmp_path, *QUICK, "training.lr=2e-3"), n_trials=0, out=tmp_path / "out", **options)
