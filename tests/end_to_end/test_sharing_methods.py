"""The sharing methods in one store: one command trains them all, and one that diverges is alone."""

import math

import pytest

from gatesearch.store.opening import read_store
from gatesearch.study import load_study
from gatesearch.trials.costs import costs
from tests.end_to_end.conftest import TINY, CommandLine
from tests.search.tiny import RESIDUAL

pytestmark = pytest.mark.end_to_end

PLAIN = ("stl", "mtl", "branch", "sluice", "nddr", "gradsplit")
TUNED = ("adashare", "lomt", "branch")
RUN = ("run", "--study", TINY, *(word for item in RESIDUAL for word in ("--set", item)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, environment):
    """(command line in the folder of a run of all methods, what the run printed)."""
    cli = CommandLine(tmp_path_factory.mktemp("shared"), environment)
    methods, tuned = ",".join((*PLAIN, "den")), ",".join(TUNED)
    done = cli(*RUN, "--methods", methods, "--tune", tuned, "--n-trials", 1, "--json")
    assert done.code == 0, done.stderr
    return cli, done


def test_one_command_trains_all(shared) -> None:
    cli, done = shared
    record = read_store(cli.folder / "runs" / "tiny")
    assert sorted(result.method for result in record.baselines) == sorted((*PLAIN, "den"))
    assert [trial.method for trial in record.trials] == list(TUNED)
    for result in (*record.baselines, *record.trials):
        assert result.state == "complete", result.reason
        assert set(result.metrics["validation"]) == {"semseg", "depth"}
        assert all(map(math.isfinite, result.metrics["validation"].values()))
        assert result.train_pflops > 0
        assert result.epochs == 2
    assert done.json["trials"] == {"complete": 3, "failed": 0, "pruned": 0}
    assert {point["method"] for point in done.json["baselines"]} == {*PLAIN, "den"}
    assert (cli.folder / "reports" / "tiny.pdf").read_bytes().startswith(b"%PDF-")


def test_their_costs_are_those_that_are_counted_before(shared) -> None:
    cli, _ = shared
    record = read_store(cli.folder / "runs" / "tiny")
    cut = dict(record.trials[2].params)["cut"]
    priced = costs(load_study(TINY, RESIDUAL), (*PLAIN, "den"))  # what `gatesearch flops` prints
    baselines = {result.method: result for result in record.baselines}
    for method in PLAIN:
        assert baselines[method].gflops == pytest.approx(priced[method].gflops, rel=1e-12)
        assert baselines[method].params_m == pytest.approx(priced[method].params_m, rel=1e-12)
    # Some images leave widths out; none computes more.
    assert baselines["den"].gflops <= priced["den"].gflops * (1 + 1e-12)
    (counted,) = costs(load_study(TINY, [*RESIDUAL, f"branch.cut={cut}"]), ("branch",)).values()
    assert record.trials[2].gflops == pytest.approx(counted.gflops, rel=1e-12)
    adashare, lomt, _ = record.trials
    assert adashare.gflops <= priced["stl"].gflops * (1 + 1e-12)
    assert lomt.gflops <= priced["mtl"].gflops * (1 + 1e-12)
    # The price of training stands beside: NDDR-CNN starts from the single-task networks.
    stl, nddr = baselines["stl"], baselines["nddr"]
    assert nddr.reused_pflops == pytest.approx(stl.train_pflops)
    assert nddr.train_pflops > 2 * stl.train_pflops


def test_a_method_that_diverges_fails_alone(shared) -> None:
    cli, _ = shared
    wild = [f"options.{method}.training.lr=1e20" for method in ("sluice", "adashare")]
    own = [word for key in (*wild, "adashare.warmup=0.5") for word in ("--set", key)]
    run = (*RUN, "--methods", "stl,sluice", "--tune", "adashare,branch")
    done = cli(*run, *own, "--n-trials", 1, "--out", "wild")
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    record = read_store(cli.folder / "wild")
    states = {result.method: result.state for result in record.baselines}
    assert states == {"stl": "complete", "sluice": "failed"}
    assert [(trial.method, trial.state) for trial in record.trials] == [("branch", "complete")]
    said = " ".join(done.stderr.split())
    for label in ("sluice", "warm-up of adashare"):
        assert f"warning: {label} failed: the loss of semseg became nan in epoch 1, step 2" in said
    assert "'adashare' has no new trials" in said
