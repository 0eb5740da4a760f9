"""A method with two phases and a search space of its own: one file, one line, nothing else.

The file is `tests/methods/two_phases.py`; the line is in `conftest.py` beside it.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gatesearch
from gatesearch.execution.jobs import SPEC, read_spec
from gatesearch.export import card_of, choose, ship
from gatesearch.methods import (
    METHODS,
    NetworkSpec,
    TrainedNetwork,
    TrainingRequest,
    build_model,
    check_study,
)
from gatesearch.pruning import load_compact
from gatesearch.report import write_report
from gatesearch.results import StudyRecord, front
from gatesearch.search.run import run
from gatesearch.store.opening import read_store
from gatesearch.store.selection import select
from gatesearch.training import Checkpoints
from gatesearch.trials.context import open_context
from gatesearch.trials.costs import costs
from gatesearch.trials.kept_networks import as_compact, kept_network
from tests.methods.toys import random_image, scattered
from tests.methods.two_phases import TWO_PHASES, scale_hooks, thinned
from tests.search.tiny import tiny

# Twelve frames to train on, halves of six, two steps per epoch in each of the first two phases;
# a checkpoint after every step.
STUDY = (
    *("training.epochs=6", "data.train_frames=16", "search.sampler=random"),
    *('tune=["two_phases"]', 'methods=["stl", "mtl", "two_phases"]'),
    "execution.checkpoint_minutes=1e-9",
)


def test_it_is_a_method_like_the_others(tmp_path) -> None:
    study = check_study(tiny(tmp_path, *STUDY, "two_phases.keep=0.25"))
    assert list(METHODS)[-1] == "two_phases"
    assert study.options_of("two_phases").own == {"keep": 0.25}
    cost, mtl = costs(study, ("two_phases", "mtl")).values()
    assert cost.macs == mtl.macs
    assert cost.params == mtl.params + 2 * build_model(study, "mtl").encoder.graph.outputs


def test_its_penalty_is_of_the_strength_that_was_drawn(tmp_path) -> None:
    net = build_model(tiny(tmp_path), "two_phases")
    hooks = scale_hooks(net, strength=0.5)
    for share, expected in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        hooks.before_step(share)
        assert float(hooks.penalty(None, {}).detach()) == pytest.approx(expected)
    assert hooks.observe(1) == {"scale.semseg": 1.0, "scale.depth": 1.0}


def test_what_is_cut_away_are_the_smallest_scales(tmp_path, data) -> None:
    study = check_study(tiny(tmp_path))
    net = scattered(build_model(study, "two_phases")).eval()
    with torch.no_grad():
        for scale in net.scales.values():
            scale[: len(scale) // 2] = 0
    compact = thinned(TrainedNetwork(net), study, keep=0.5)
    assert {head.inputs for head in compact.description.heads.values()} == {13}  # of 26
    image = random_image(16)
    with torch.no_grad():
        expected, found = net(image), compact.eval()(image)
    for task, prediction in expected.items():
        torch.testing.assert_close(found[task], prediction, rtol=1e-4, atol=1e-5)


def test_its_phases_learn_from_two_halves_of_the_frames(tmp_path, data) -> None:
    study = check_study(tiny(tmp_path, *STUDY))
    context = open_context(study, data=data, stored=None, emit=lambda event: None)
    request = TrainingRequest(NetworkSpec("two_phases", 0), context, None, lambda event: None)
    first, second, last = TWO_PHASES.phases(request)
    halves = [context.train.part(*phase.data_part) for phase in (first, second)]
    frames = [{row.tobytes() for row in half.batch(torch.arange(6))["image"].numpy()}
              for half in halves]  # fmt: skip
    assert len(frames[0] | frames[1]) == 12
    assert last.data_part == (0, 1)


def untimed(record: StudyRecord) -> list[str]:
    """Results without wall-clock times, as text: NaN equals NaN there."""
    return [
        json.dumps(replace(result, train_seconds=0.0, attempts=1).to_json())
        for result in (*record.baselines, *record.trials)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """(folder, study, record) of a run in one go."""
    folder = tmp_path_factory.mktemp("finished")
    study = tiny(folder, *STUDY)
    record = run(study, n_trials=2, out=folder / "out", data=data, emit=lambda event: None)
    return folder / "out", study, record


@pytest.mark.slow("whole run")
def test_it_is_trained_as_a_baseline_and_searched(finished) -> None:
    out, _, record = finished
    assert read_store(out) == record
    mtl, own = record.baselines[1:]
    assert (own.method, own.state, own.params) == ("two_phases", "complete", {})
    assert [(t.method, t.state) for t in record.trials] == [("two_phases", "complete")] * 2
    for result in (own, *record.trials):
        # Two epochs on six frames, two more on the other six, two on all twelve.
        assert (result.epochs, result.train_images) == (6, 2 * 6 + 2 * 6 + 2 * 12)
        assert result.gflops < mtl.gflops
        assert result.backbone_gflops == pytest.approx(mtl.backbone_gflops)
        observed = [value == value for value in result.curves["scale.depth"]]
        assert observed == [False, False, True, True, False, False]
    strengths = {trial.params["strength"] for trial in record.trials}
    assert len(strengths) == 2
    assert all(0.01 <= value <= 1 for value in strengths)
    assert all("test" in result.metrics for result in (own, *front(record)))
    selected = select(record)
    assert {selected.result.trial is None, selected.other.trial is None} == {True, False}


@pytest.mark.slow("whole run")
def test_interrupted_inside_phase_two_it_ends_the_same(finished, data, tmp_path) -> None:
    folder, _, whole = finished
    study, out = tiny(tmp_path, *STUDY), tmp_path / "out"

    def interrupt(stage: str) -> None:
        def emit(event) -> None:
            # Three epochs are done, of which phase two has the last, and no checkpoint of its end.
            if getattr(event, "stage", "") == stage and event.done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(study, n_trials=2, out=out, data=data, emit=emit)

    for stage, at in (("two_phases", "baselines/two_phases-seed0"), ("trial 1", "trials/0001")):
        interrupt(stage)
        job = read_spec(out / at / SPEC)
        kept = Checkpoints(out / at, identity=job.identity).newest()
        assert kept.state["phase"] == "scales"
        assert kept.state["loop"]["progress"]["done"] == 1, "one of its four steps"
    record = run(study, n_trials=2, out=out, data=data, emit=lambda event: None)
    assert untimed(record) == untimed(whole)
    assert [r.attempts for r in (*record.baselines, *record.trials)] == [1, 1, 2, 1, 2]
    for kept in sorted(folder.rglob("model.*")):
        assert (out / kept.relative_to(folder)).read_bytes() == kept.read_bytes()


@pytest.mark.slow("whole run")
def test_stopped_early_in_phase_two(finished, data, tmp_path, monkeypatch) -> None:
    rules = ("search.stop=median", "search.stop_every=3", "search.stop_after=1")
    study = tiny(tmp_path, *STUDY, *rules, 'methods=["stl"]')
    # An earlier trial that nobody can keep up with, at no cost.
    monkeypatch.setattr("gatesearch.search.trial_search.rivals_of", lambda results: [(3, 0.0, 1e6)])
    record = run(study, n_trials=1, out=tmp_path / "out", data=data, emit=lambda event: None)
    (trial,) = record.trials
    assert (trial.state, trial.epochs) == ("stopped", 3)
    assert "stopped after epoch 3" in trial.reason
    assert trial.curves["gflops"][2] > 0
    assert not list((tmp_path / "out" / "trials" / "0000").glob("model.*"))


@pytest.mark.slow("whole run")
def test_it_is_reported(finished, tmp_path) -> None:
    _, _, record = finished
    path = write_report(record, folder=tmp_path)
    assert path.read_bytes().startswith(b"%PDF")
    rows = path.with_suffix(".csv").read_text().splitlines()
    assert sum("two_phases" in row for row in rows) == 3


@pytest.mark.slow("whole run")
@pytest.mark.parametrize("form", ["safetensors", "onnx"])
@pytest.mark.parametrize("name", ["best", "two_phases"])
def test_it_is_exported(finished, tmp_path, form, name) -> None:
    out, study, record = finished
    result = choose(record, name)
    network = kept_network(result, study, out=out)
    to = tmp_path / f"network.{form}"
    card = card_of(record, result)
    gap = ship(as_compact(network, result.method, study), card, to, form=form, frames=None)
    assert gap < 1e-3
    assert to.is_file()
    if form == "safetensors":
        again = load_compact(to.with_suffix(""))
        assert again.description == network.description


def test_nothing_else_names_it() -> None:
    """One file and one line: the package does not know of it."""
    package = Path(gatesearch.__file__).parent
    assert not [p for p in package.rglob("*.py") if "two_phases" in p.read_text()]
