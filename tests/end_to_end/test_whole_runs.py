"""Runs that go well: what they print, leave behind, and do when asked again."""

import json
import shlex

import pytest

from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import TINY, CommandLine, contents, trained

pytestmark = pytest.mark.end_to_end

KEYS = {
    *("study", "fingerprint", "protocol", "trials", "front", "baselines", "controls"),
    *("comparisons", "controllability", "report"),
}
POINT = {
    *("seed", "delta_mtl", "gflops", "backbone_gflops", "params_m"),
    *("metrics", "details", "split"),
}
QUICK = (
    *("--study", "scenes", "--set", "preset=quick", "--methods", "stl,mtl", "--json"),
    *("--set", "data.train_frames=24", "--set", "data.test_frames=8", "--set", "data.validation=8"),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, environment):
    """(the command line in a folder, what two quick trials on `scenes` printed there)."""
    cli = CommandLine(tmp_path_factory.mktemp("scenes"), environment)
    done = cli("run", *QUICK, "--n-trials", 2)
    assert done.code == 0, done.stderr
    return cli, done


def test_the_promised_object_is_the_last_line(scenes):
    cli, done = scenes
    printed = done.json
    assert set(printed) == KEYS
    assert printed["trials"] == {"complete": 2, "failed": 0, "pruned": 0}
    assert [point["method"] for point in printed["baselines"]] == ["stl", "mtl"]
    assert all(set(point) == POINT | {"method", "weighting"} for point in printed["baselines"])
    assert printed["front"]
    of_trials = POINT | {"trial", "task_gflops"}
    assert all(set(point) == of_trials for point in printed["front"])
    for point in (*printed["front"], *printed["baselines"]):
        assert point["split"] == "test"
        assert set(point["metrics"]) == {"semseg", "depth", "normals", "edges"}
    stl = printed["baselines"][0]
    assert stl["delta_mtl"] == 0
    assert all(point["gflops"] <= stl["gflops"] for point in printed["front"])
    assert printed["report"] == "reports/scenes.pdf"
    assert (cli.folder / "reports" / "scenes.pdf").read_bytes().startswith(b"%PDF-")
    assert json.loads((cli.folder / "reports" / "scenes.json").read_text()) == printed
    table = (cli.folder / "reports" / "scenes.csv").read_text().splitlines()
    assert len(table) == 1 + 2 + 2


def test_progress_says_stage_unit_and_time_left_on_lines_of_readable_length(scenes):
    _, done = scenes
    lines = done.stderr.splitlines()
    assert any("data scenes: 32/32 frames" in line for line in lines)
    assert any("baselines: 0/2 networks" in line for line in lines)
    assert any("trial 1: 1/1 epochs, loss semseg" in line for line in lines)
    assert any("search: 0/2 trials" in line for line in lines)
    assert max(map(len, lines)) <= 120
    assert done.stdout.count("\n") == 1


def test_the_same_command_again_only_reports(scenes, tmp_path):
    cli, done = scenes
    store, reports = cli.folder / "runs" / "scenes", cli.folder / "reports"
    before, networks, report = contents(store), trained(store), contents(reports)
    again = cli("run", *QUICK, "--n-trials", 2)
    assert again.json == done.json
    assert contents(store) == before
    assert trained(store) == networks
    assert contents(reports) == report
    rebuilt = cli("report", "--study", "scenes", "--reports", tmp_path, "--json")
    assert rebuilt.json == {**done.json, "report": str(tmp_path / "scenes.pdf")}
    assert (tmp_path / "scenes.pdf").read_bytes() == (reports / "scenes.pdf").read_bytes()
    assert contents(store) == before


def test_one_more_trial_is_one_more_training(own_tiny, cli):
    store = own_tiny / "runs" / "tiny"
    before, networks = read_store(store), trained(store)
    done = cli("run", "--study", TINY, "--n-trials", 4)
    assert done.code == 0, done.stderr
    after = read_store(store)
    assert [trial.params for trial in after.trials[:3]] == [t.params for t in before.trials]
    assert len({json.dumps(dict(trial.params)) for trial in after.trials}) == 4
    new = trained(store)[len(networks) :]
    assert len(new) == 1
    assert new[0].startswith("trial 3:")
    assert "trials: 4 complete, 0 failed, 0 stopped" in done.stdout


def test_no_trials_trains_the_methods_named_and_searches_nothing(cli):
    done = cli("run", "--study", TINY, "--n-trials", 0, "--methods", "mtl", "--json")
    assert done.code == 0, done.stderr
    assert [point["method"] for point in done.json["baselines"]] == ["stl", "mtl"]
    assert done.json["front"] == []
    assert sum(done.json["trials"].values()) == 0
    assert not (cli.folder / "runs" / "tiny" / "trials").exists()
    assert (cli.folder / "reports" / "tiny.pdf").is_file()


def test_one_training_gives_a_front_to_select_from(scenes):
    cli, _ = scenes
    quick = (*QUICK, "--set", "one_shot.patterns=4", "--set", "one_shot.statistics=8")
    folder = ("--out", "runs/one-shot")
    place = (*folder, "--reports", "one-shot")
    done = cli("run", *quick, "--search", "one_shot", "--points", 2, *place).json
    assert done["trials"] == {"complete": 2, "failed": 0, "pruned": 0}
    selected = cli(
        "select",
        "--study",
        "scenes",
        "--budget",
        "1.9xMTL",
        "--prefer",
        "depth=2",
        "--json",
        *folder,
    ).json
    mtl = next(point for point in done["baselines"] if point["method"] == "mtl")
    assert selected["network"]["gflops"] <= 1.9 * mtl["gflops"]
    assert selected["prefer"] == {"depth": 2.0}
    shown = cli("select", "--study", "scenes", *folder)
    assert shown.code == 0
    ship = next(line for line in shown.stdout.splitlines() if line.startswith("ship it: "))
    assert ship.startswith("ship it: gatesearch export --study scenes --out runs/one-shot --trial")
    assert cli(*shlex.split(ship)[3:]).code == 0
    assert (cli.folder / "network.onnx").is_file()
