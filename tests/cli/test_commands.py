"""The command line from outside: what it prints where, and how it exits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gatesearch import __version__


def test_help_needs_no_heavy_library() -> None:
    heavy = ["torch", "numpy", "pandas", "matplotlib", "optuna", "torchvision", "sqlalchemy"]
    code = f"""
import sys
from gatesearch.cli import app
app(["run", "--help"], standalone_mode=False)
print("loaded:", [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize(
    ("command", "example"),
    [
        (["run"], "gatesearch run --study scenes --n-trials 6"),
        (["report"], "gatesearch report --study scenes"),
        (["export"], "gatesearch export --study nyud-small --to network.onnx"),
        (["predict"], "gatesearch predict --model network.onnx"),
        (["bench"], "gatesearch bench --model small.safetensors mtl.safetensors stl.safetensors"),
        (["flops"], "gatesearch flops --study pascal --method stl,mtl --json"),
        (["studies"], "gatesearch studies"),
        (["methods"], "gatesearch methods"),
        (["data", "prepare"], "gatesearch data prepare nyud"),
        (["data", "check"], "gatesearch data check parts.toml"),
        (["new"], "gatesearch new parts --images"),
    ],
)
def test_every_help_has_examples(cli, command: list[str], example: str) -> None:
    done = cli(*command, "--help")
    assert done.returncode == 0
    assert example in done.stdout


def test_version_is_that_of_the_code(cli) -> None:
    assert cli("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--study", "scene"], "did you mean 'scenes'?"),
        (["run", "--study", "missing.toml"], "no study file missing.toml"),
        (["run", "--study", "scenes", "--n-trials", "-1"], "--n-trials"),
        (["run", "--study", "scenes", "--seed", "-1"], "--seed"),
        (["run", "--study", "scenes", "--methods", "stl,"], "found an empty name"),
        (["run", "--study", "scenes", "--set", "epochs"], "--set takes key=value"),
        (["run", "--study", "scenes", "--set", "training.epoch=1"], "did you mean 'epochs'?"),
        (["flops", "--study", "scenes", "--set", "model.width=-1"], "model.width"),
        (["flops"], "--study"),
        (["bench"], "bench needs a network or more, found none"),
        (["bench", "--model", "a.onnx", "--batch", "0"], "--batch"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_use_exits_2_with_one_clear_screen(cli, arguments: list[str], said: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_refused_run_leaves_nothing_behind(cli, tmp_path: Path) -> None:
    cli("run", "--study", "scenes", "--set", "training.epoch=1")
    assert list(tmp_path.iterdir()) == []


def test_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "gatesearch", "run", "--study", "scene"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gatesearch: error: unknown study 'scene'; did you mean")


def test_report_without_a_store_is_wrong_use(cli) -> None:
    done = cli("report", "--study", "scenes")
    assert (done.returncode, done.stdout) == (2, "")
    assert "gatesearch: error:" in done.stderr


def test_studies_lists_each_with_its_protocol(cli) -> None:
    lines = cli("studies").stdout.splitlines()
    for name, protocol in [("scenes", "scenes-64"), ("nyud", "nyud-40"), ("pascal", "pascal-")]:
        assert any(line.split()[:1] == [name] and protocol in line for line in lines)


def test_flops_prints_json_as_its_last_line(cli) -> None:
    done = cli("flops", "--study", "scenes", "--method", "stl,mtl", "--method", "stl", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert (printed["study"], printed["convention"]) == ("scenes", "2xMAC")
    stl, mtl = printed["methods"]["stl"], printed["methods"]["mtl"]
    assert set(printed["methods"]) == {"stl", "mtl"}
    assert set(stl) == {"gflops", "backbone_gflops", "params_m"}
    # four tasks: four backbones against one
    assert stl["backbone_gflops"] == pytest.approx(4 * mtl["backbone_gflops"], rel=1e-9)
    heads = [row["gflops"] - row["backbone_gflops"] for row in (stl, mtl)]
    assert heads[0] == pytest.approx(heads[1], rel=1e-9)


def test_flops_of_one_task_alone(cli) -> None:
    given = ("flops", "--study", "scenes", "--set", 'methods=["stl","mtl","mtan"]')
    done = cli(*given, "--tasks", "depth", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["tasks"] == ["depth"]
    assert printed["methods"]["stl"] == printed["methods"]["mtl"], "one encoder and one head"
    left_out = "left out: the cost of depth alone is known of compact networks, and 'mtan' is"
    assert left_out in " ".join(done.stderr.split())
    done = cli(*given, "--tasks", "depht,normals")
    assert done.returncode == 2
    assert "unknown task 'depht'; did you mean 'depth'?" in done.stderr


def test_flops_leaves_out_a_method_of_the_study_whose_cost_is_not_known(cli) -> None:
    chosen = ("--set", 'methods=["mtl","adashare"]')
    done = cli("flops", "--study", "scenes", *chosen, "--json")
    assert done.returncode == 0, done.stderr
    assert "left out: the cost of 'adashare' is not known" in " ".join(done.stderr.split())
    assert json.loads(done.stdout.splitlines()[-1])["methods"].keys() == {"mtl"}
    done = cli("flops", "--study", "scenes", "--method", "mtl,adashare")
    assert done.returncode == 2


def test_flops_of_an_unknown_method(cli) -> None:
    done = cli("flops", "--study", "scenes", "--method", "stll")
    assert done.returncode == 2
    assert "'stl'" in done.stderr
