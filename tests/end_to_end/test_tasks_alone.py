"""What one task costs, from the search to the exported file."""

import torch

from gatesearch.cost import count_macs
from gatesearch.export import read_model
from gatesearch.export.reader import read_exported
from tests.end_to_end.conftest import TINY

STORE = ("--study", "runs/tiny")


def test_a_task_alone_is_exported_read_and_timed(cli, own_tiny) -> None:
    whole = cli("export", *STORE, "--to", "whole.safetensors", "--json")
    done = cli("export", *STORE, "--to", "depth.safetensors", "--tasks", "depth", "--json")
    assert done.code == 0, done.stderr
    assert done.json["tasks"] == ["depth"]
    assert "tasks" not in whole.json
    assert done.json["parity"] < 1e-4
    card = done.json["card"]
    assert card["network"] == f"{whole.json['card']['network']}: depth"
    assert list(card["tasks"]) == ["depth"]
    network = read_exported(own_tiny / "depth.safetensors")
    cost = count_macs(network, (1, 3, 32, 32), cross_check=False)
    assert (card["gflops"], card["params_m"]) == (cost.gflops, cost.params_m)
    image = torch.rand(2, 3, 32, 32) * 255
    ours, theirs = (read_model(own_tiny / f"{n}.safetensors") for n in ("depth", "whole"))
    both = dict(zip(theirs.card.tasks, theirs.run(image.numpy()), strict=True))
    assert torch.allclose(*map(torch.from_numpy, (*ours.run(image.numpy()), both["depth"])))
    stl = cli("export", *STORE, "--trial", "stl", "--to", "stl.safetensors", "--tasks", "semseg")
    assert stl.code == 0, stl.stderr
    assert list(read_model(own_tiny / "stl.safetensors").card.tasks) == ["semseg"]
    done = cli(
        *("bench", "--model", "whole.safetensors", "--tasks", "depth", "--runtime", "eager"),
        *("--seconds", "0", "--json"),
    )
    assert done.code == 0, done.stderr
    (row,) = done.json["rows"]
    assert done.json["tasks"] == ["depth"]
    assert (row["file"], row["network"]) == ("whole.safetensors", card["network"])
    assert row["median_ms"] > 0


def test_other_tasks_are_refused(cli, own_tiny) -> None:
    done = cli("export", *STORE, "--to", "x.safetensors", "--tasks", "depht")
    known = "unknown task 'depht'; did you mean 'depth'? (known: semseg, depth)"
    assert known in done.refused(2)
    assert not (own_tiny / "x.safetensors").exists()


def test_a_search_keeps_to_a_budget_of_one_task(cli, tiny) -> None:
    budgets = ("--budget", "1.6xMTL", "--budget", "depth:0.65xSTL")
    run = cli(
        *("run", "--study", TINY, "--data", tiny / "data", "--n-trials", 1, *budgets, "--json"),
        *("--set", "interrogate.granularity=block"),
    )
    assert run.code == 0, run.stderr
    (stl,) = (point for point in run.json["baselines"] if point["method"] == "stl")
    (trial,) = run.json["front"]
    assert trial["budget"] == "1.6xMTL+depth:0.65xSTL"
    assert list(trial["task_gflops"]) == ["semseg", "depth", "semseg+depth"]
    assert trial["task_gflops"]["depth"] <= 0.65 * stl["gflops"]
    assert trial["task_gflops"]["semseg+depth"] == trial["gflops"]
    selected = cli("select", "--study", "runs/tiny", "--budget", "depth:0.65xSTL", "--json")
    assert selected.code == 0, selected.stderr
    assert selected.json["network"]["trial"] == trial["trial"]
