"""Runs whose baselines and trials are balanced in other ways than by the study's weights."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gatesearch.events import NetworkTrained
from gatesearch.report.record_queries import training_ratio
from gatesearch.results import delta
from gatesearch.search.run import run
from gatesearch.store.store import read_store
from gatesearch.trials.kept_networks import kept_network
from tests.search.tiny import ignore, tiny

pytestmark = pytest.mark.slow("whole run")

SCALAR = ("search.scalar_trials=3", "search.sampler='random'")


def balanced(study, *names):
    return study.model_copy(update={"methods": ("stl", "mtl"), "weightings": names})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """(folder, study, record) of a run with weightings and no trial."""
    folder = tmp_path_factory.mktemp("finished")
    study = balanced(tiny(folder, *SCALAR), "uniform", "pcgrad", "scalar")
    record = run(study, n_trials=0, out=folder / "out", data=data, emit=ignore)
    return folder / "out", study, record


def test_every_baseline_under_every_weighting(finished) -> None:
    out, study, record = finished
    assert read_store(out) == record
    assert [(r.method, r.weighting, r.state) for r in record.baselines] == [
        ("stl", "uniform", "complete"),
        ("mtl", "uniform", "complete"),
        ("mtl", "pcgrad", "complete"),
        ("mtl", "scalar", "complete"),
    ]
    assert not record.trials
    _, uniform, pcgrad, scalar = record.baselines
    assert pcgrad.gflops == uniform.gflops == scalar.gflops
    for result in (pcgrad, scalar):
        assert "test" in result.metrics
        network = kept_network(result, study, out=out)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(result.params_m)
    shared = uniform.backbone_gflops / uniform.gflops
    assert training_ratio(record, pcgrad) == pytest.approx(1 + 2 * shared / 3)
    assert training_ratio(record, scalar) == pytest.approx(3)  # all tries
    assert scalar.train_seconds > pcgrad.train_seconds / 3


def test_scalar_is_the_best_of_its_tries_by_validation(finished) -> None:
    out, study, record = finished
    tries = [load_file(out / "trials" / f"{i:04d}" / "model.safetensors") for i in range(3)]
    uniform = load_file(out / "baselines" / "mtl-seed0" / "model.safetensors")
    chosen = load_file(out / "baselines" / "mtl-scalar-seed0" / "model.safetensors")
    # The first try is the study's own weights.
    assert all(torch.equal(uniform[name], tries[0][name]) for name in uniform)
    (best,) = [i for i in range(3) if all(torch.equal(chosen[n], tries[i][n]) for n in chosen)]
    scalar, plain = record.baselines[3], record.baselines[1]
    assert delta(record, scalar, "validation") >= delta(record, plain, "validation")
    assert set(scalar.params) == {"weight.semseg", "weight.depth"}
    factors = list(scalar.params.values())
    mean = sum(factors) / 2
    weights = [scalar.curves[f"weight.{task}"][0] for task in study.tasks]
    assert weights == pytest.approx([factor / mean for factor in factors])
    assert (factors == [1.0, 1.0]) == (best == 0)


def test_a_weighting_can_be_added_to_a_store(finished, data, tmp_path) -> None:
    out, study, record = finished
    shutil.copytree(out, tmp_path / "out")
    more = balanced(study, "uniform", "uncertainty", "scalar")
    assert more.fingerprint == study.fingerprint
    after = run(more, n_trials=0, out=tmp_path / "out", data=data, emit=ignore)
    kept = {r.weighting: r for r in after.baselines if r.method == "mtl"}
    assert set(kept) == {"uniform", "pcgrad", "scalar", "uncertainty"}
    assert [r for r in after.baselines if r.weighting != "uncertainty"] == list(record.baselines)


def test_a_search_for_weights_goes_on_where_it_was_cut(finished, data, tmp_path) -> None:
    _, study, record = finished
    trials = 0

    def cut(event) -> None:
        nonlocal trials
        trials += isinstance(event, NetworkTrained) and event.trial
        if trials == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, n_trials=0, out=tmp_path / "out", data=data, emit=cut)
    after = run(study, n_trials=0, out=tmp_path / "out", data=data, emit=ignore)
    assert [dataclasses.replace(r, train_seconds=0.0, attempts=1) for r in after.baselines] == [
        dataclasses.replace(r, train_seconds=0.0, attempts=1) for r in record.baselines
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "trials").iterdir()) == [
        "0000", "0001", "0002",
    ]  # fmt: skip


def test_trials_may_draw_their_weighting(tmp_path, data) -> None:
    names = ("rlw", "mgda_ub", "pcgrad")
    study = tiny(
        tmp_path, f"search.weighting={list(names)}", "search.sampler='random'",
        "interrogate.warmup=0.5",
    )  # fmt: skip
    study = study.model_copy(update={"methods": ("stl",)})
    record = run(study, n_trials=4, out=tmp_path / "out", data=data, emit=ignore)
    assert [trial.state for trial in record.trials] == ["complete"] * 4
    assert all(trial.weighting == trial.params["weighting"] for trial in record.trials)
    assert len({trial.weighting for trial in record.trials} & set(names)) > 1
    assert [start.weighting for start in record.starts] == ["uniform"]


def test_the_only_weighting_of_a_search_is_not_drawn(tmp_path, data) -> None:
    study = tiny(tmp_path, "search.weighting=['uncertainty']")
    study = study.model_copy(update={"methods": ("stl",)})
    (trial,) = run(study, n_trials=1, out=tmp_path / "out", data=data, emit=ignore).trials
    assert trial.weighting == "uncertainty"
    assert "weighting" not in trial.params
    assert trial.curves["weight.depth"][0] != 1.0
