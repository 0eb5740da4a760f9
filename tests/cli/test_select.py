"""`gatesearch select`: which kind of network won, by how much, and a command that ships it."""

import json
import shlex
from dataclasses import replace

import pytest

from gatesearch.export import choose
from tests.search.tiny import TOML
from tests.store.test_selection import RECORD

STUDY = "my study.toml"


@pytest.fixture
def select(cli, tmp_path, monkeypatch):
    """Selects from a record in place of a store, by the name of a file with a space in it."""
    (tmp_path / STUDY).write_text(TOML)

    def selected(record, *options):
        stored = replace(record, name="tiny")
        monkeypatch.setattr("gatesearch.store.opening.read_store", lambda *a, **k: stored)
        return cli("select", "--study", STUDY, *options)

    return selected


def test_a_baseline_that_wins_is_said_to_and_shipped_by_its_name(select) -> None:
    done = select(RECORD)
    assert done.returncode == 0, done.stderr
    assert "baseline mtan: Δ_MTL +9.00 % on validation, 2.5 GFLOPs" in done.stdout
    assert "a baseline won; the best trial, trial 2, has +7.50 % at 2 GFLOPs: 1.50 less" in (
        done.stdout
    )
    ship = f"gatesearch export --study '{STUDY}' --trial mtan --to network.onnx"
    assert f"ship it: {ship}\n" in done.stdout
    found = json.loads(select(RECORD, "--json").stdout.splitlines()[-1])
    assert (found["kind"], found["network"]["method"]) == ("baseline", "mtan")
    assert (found["other"]["kind"], found["other"]["network"]["trial"]) == ("trial", 2)
    assert (found["gain"], found["other"]["lead"]) == pytest.approx((9.0, 1.5))
    assert found["export"] == ship


def test_a_trial_that_wins_within_bounds(select) -> None:
    done = select(RECORD, "--budget", "1.3xMTL", "--out", "my store")
    assert "trial 0: Δ_MTL +4.00 % on validation" in done.stdout
    assert (
        "a trial won; the best baseline within the bounds, mtl, has +3.00 % at 1 GFLOPs: 1.00 less"
    ) in done.stdout
    assert (
        f"gatesearch export --study '{STUDY}' --out 'my store' --trial 0 --to network.onnx"
    ) in done.stdout


def test_nothing_of_the_other_kind(select) -> None:
    assert "a baseline won; there is no finished trial\n" in (
        select(replace(RECORD, trials=())).stdout
    )
    assert "a baseline won; no trial is within the bounds\n" in (
        select(RECORD, "--budget", "1.1xMTL").stdout
    )


def test_the_shipped_baseline_has_the_weighting_and_seed_that_won(select) -> None:
    better = replace(RECORD.baselines[2], method="mtl", weighting="pcgrad", seed=1)
    # Single-task networks of its seed, with which it is compared.
    stl = replace(RECORD.baselines[0], seed=1)
    worse = replace(RECORD.baselines[1], weighting="pcgrad")
    record = replace(RECORD, baselines=(*RECORD.baselines[:2], worse, stl, better))
    line = next(x for x in select(record).stdout.splitlines() if x.startswith("ship it: "))
    words = shlex.split(line.removeprefix("ship it: "))
    assert words[4:8] == ["--trial", "mtl + pcgrad", "--seed", "1"]
    assert choose(record, words[5], seed=int(words[7])) == better


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--seed", str(2**63)), 2), (("--n-trials", str(10**30)), 2), (("--workers", "99999"), 2),
     (("--points", str(10**9)), 2), (("--devices-per-trial", str(10**30)), 2),
     (("--seed", "-1"), 2)],
)  # fmt: skip
def test_numbers_of_a_run_have_bounds(cli, tmp_path, options, code) -> None:
    (tmp_path / STUDY).write_text(TOML)
    done = cli("run", "--study", STUDY, *options)
    assert done.returncode == code
    assert "Input should be" in done.stderr or "is not in the range" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_slice_needs_a_file_and_a_file_a_slice(select) -> None:
    for options in (("--slice", "ecmt"), ("--to", "net.onnx")):
        done = select(RECORD, *options)
        assert done.returncode == 2
        assert "--slice METHOD and --to FILE belong together" in done.stderr
    done = select(RECORD, "--slice", "ecmt", "--to", "net.png")
    assert done.returncode == 2
    assert "--to must end in .safetensors" in done.stderr


def test_preferences_need_a_supernet(cli, tmp_path) -> None:
    (tmp_path / STUDY).write_text(TOML)
    done = cli("run", "--study", STUDY, "--tune", "interrogate", "--prefer", "depth=2")
    assert done.returncode == 2
    assert "found --tune interrogate; tune one_shot or ecmt" in done.stderr
    assert not (tmp_path / "runs").exists()
