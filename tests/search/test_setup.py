"""What is refused before there is a store, and what a run is set up with."""

import pytest

from gatesearch.errors import DataError, UsageError
from gatesearch.search.run import run
from gatesearch.search.setup import (
    ExecutionOptions,
    bounds_latency,
    check_run,
    parse_budgets,
    task_infos,
)
from gatesearch.trials.costs import costs
from tests.search.tiny import epochs_of, tiny

HERE = ExecutionOptions()


@pytest.mark.parametrize(
    ("overrides", "budgets", "message"),
    [
        ((), ["9G"], r"budget 9G is 9 GFLOPs, out of reach: .* \(mtl\) to .* \(stl\)"),
        ((), ["1.2xMTL", "fast"], "a budget must be a number with a unit"),
        (('search.regulariser=["flops"]',), [], "add --budget, such as 1.3xMTL"),
        (("model.init=pretrained", "model.weights=none.safetensors"), [], "no file none.safeten"),
        (["data.dataset=scnes"], [], "unknown data set 'scnes'; did you mean 'scenes'"),
        (['methods=["stl", "mlt"]'], [], "unknown method 'mlt'"),
        (['tune=["mlt"]'], [], "unknown method 'mlt'"),
        (['tune=["mtl"]'], [], "'mtl' has none; name one of interrogate, one_shot"),
        (["tasks.depth.kind=dpth"], [], "unknown kind of task depth 'dpth'; did you mean 'depth'"),
        (["interrogate.estimater=ste"], [], "unknown key 'estimater'; did you mean 'estimator'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    data, tmp_path, overrides, budgets, message
) -> None:
    out, events = tmp_path / "out", []
    with pytest.raises((UsageError, DataError), match=message):
        run(tiny(tmp_path, *overrides), n_trials=1, out=out, data=data, emit=events.append,
            budgets=budgets)  # fmt: skip
    assert not out.exists()
    assert events == []


def test_a_start_that_there_is_none_of_is_refused_when_it_is_read(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"options\.mtl\.start: .* found 'here'"):
        tiny(tmp_path, "options.mtl.start=here")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.batch_size=7"], "batch_size is 7 but only 6 frames"),
        (["data.validation=9"], "9 of 10 are carved off"),
    ],
)
def test_data_that_do_not_suffice_are_refused_before_training(
    data, tmp_path, overrides, message
) -> None:
    events = []
    with pytest.raises(DataError, match=message):
        run(tiny(tmp_path, *overrides), n_trials=1, out=tmp_path / "out", data=data,
            emit=events.append)  # fmt: skip
    assert not epochs_of(events)


@pytest.mark.parametrize(
    ("weightings", "overrides", "message"),
    [
        (("pcgard",), (), "unknown weighting 'pcgard'; did you mean 'pcgrad'"),
        ((), ("search.weighting=['unifrom']",), "unknown weighting 'unifrom'; did you mean"),
        ((), ("search.weighting=['scalar']",), "search.weighting cannot have 'scalar'"),
        ((), ("balance.scalar.weights.depth=2",), "balance cannot have 'scalar'"),
        ((), ("balance.cagrad.d=2",), r"unknown option of weighting cagrad 'd' \(known: c\)"),
        (
            (),
            ("balance.dwa.temperature='hot'",),
            "temperature of weighting dwa must be a number such as 2.0, found 'hot'",
        ),
    ],
)
def test_a_weighting_that_cannot_be_is_refused(tmp_path, weightings, overrides, message) -> None:
    study = tiny(tmp_path, *overrides).model_copy(update={"weightings": ("uniform", *weightings)})
    with pytest.raises(UsageError, match=message):
        check_run(study, (), HERE)


@pytest.mark.parametrize("options", [{"workers": 2}, {"devices": 2}, {"executor": "ray"}])
def test_latency_is_measured_while_nothing_else_runs(tmp_path, options) -> None:
    with pytest.raises(UsageError, match="it takes --workers 1, --devices-per-trial 1 and no"):
        check_run(tiny(tmp_path), ["5ms"], ExecutionOptions(**options))


def test_which_budgets_bound_latency() -> None:
    assert bounds_latency(["1.3xMTL", "5ms"])
    assert not bounds_latency(["1.3xMTL", "20M"])
    assert not bounds_latency([])


def test_the_baselines_begin_with_single_task_networks(tmp_path) -> None:
    study = tiny(tmp_path).model_copy(update={"methods": ("mtan", "mtl")})
    study = study.model_copy(
        update={"model": study.model.model_copy(update={"output_stride": 16})}
    )  # fmt: skip
    setup = check_run(study, (), HERE)
    assert setup.baselines == ("stl", "mtan", "mtl")
    assert list(setup.tuned) == ["interrogate"]
    assert (setup.budgets, setup.stopwatch) == ((), None)


def test_budgets_are_of_the_studys_own_ends(tmp_path) -> None:
    study = tiny(tmp_path)
    ends = costs(study, ("mtl", "stl"))
    assert parse_budgets(study, ()) == ()
    (first, second) = parse_budgets(study, ("1.2xMTL", "0.8xSTL"))
    assert first.limit == pytest.approx(1.2 * ends["mtl"].macs)
    assert second.limit == pytest.approx(0.8 * ends["stl"].macs)


def test_what_a_report_must_know_of_tasks(tmp_path) -> None:
    semseg, depth = task_infos(tiny(tmp_path))
    assert (semseg.name, semseg.kind, semseg.classes, semseg.higher_is_better) == (
        "semseg", "semseg", 8, True,
    )  # fmt: skip
    assert (depth.name, depth.unit, depth.higher_is_better) == ("depth", "m", False)


def test_the_shown_storage_has_no_password() -> None:
    url = "postgresql://me:secret@server/studies"
    assert "secret" not in ExecutionOptions(storage=url).shown_storage
    assert ExecutionOptions().shown_storage == ""
