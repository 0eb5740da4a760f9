"""Folders of any name, in every option that takes one."""

import json
import os
import shutil

import pytest

from tests.end_to_end.conftest import TINY, contents, outcome

pytestmark = pytest.mark.end_to_end

ODD = "a?%5f%20#{x}[b]*:@'\" é\n日"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_between_folders_of_odd_names(tiny, cli, workers) -> None:
    data, out, reports, other = (f"{name} {ODD}" for name in ("data", "out", "reports", "-other"))
    shutil.copytree(tiny / "data", cli.folder / data)
    options = ("--data", data, "--reports", reports, "--workers", workers)
    # With two workers only the baselines are compared.
    run = ("run", "--study", TINY, "--n-trials", 2 if workers == 1 else 0, *options)
    done = cli(*run, "--out", out, "--json")
    assert done.code == 0, done.stderr
    assert set(os.listdir(cli.folder)) == {data, out, reports}
    assert done.json["report"] == f"{reports}/tiny.pdf"
    kept = json.loads((cli.folder / reports / "tiny.json").read_text(encoding="utf-8"))
    assert kept["report"] == f"{reports}/tiny.pdf"
    whole = outcome(tiny / "runs" / "tiny")
    ours = outcome(cli.folder / out)
    assert ours[0] == whole[0]
    if workers == 2:  # what follows is the same for any number of them
        return
    assert ours[1] == [trial for trial in whole[1] if trial[0] < 2]
    before = contents(cli.folder / out)
    again = cli(*run, "--out", out, "--json")
    assert (again.code, again.json) == (0, done.json), again.stderr
    assert contents(cli.folder / out).keys() == before.keys()
    reused = cli(*run, "--out", other, "--reuse", out, "--json")
    assert "stl, from " in reused.stderr
    assert reused.json["baselines"] == done.json["baselines"]
    told = cli("status", "--study", TINY, "--out", out, "--json").json
    assert (told["trials"]["complete"], told["damage"]) == (2, None)
    shutil.rmtree(cli.folder / reports)
    assert cli("report", "--study", out, "--reports", reports, "--json").json == done.json
    to = f"to {ODD}"
    assert cli("export", "--study", out, "--to", f"{to}/n.safetensors").code == 0
    assert cli("data", "check", "scenes", "--data", data).code == 0
    assert set(os.listdir(cli.folder)) == {data, out, reports, other, to}


def test_a_store_is_read_by_name_as_by_its_file(own_tiny, cli) -> None:
    shutil.copytree(own_tiny / "runs" / "tiny", own_tiny / "runs" / "wide")
    shutil.copytree(own_tiny / "runs" / "tiny", own_tiny / "elsewhere" / "x")
    by_file = {verb: cli(verb, "--study", TINY, "--json").json for verb in ("report", "select")}
    assert by_file["report"]["trials"]["complete"] == 3
    names = {"tiny": "report", "wide": "select", "runs/wide": "report", "elsewhere/x": "select"}
    for name, verb in {**names, own_tiny / "elsewhere" / "x": "select"}.items():
        done = cli(verb, "--study", name, "--json")
        assert done.code == 0, done.stderr
        shown = {key: value for key, value in done.json.items() if key != "export"}
        assert shown == {k: value for k, value in by_file[verb].items() if k != "export"}
    by_out = cli("report", "--study", "tiny", "--out", "elsewhere/x", "--json")
    assert by_out.json == by_file["report"]
    for index, name in enumerate((TINY, "wide")):
        assert cli("export", "--study", name, "--to", f"{index}.safetensors", "--json").code == 0
    files = [(own_tiny / f"{index}.safetensors").read_bytes() for index in (0, 1)]
    assert files[0] == files[1]
    assert "found 'tiny'" in cli("report", "--study", "other", "--out", "runs/wide").refused(2)
    said = cli("report", "--study", "wied").refused(2)
    assert "did you mean 'wide'?" in said
    assert "stores in runs: tiny, wide" in said
