"""Controls, several seeds and widths of baselines, through the command line."""

import pytest

from gatesearch.methods.controls import KINDS
from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import TINY, CommandLine

pytestmark = pytest.mark.end_to_end

RUN = (
    *("run", "--study", TINY, "--methods", "mtl", "--n-trials", 1, "--budget", "1.4xMTL"),
    *("--seeds", "3,0", "--set", "baselines.widths=[0.5]"),
    *("--set", "model.width=0.125"),
)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory, environment):
    """The command line in the folder of a run, what it printed, and with controls."""
    cli = CommandLine(tmp_path_factory.mktemp("controls"), environment)
    without = cli(*RUN)
    assert without.code == 0, without.stderr
    done = cli(*RUN, "--controls", "--json")
    assert done.code == 0, done.stderr
    return cli, without, done


def test_by_default_few_trials_have_no_controls(controlled) -> None:
    _, without, done = controlled
    assert "--controls trains them" in without.stderr
    assert "random" not in without.stderr
    assert "--no-controls leaves them out" in done.stderr


def test_every_seed_has_every_control_at_the_cost_of_its_network(controlled) -> None:
    _, _, done = controlled
    found = {(c["control"], c["seed"]): c for c in done.json["controls"]}
    assert found.keys() == {(k, s) for k in KINDS for s in (3, 0)} | {("repeat", 0)}
    (trial,) = done.json["front"]
    assert (trial["seed"], trial["trial"]) == (3, 0)
    learned = {3: trial, 0: found["repeat", 0]}
    for (kind, seed), control in found.items():
        assert (control["of"], control["split"]) == (0, "test")
        # A network of 4 to 32 channels a layer has steps of some percent.
        least = 0.85 if kind == "mtl@B" else 0.95
        assert least * learned[seed]["gflops"] <= control["gflops"], (kind, seed)
        assert control["gflops"] <= learned[seed]["gflops"] or kind == "repeat"


def test_differences_are_of_two_pairs(controlled) -> None:
    _, _, done = controlled
    rows = {(row["a"], row["b"]): row for row in done.json["comparisons"]}
    assert {b for a, b in rows if a == "trial 0"} == {f"{kind} of trial 0" for kind in KINDS}
    for row in rows.values():
        assert (row["n"], row["metric"]) == (2, "delta_mtl")
        low, high = row["interval"]
        assert low <= row["mean"] <= high


def test_baselines_have_every_seed_and_width(controlled) -> None:
    _, _, done = controlled
    found = {(b["method"], b.get("width", 1), b["seed"]) for b in done.json["baselines"]}
    assert found == {(m, w, s) for m in ("stl", "mtl") for w in (1, 0.5) for s in (3, 0)}


def test_training_costs_as_much_as_the_trials(controlled) -> None:
    cli, *_ = controlled
    record = read_store(cli.folder / "runs" / "tiny")
    learned = {r.seed: r for r in (*record.trials, *record.controls) if r.gates}
    assert learned.keys() == {3, 0}
    spent = {3: record.trials[0].train_pflops}
    spent |= {c.seed: c.train_pflops for c in record.controls if c.control == "repeat"}
    for control in record.controls:
        ratio = control.train_pflops / spent[control.seed]
        assert ratio == pytest.approx(1, abs=0.1), control.name


def test_the_same_command_again_trains_nothing(controlled) -> None:
    cli, _, done = controlled
    again = cli(*RUN, "--json")
    assert again.code == 0, again.stderr
    assert "epochs" not in again.stderr
    assert again.json == done.json


def test_what_is_chosen_can_be_exported(controlled) -> None:
    cli, *_ = controlled
    store = ("--study", "runs/tiny")
    shipped = cli("export", *store, "--trial", "mtl@B of trial 0", "--to", "n.onnx", "--json")
    assert shipped.code == 0, shipped.stderr
    assert shipped.json["parity"] < 1e-4
    narrow = cli("export", *store, "--trial", "mtl x0.5", "--to", "x.onnx", "--json")
    assert narrow.code == 0, narrow.stderr
    chosen = cli("select", *store, "--json")
    assert chosen.json["kind"] in ("trial", "baseline", "control")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", "0,0"), "--seeds must be different whole numbers"),
        (("--seeds", "0,x"), "--seeds must be different whole numbers"),
        (("--seeds", "0,1", "--seed", 1), "give one of them"),
        (("--set", "baselines.widths=[0.0]"), "baselines.widths"),
        (("--set", "baselines.methods=['interrogate']"), "trained without a search"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_is_made(cli, arguments, said) -> None:
    refused = cli("run", "--study", TINY, "--n-trials", 0, *arguments).refused(2)
    assert said in refused
    assert not (cli.folder / "runs").exists()
