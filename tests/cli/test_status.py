"""`gatesearch status`: what is on the screen, in the JSON, and what it costs."""

import json
import shutil
import subprocess
import sys

import pytest

from gatesearch.events import Progress
from gatesearch.store.backup import DATABASE, back_up
from gatesearch.store.lock import locked
from gatesearch.store.status import BOARD, StatusFile, TrialOutcome
from tests.store.test_status import database


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "runs" / "scenes"
    made.mkdir(parents=True)
    database(made, study="scenes")
    return made


def board(folder, **options) -> StatusFile:
    return StatusFile(
        folder, **{"study": "scenes", "fingerprint": "f00d", "wanted": 4, "n_trials": 4} | options
    )


def told(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_running_search_is_on_one_screen(cli, folder) -> None:
    run = board(folder)
    run.baselines(1, 2)
    run.search([TrialOutcome(0, "failed")])
    run.begin("trial 2")
    run.heard("trial 2", Progress("trial 2", 3, 9, "epochs"))
    run.ended(TrialOutcome(1, "complete", 1.25, 0.5))
    with locked(folder):
        done = cli("status", "--study", "scenes")
        assert told(cli("status", "--study", "scenes", "--json"))["alive"]
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "scenes: 2 of 4 trials ended, 1 in work",
        "trials: 1 complete, 1 failed, 0 stopped",
        "baselines: 1 of 2",
        "best: trial 1, Δ_MTL +1.25 % on validation, 0.5 GFLOPs; 1 on the front",
    ]
    assert lines[4].startswith("rate: ")
    assert lines[5].startswith("run: process ")
    assert any(line.split()[:5] == ["worker", "1", "trial", "2", "3/9"] for line in lines)
    assert "continue" not in done.stdout


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({}, "--n-trials 4"),
        ({"budget": "1.3xMTL+20M"}, "--n-trials 4 --budget 1.3xMTL --budget 20M"),
        ({"budget": "12ms@cpu"}, "--n-trials 4 --budget 12ms --device cpu"),
        ({"tune": ["one_shot"], "budget": "9G"}, "--tune one_shot --n-trials 4 --budget 9G"),
        ({"tune": ["mtan", "mtl"]}, "--tune mtan,mtl --n-trials 4"),
        ({"storage": "postgresql://a/b"}, "--n-trials 4 --storage postgresql://a/b"),
        ({"seeds": [3, 1], "headroom": 5}, "--n-trials 4 --seeds 3,1 --headroom 5"),
        ({"with_controls": True}, "--n-trials 4 --controls"),
        ({"with_controls": False}, "--n-trials 4 --no-controls"),
    ],
)
def test_an_interrupted_search_names_the_command_that_continues(
    cli, folder, options, command
) -> None:
    board(folder, **options)
    done = cli("status", "--study", "scenes", "--out", str(folder))
    expected = f"gatesearch run --study scenes --out {folder} {command}"
    assert f"run: none, as of {json.loads((folder / BOARD).read_text())['updated']}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"continue: {expected}"
    assert told(cli("status", "--study", "scenes", "--json"))["command"].endswith(command)


def test_a_search_that_is_done_names_no_command(cli, folder) -> None:
    run = board(folder)
    run.search(TrialOutcome(number, "failed") for number in range(4))
    assert "continue" not in cli("status", "--study", "scenes").stdout


def test_controls_that_are_missing_are_told_when_all_trials_have_ended(cli, folder) -> None:
    run = board(folder, with_controls=True)
    run.search(TrialOutcome(number, "failed") for number in range(4))
    run.controls(5, 7)
    lines = cli("status", "--study", "scenes").stdout.splitlines()
    assert "controls and repetitions: 5 of 7" in lines
    assert lines[-1] == "continue: gatesearch run --study scenes --n-trials 4 --controls"
    run.controls(7, 7)
    assert "continue" not in cli("status", "--study", "scenes").stdout


def test_damage_is_red_and_mended_by_the_command_that_it_names(cli, folder) -> None:
    run = board(folder)
    run.search([TrialOutcome(0, "complete", 1.0, 1.0)])
    back_up(folder)
    (folder / DATABASE).write_bytes(b"garbage" * 1000)
    done = cli("status", "--study", "scenes")
    assert done.returncode == 0
    assert "/study.db is damaged: file is not a database" in done.stderr
    assert cli("status", "--study", "scenes", "--json").stderr == done.stderr
    assert "study.db.backup, is of 20" in done.stderr
    assert (
        "has 2 trials; put it in place: gatesearch status --study scenes --restore" in done.stderr
    )
    with locked(folder):
        refused = cli("status", "--study", "scenes", "--restore")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert "is in use by process" in refused.stderr
    found = told(cli("status", "--study", "scenes", "--restore", "--json"))
    assert (found["damage"], found["trials"]["complete"]) == (None, 2)
    again = cli("status", "--study", "scenes", "--restore")
    assert (again.returncode, again.stdout) == (2, "")
    assert "nothing is to be restored" in again.stderr


def test_damage_without_a_backup(cli, folder) -> None:
    (folder / DATABASE).write_bytes(b"garbage" * 1000)
    done = cli("status", "--study", "scenes")
    assert "no sound backup" in done.stderr
    assert cli("status", "--study", "scenes", "--restore").returncode == 3


def test_no_store_and_another_study_are_wrong_use(cli, folder) -> None:
    board(folder, study="pascal")
    done = cli("status", "--study", "scenes")
    assert (done.returncode, done.stdout) == (2, "")
    assert "found 'pascal'" in done.stderr
    shutil.rmtree(folder)
    done = cli("status", "--study", "scenes")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no store in runs/scenes; run the study first" in done.stderr


def test_no_heavy_library_is_needed(folder) -> None:
    heavy = ["torch", "numpy", "pandas", "optuna", "sqlalchemy"]
    code = f"""
import sys
from gatesearch.cli import app
app(["status", "--study", "scenes"], standalone_mode=False)
print("loaded:", [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=folder.parents[1],
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded: []"
