"""Baselines of another store: taken over where they would be trained the same, else trained."""

import json
import shutil
from dataclasses import replace

import pytest

from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.events import Log
from gatesearch.execution.jobs import keep_result, read_result, read_spec
from gatesearch.search.run import run
from tests.search.tiny import epochs_of, ignore, interrupted_at, tiny

pytestmark = pytest.mark.slow("whole run")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("there")
    record = run(tiny(folder), n_trials=0, out=folder / "runs", data=folder / "data", emit=ignore)
    return folder, record


def reused(there, tmp_path, *overrides):
    events = []
    record = run(
        tiny(tmp_path, *overrides), n_trials=0, out=tmp_path / "runs", data=there / "data",
        emit=events.append, reuse=there / "runs",
    )  # fmt: skip
    trained = {stage for stage, _ in epochs_of(events)}
    return record, trained, [event.message for event in events if isinstance(event, Log)]


def test_what_would_be_trained_the_same_is_not_trained(there, tmp_path) -> None:
    folder, known = there
    # The single-task networks' training here was cut off, and left a checkpoint.
    with pytest.raises(KeyboardInterrupt):
        run(
            tiny(tmp_path, "search.lambda_s=[0.5, 2]", "model.init=scratch"), n_trials=0,
            out=tmp_path / "runs", data=folder / "data", emit=interrupted_at("stl", 1),
        )  # fmt: skip
    checkpoint = tmp_path / "runs" / "baselines" / "stl-seed0" / "checkpoint-1.safetensors"
    checkpoint.write_bytes(b"a state")
    record, trained, _ = reused(folder, tmp_path, "search.lambda_s=[0.5, 2]", "model.init=scratch")
    assert trained == set()
    assert not checkpoint.exists()
    assert record.fingerprint != known.fingerprint
    assert [b.name for b in record.baselines] == ["stl", "mtl"]
    assert record.baselines == known.baselines
    for name in ("stl-seed0", "mtl-seed0"):
        here, theirs = (f / "runs" / "baselines" / name for f in (tmp_path, folder))
        network = (here / "model.safetensors").read_bytes()
        assert network == (theirs / "model.safetensors").read_bytes()
        kept = json.loads((here / "result.json").read_text())
        assert kept["identity"] != json.loads((theirs / "result.json").read_text())["identity"]


def test_what_a_change_touches_is_trained_and_the_change_told(there, tmp_path) -> None:
    record, trained, told = reused(there[0], tmp_path, "options.mtl.training.lr=2e-3")
    assert trained == {"mtl"}
    assert any(
        m.startswith("mtl is not the one of") and "training.lr: 0.001 -> 0.002" in m for m in told
    )
    ours, theirs = (r.baselines[1].curves["loss.depth"] for r in (record, there[1]))
    assert ours != theirs


def test_networks_that_start_otherwise_are_trained_but_not_their_start(there, tmp_path) -> None:
    record, trained, _ = reused(there[0], tmp_path, "model.init=stl")
    assert trained == {"mtl"}
    assert record.baselines[0] == there[1].baselines[0]


def test_another_seed_has_nothing_to_take_over(there, tmp_path) -> None:
    _, trained, told = reused(there[0], tmp_path, "seed=1")
    assert trained == {"stl, seed 1", "mtl, seed 1"}
    assert not any("is not the one of" in message for message in told)


def test_a_definition_of_another_version_is_told(there, tmp_path) -> None:
    old = tmp_path / "old"
    shutil.copytree(there[0] / "runs", old / "runs")
    spec = read_spec(old / "runs" / "baselines" / "mtl-seed0" / "spec.json")
    result = read_result(spec)
    aged = replace(spec, definition={**spec.definition, "gone": 1})
    aged.write()
    keep_result(aged, result)
    (old / "data").symlink_to(there[0] / "data")
    _, trained, told = reused(old, tmp_path)
    assert trained == {"mtl"}
    assert any("another version" in message for message in told)


def test_a_folder_without_baselines_is_refused_before_there_is_a_store(there, tmp_path) -> None:
    with pytest.raises(UsageError, match="--reuse must be the folder of a store"):
        run(
            tiny(tmp_path), n_trials=0, out=tmp_path / "runs", data=there[0] / "data",
            emit=ignore, reuse=tmp_path,
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kept", [None, 100])
def test_a_network_that_is_gone_or_cut_short_there_is_refused(there, tmp_path, kept) -> None:
    old = tmp_path / "old"
    shutil.copytree(there[0] / "runs", old / "runs")
    (old / "data").symlink_to(there[0] / "data")
    network = old / "runs" / "baselines" / "mtl-seed0" / "model.safetensors"
    whole = network.read_bytes()
    network.unlink() if kept is None else network.write_bytes(whole[:kept])
    with pytest.raises(StudyRefusedError, match=r"tensors (is missing|was changed)"):
        reused(old, tmp_path)
    network.write_bytes(whole)
    _, trained, _ = reused(old, tmp_path)
    assert trained == set()
