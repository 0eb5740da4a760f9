"""Whole runs of a tiny study: kept, continued, interrupted, failing."""

import math
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gatesearch.datasets import scenes
from gatesearch.errors import DataError, StudyRefusedError, UsageError
from gatesearch.events import NetworkTrained, Warned
from gatesearch.pruning import load_compact
from gatesearch.results import StudyRecord, front
from gatesearch.search.run import run
from gatesearch.search.setup import ExecutionOptions
from gatesearch.store.opening import read_store
from gatesearch.store.status import read_status
from gatesearch.training import TrainingError
from gatesearch.trials.costs import costs
from tests.search.tiny import epochs_of, ignore, interrupted_at, residual, tiny

pytestmark = pytest.mark.slow("whole run")


def untimed(record: StudyRecord) -> list:
    """What a run found, without wall-clock times and numbers of attempts."""
    return [replace(r, train_seconds=0.0, attempts=1) for r in (*record.baselines, *record.trials)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """(folder, study, record, events) of a run of one trial in one go."""
    folder = tmp_path_factory.mktemp("finished")
    study, events = tiny(folder), []
    record = run(study, n_trials=1, out=folder / "out", data=data, emit=events.append)
    return folder / "out", study, record, events


def test_what_a_run_leaves(finished) -> None:
    out, study, record, events = finished
    assert read_store(out) == record
    assert [r.method for r in record.baselines] == ["stl", "mtl"]
    assert [(r.trial, r.state) for r in record.trials] == [(0, "complete")]
    assert [record.data[part] for part in ("train", "validation", "test")] == [6, 4, 2]
    stl, mtl = record.baselines
    assert stl.backbone_gflops == pytest.approx(2 * mtl.backbone_gflops)
    for trial in record.trials:
        # the shared stream may come on top of the tasks' own
        assert mtl.gflops - mtl.backbone_gflops <= trial.gflops - trial.backbone_gflops
        assert trial.backbone_gflops <= 3 * mtl.backbone_gflops
        assert set(trial.params) == {"lambda_s", "tau.semseg", "tau.depth"}
        assert all(0.2 <= trial.params[f"tau.{t}"] <= 0.8 for t in study.tasks)
        assert set(trial.curves) == {"lr", "sparsity"} | {
            f"{kind}.{task}" for kind in ("loss", "weight", "open") for task in study.tasks
        }
        assert (trial.epochs, trial.train_images) == (2, 12)
        # six frames an epoch; forward and twice that backward, of both tasks' and the shared stream
        streams = 3 * mtl.backbone_gflops + (mtl.gflops - mtl.backbone_gflops)
        assert trial.train_pflops == pytest.approx(3 * streams * 12 / 1e6, rel=1e-6)
    chosen = {r.trial for r in front(record)}
    for result in (*record.baselines, *record.trials):
        shown = result.trial is None or result.trial in chosen
        assert ("test" in result.metrics) == shown
    ended = [event.trial for event in events if isinstance(event, NetworkTrained)]
    assert ended == [False, False, True]


def test_kept_networks_are_what_was_measured(finished) -> None:
    out, _, record, _ = finished
    for trial in record.trials:
        network = load_compact(out / "trials" / f"{trial.trial:04d}" / "model")
        params = sum(p.numel() for p in network.parameters())
        assert params / 1e6 == pytest.approx(trial.params_m)
    state = load_file(out / "baselines" / "mtl-seed0" / "model.safetensors")
    assert any(name.startswith("encoder.") for name in state)


def test_predictions_hold_numbers_only(finished) -> None:
    out, _, record, _ = finished
    with np.load(out / "predictions.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    labels = ["truth", "stl", "mtl", *(f"trial {r.trial}" for r in front(record))]
    drawn = {f"{label}.{task}" for label in labels for task in ("semseg", "depth")}
    assert set(arrays) == {"image", "seed"} | drawn
    assert arrays["image"].shape == (1, 16, 16, 3)
    assert arrays["truth.semseg"].shape == arrays["mtl.semseg"].shape == (1, 16, 16)
    # the frame in the middle of the test part
    frame = scenes.render(1, split="test", size=(16, 16))
    assert np.array_equal(arrays["image"][0], frame["image"])


def test_nothing_left_to_do_changes_nothing(finished, data) -> None:
    out, study, record, _ = finished
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("model.*")}
    events = []
    for n_trials in (1, 0):
        again = run(study, n_trials=n_trials, out=out, data=data, emit=events.append)
        assert again == record
    assert {p: p.stat().st_mtime_ns for p in out.rglob("model.*")} == kept
    assert not [event for event in events if isinstance(event, NetworkTrained)]


def test_the_status_of_a_finished_run_outlives_a_start_that_is_refused(
    finished, data, tmp_path, monkeypatch
) -> None:
    _, study, _, _ = finished
    out = shutil.copytree(finished[0], tmp_path / "out")
    before, events = (out / "status.json").read_bytes(), []
    again = partial(run, study, n_trials=9, out=out, data=data, emit=events.append)
    with pytest.raises(UsageError, match="--executor must be process"):
        again(options=ExecutionOptions(executor="thread"))
    assert events == []

    def unreachable(*arguments, **options):
        raise DataError("no Ray cluster")

    monkeypatch.setattr("gatesearch.search.run.open_executor", unreachable)
    with pytest.raises(DataError, match="no Ray cluster"):
        again()
    assert (out / "status.json").read_bytes() == before


def test_earlier_trials_count_while_another_baseline_is_trained(finished, data, tmp_path) -> None:
    _, study, record, _ = finished
    out = shutil.copytree(finished[0], tmp_path / "out")
    more = study.model_copy(update={"methods": (*study.methods, "cross_stitch")})
    with pytest.raises(KeyboardInterrupt):
        run(more, n_trials=3, out=out, data=data, emit=interrupted_at("cross_stitch", 1))
    status = read_status(out)
    assert (status["trials"]["complete"], status["wanted"], status["front"]) == (1, 3, 1)
    assert (status["best"]["trial"], status["best"]["gflops"]) == (0, record.trials[0].gflops)


def test_an_interrupted_run_ends_as_one_in_one_go(finished, data, tmp_path) -> None:
    _, study, whole, _ = finished
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(study, n_trials=1, out=out, data=data, emit=interrupted_at("trial 0", 1))
    assert [r.method for r in read_store(out).baselines] == ["stl", "mtl"]
    assert read_store(out).trials == ()
    record = run(study, n_trials=1, out=out, data=data, emit=ignore)
    assert [r.trial for r in record.trials] == [0]
    assert untimed(record) == untimed(whole)


def test_a_run_below_the_multi_task_network_goes_on_in_its_narrowed_supernet(
    data, tmp_path
) -> None:
    study = tiny(tmp_path, "model.width=0.125", "training.epochs=3", 'methods=["stl"]')
    options = {"n_trials": 1, "budgets": ("0.5xMTL",), "data": data}
    whole = run(study, out=tmp_path / "whole", emit=ignore, controls=True, **options)
    stop = interrupted_at("trial 0", 2)
    with pytest.raises(KeyboardInterrupt):
        run(study, out=tmp_path / "out", emit=stop, reuse=tmp_path / "whole", **options)
    again = run(study, out=tmp_path / "out", emit=ignore, controls=False, **options)
    assert untimed(again) == untimed(whole)
    (trial,), mtl = whole.trials, costs(study, ("mtl",))["mtl"]
    assert 0.98 <= 2 * trial.gflops / mtl.gflops <= 1
    # Its only control has its cost too.
    (control,) = whole.controls
    assert control.control == "mtl@B"
    assert 0.9 <= control.gflops / trial.gflops <= 1


def test_given_configurations_are_tried_first_and_once(finished, data, tmp_path) -> None:
    folder, study, record, _ = finished
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    given = [{"lambda_s": weight, "tau": {"semseg": 0.75, "depth": 0.25}} for weight in (0.5, 2.0)]

    def with_first(count: int, **changed):
        search = study.search.model_copy(update={"first": tuple(given[:count])})
        return study.model_copy(update={"search": search, **changed})

    with pytest.raises(KeyboardInterrupt):
        run(with_first(1), n_trials=2, out=out, data=data, emit=interrupted_at("trial 1", 1))
    again = {"out": out, "data": data, "emit": lambda event: None}
    params = [t.params for t in run(with_first(2), n_trials=4, **again).trials]
    assert params[0] == record.trials[0].params
    assert params[1:3] == [{"lambda_s": w, "tau.semseg": 0.75, "tau.depth": 0.25} for w in (0.5, 2)]
    assert params[3] not in params[:3]
    # another seed has tried none of them
    last = run(with_first(1, seed=1), n_trials=5, **again).trials[-1]
    assert (last.seed, last.params) == (1, params[1])


def test_trials_share_one_warmup(data, tmp_path) -> None:
    phases = ("interrogate.warmup=0.5", "interrogate.finetune=0.25", "training.epochs=4")
    study, events, out = tiny(tmp_path, *phases), [], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(
            study, n_trials=2, out=out, data=data,
            emit=interrupted_at("trial 1", 3, hear=events.append),
        )  # fmt: skip
    record = run(study, n_trials=2, out=out, data=data, emit=events.append)
    assert [e for e in epochs_of(events) if e[0] not in ("stl", "mtl")] == [
        ("warm-up of interrogate", 1), ("warm-up of interrogate", 2),
        ("trial 0", 3), ("trial 0", 4), ("trial 1", 3), ("trial 1", 3), ("trial 1", 4),
    ]  # fmt: skip
    (warmup,) = record.starts
    _, mtl = record.baselines
    assert (warmup.gflops, warmup.epochs, warmup.train_images) == (mtl.gflops, 2, 12)
    for trial in record.trials:
        # two epochs of the warm-up, one of the gates, one of the compact network
        assert (trial.epochs, trial.train_images, trial.reused_images) == (4, 24, 12)
        streams = 3 * mtl.backbone_gflops + (mtl.gflops - mtl.backbone_gflops)
        own = 3 * 6 * (streams + trial.gflops) / 1e6
        assert trial.train_pflops - trial.reused_pflops == pytest.approx(own, rel=1e-6)
        assert trial.reused_pflops == warmup.train_pflops
        assert trial.curves["lr"] == pytest.approx(mtl.curves["lr"])
        assert trial.curves["loss.depth"][:2] == warmup.curves["loss.depth"]
        opened = [math.isfinite(share) for share in trial.curves["open.depth"]]
        assert opened == [False, False, True, False]
    # the warm-up itself went as the first half of the multi-task network
    assert warmup.curves["loss.depth"] == mtl.curves["loss.depth"][:2]
    everything = 24 * 2 + 12 + 2 * 12
    assert record.training_images == everything


@pytest.mark.parametrize(
    "spec", [b"", b"[]", b"{}", b'{"spec": {"trial": "../../elsewhere"}}', b"\xff"]
)
def test_a_trial_without_a_sound_specification_is_refused(finished, data, tmp_path, spec):
    folder, study, record, _ = finished
    out = tmp_path / "moved"
    shutil.copytree(folder, out)
    stray = out / "trials" / "0007"
    stray.mkdir()
    (stray / "spec.json").write_bytes(spec)
    with pytest.raises(StudyRefusedError, match=r"0007/spec\.json is damaged.*; move it away"):
        run(study, n_trials=1, out=out, data=data, emit=ignore)
    (stray / "spec.json").unlink()
    assert run(study, n_trials=1, out=out, data=data, emit=ignore).trials == record.trials


def test_a_clock_that_was_set_back(finished, data, tmp_path, monkeypatch) -> None:
    folder, study, record, _ = finished
    out = tmp_path / "out"
    shutil.copytree(folder, out)

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr("optuna.storages._rdb.storage.datetime", Yesterday)
    monkeypatch.setattr("gatesearch.store.status.datetime", Yesterday)
    monkeypatch.setattr("gatesearch.execution.jobs.datetime", Yesterday)
    later = run(study, n_trials=2, out=out, data=data, emit=ignore)
    assert later.trials[0] == record.trials[0]
    assert [trial.trial for trial in later.trials] == [0, 1]
    told = read_status(out)
    assert told["trials"]["complete"] == 2
    assert told["per_hour"] > 0


@pytest.mark.parametrize("regulariser", ["hinge", "flops"])
def test_every_trial_ends_inside_its_budget(data, tmp_path, regulariser) -> None:
    overrides = (f'search.regulariser=["{regulariser}"]', "interrogate.finetune=0.5")
    study, out = tiny(tmp_path, *overrides), tmp_path / "out"
    ends = costs(study, ("mtl", "stl"))
    macs = {"1.3xMTL": 1.3 * ends["mtl"].macs, "0.9xSTL": 0.9 * ends["stl"].macs}
    for budget in macs:
        record = run(study, n_trials=1, out=out, data=data, emit=ignore, budgets=[budget])
    assert [(r.trial, r.budget) for r in record.trials] == [(0, "1.3xMTL"), (1, "0.9xSTL")]
    for trial in record.trials:
        assert 0.98 <= trial.gflops / (2e-9 * macs[trial.budget]) <= 1
    assert len(record.baselines) == 2


def test_other_data_is_refused(finished, tmp_path, monkeypatch) -> None:
    out, study, _, _ = finished
    plain = scenes.render

    def darker(*args, **kwargs):
        frame = plain(*args, **kwargs)
        return {**frame, "image": frame["image"] // 2}

    monkeypatch.setattr(scenes, "render", darker)
    with pytest.raises(StudyRefusedError, match=r"was made on other data: .*--data"):
        run(study, n_trials=1, out=out, data=tmp_path, emit=ignore)


def test_a_failing_network_does_not_end_the_study(finished, data, tmp_path) -> None:
    absurd = ("seed=5", "options.interrogate.training.lr=1e30", "options.mtl.training.lr=1e30")
    study, events = tiny(tmp_path, *absurd), []
    record = run(study, n_trials=1, out=tmp_path / "out", data=data, emit=events.append)
    states = [(r.method, r.state) for r in record.baselines]
    assert states == [("stl", "complete"), ("mtl", "failed")]
    assert [r.state for r in record.trials] == ["failed"]
    for result in (*record.baselines[1:], *record.trials):
        assert "the loss of " in result.reason
        assert "epoch" in result.reason
        assert result.metrics == {}
    assert len([event for event in events if isinstance(event, Warned)]) == 2
    assert {r.seed for r in (*record.baselines, *record.trials)} == {5}
    ours, theirs = (
        load_file(folder / "baselines" / name / "model.safetensors")["heads.depth.layers.1.weight"]
        for folder, name in ((tmp_path / "out", "stl-seed5"), (finished[0], "stl-seed0"))
    )
    assert not torch.equal(ours, theirs)
    # a failed trial counts, a failed baseline is tried again
    events.clear()
    run(study, n_trials=1, out=tmp_path / "out", data=data, emit=events.append)
    trained = [event.message for event in events if isinstance(event, NetworkTrained)]
    assert [message.split(":")[0] for message in trained] == ["mtl, seed 5"]


def test_a_training_that_fails_on_two_devices_fails_its_trial(data, tmp_path) -> None:
    absurd = ('methods=["stl"]', "options.interrogate.training.lr=1e30", "training.batch_size=4")
    study, common = tiny(tmp_path, *absurd), {"out": tmp_path / "out", "data": data}
    run(study, n_trials=0, emit=ignore, **common)
    record = run(study, n_trials=2, emit=ignore, options=ExecutionOptions(devices=2), **common)
    assert [(r.state, r.attempts) for r in record.trials] == [("failed", 1)] * 2
    for result in record.trials:
        assert "the loss of " in result.reason


def test_a_method_whose_start_network_fails_fails_alone(tmp_path, data) -> None:
    own = ("adashare.warmup=0.5", "options.adashare.training.lr=1e20", "methods=[]")
    events = []
    tuned = partial(run, n_trials=1, data=data, emit=events.append)
    study = residual(tmp_path, *own, 'tune=["adashare", "branch"]')
    record = tuned(study, out=tmp_path / "out")
    assert [(trial.method, trial.state) for trial in record.trials] == [("branch", "complete")]
    (said,) = [str(event.message) for event in events if isinstance(event, Warned)]
    assert said.startswith(
        "warm-up of adashare failed: the loss of semseg became nan in epoch 1, step 2; lower"
    )
    assert said.endswith("; 'adashare' has no new trials")
    # The same command tries it again, and only it.
    assert tuned(study, out=tmp_path / "out").trials == record.trials
    with pytest.raises(TrainingError, match="warm-up of adashare failed: the loss of semseg"):
        tuned(residual(tmp_path, *own, 'tune=["adashare"]'), out=tmp_path / "alone")


def test_a_start_network_that_fails_leaves_no_weights_to_search(tmp_path, data) -> None:
    own = ("adashare.warmup=0.5", "options.adashare.training.lr=1e20", 'tune=["branch"]')
    study = residual(tmp_path, *own, 'methods=["adashare"]', 'weightings=["scalar"]')
    record = run(study, n_trials=0, out=tmp_path / "out", data=data, emit=ignore)
    states = {(r.method, r.weighting): r.state for r in record.baselines}
    assert states == {("stl", "uniform"): "complete", ("adashare", "scalar"): "failed"}
