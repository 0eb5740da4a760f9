"""Tasks that have no frame in common, from two data sets, through a run and its continuation."""

import math

import pytest

from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import CommandLine

pytestmark = pytest.mark.end_to_end

TOML = """
name = "two"
mixing = "share"
methods = ["stl", "mtl"]
report_frames = 1
protocol = { name = "scenes-16", size = [16, 16] }
tasks.semseg = { kind = "semseg", classes = 8 }
tasks.depth = { kind = "depth" }
tasks.edges = { kind = "edges" }
training = { epochs = 1, batch_size = 4, lr = 1e-3, precision = "fp32", memory_format = "nchw" }
search = { lambda_s = [0.1, 10.0], tau = [0.2, 0.8], startup = 1 }

[model]
backbone = "resnet18"
width = 0.05
output_stride = 32
head = "light"
head_channels = 4

[[data]]
dataset = "scenes"
train_frames = 10
test_frames = 2
validation = 4
tasks = ["semseg", "edges"]

[[data]]
dataset = "scenes"
train_frames = 13
test_frames = 3
validation = 4
tasks = ["depth"]
"""


def test_disjoint_tasks_run_and_continue(tmp_path, environment):
    (tmp_path / "two.toml").write_text(TOML)
    cli = CommandLine(tmp_path, environment)
    command = ("run", "--study", "two.toml", "--json")
    done = cli(*command, "--n-trials", 1)
    assert done.code == 0, done.stderr
    record = read_store(tmp_path / "runs" / "two")
    # 19 frames to train on, 8 to validate, 5 to test; each has labels of its own set's tasks.
    assert record.data["labelled"] == {
        "train": {"semseg": 6, "depth": 9, "edges": 6},
        "validation": {"semseg": 4, "depth": 4, "edges": 4},
        "test": {"semseg": 2, "depth": 3, "edges": 2},
    }
    for point in (*done.json["baselines"], *done.json["front"]):
        assert all(map(math.isfinite, point["metrics"].values())), point
    for result in (*record.baselines, *record.trials):
        losses = [name for name in result.curves if name.startswith("loss.")]
        assert set(losses) == {"loss.semseg", "loss.depth", "loss.edges"}
        assert all(math.isfinite(v) for name in losses for v in result.curves[name])
    more = cli(*command, "--n-trials", 2)
    assert more.code == 0, more.stderr
    assert more.json["trials"]["complete"] == 2
    assert more.json["baselines"] == done.json["baselines"]
