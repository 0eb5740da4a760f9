"""What is refused before there is a store, and what a run is set up with."""

from dataclasses import replace

import pytest
import torch

from gatesearch.drawing import DRAWINGS
from gatesearch.errors import DataError, UsageError
from gatesearch.events import Warned
from gatesearch.methods import build_model, check_study
from gatesearch.search.run import run
from gatesearch.search.setup import (
    ExecutionOptions,
    bounds_latency,
    check_run,
    parse_budgets,
    task_infos,
)
from gatesearch.tasks.semseg import Semseg
from gatesearch.trials.costs import costs
from tests.search.tiny import RESIDUAL, interrupted_at, tiny

HERE = ExecutionOptions()


@pytest.mark.parametrize(
    ("overrides", "budgets", "message"),
    [
        ((), ["9G"], r"budget 9G is 9 GFLOPs, out of reach: .* \(interrogate\) to .* \(stl\)"),
        ((), ["1.2xMTL", "fast"], "a budget must be a number with a unit"),
        (('search.regulariser=["flops"]',), [], "add --budget, such as 1.3xMTL"),
        (("model.init=pretrained", "model.weights=none.safetensors"), [], "no file none.safeten"),
        (["data.dataset=scnes"], [], "unknown data set 'scnes'; did you mean 'scenes'"),
        (['methods=["stl", "mlt"]'], [], "unknown method 'mlt'"),
        (['tune=["mlt"]'], [], "unknown method 'mlt'"),
        ([*RESIDUAL, 'tune=["den"]'], ["1.2xMTL"], "'den' chooses its widths, and so its cost, by"),
        (['tune=["nddr"]'], ["9G"], "every network of 'nddr' costs the same; found 9G: leave"),
        (['tune=["sluice"]'], ["1M"], "every network of 'sluice' costs the same; found 1M"),
        (['tune=["mtl"]'], [], "'mtl' has none; name one of interrogate, one_shot"),
        ((), ["dpth:1.2xMTL"], "unknown task 'dpth'; did you mean 'depth'"),
        ((), ["depth:1M"], "a budget of one task bounds its FLOPs"),
        ([*RESIDUAL, 'tune=["adashare"]'], ["depth:1xMTL"], "'adashare' can be held to budgets of"),
        (["tasks.depth.kind=dpth"], [], "unknown kind of tasks.depth 'dpth'; did you mean 'depth'"),
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


def test_more_networks_than_patterns_are_refused_before_anything_is_made(data, tmp_path) -> None:
    def run_with(n_trials, *overrides):
        run(tiny(tmp_path, 'tune=["one_shot"]', *overrides), n_trials=n_trials,
            out=tmp_path / "out", data=data, emit=print)  # fmt: skip

    wanted = r"trials of 'one_shot' must be at most one_shot.patterns, {}, .* found {}: .* --set"
    with pytest.raises(UsageError, match=wanted.format(5, 6)):
        run_with(6, "one_shot.patterns=5")
    with pytest.raises(UsageError, match=wanted.format(5, 8)):  # the default number of trials
        run_with(None, "one_shot.patterns=5")
    with pytest.raises(UsageError, match=wanted.format(1000, 1001)):
        run_with(1001)
    assert not (tmp_path / "out").exists()


def test_a_start_that_there_is_none_of_is_refused_when_it_is_read(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"options\.mtl\.start: .* found 'here'"):
        tiny(tmp_path, "options.mtl.start=here")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.batch_size=7"], "batch_size is 7 but only 6 frames"),
        (["options.mtl.training.batch_size=7"], "batch_size is 7 but only 6 frames"),
        (["data.validation=9"], "9 of 10 are carved off"),
    ],
)
def test_data_that_do_not_suffice_are_refused_before_anything_is_made(
    data, tmp_path, overrides, message
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=message):
        run(tiny(tmp_path, *overrides), n_trials=1, out=out, data=data, emit=lambda event: None)
    assert not out.exists()


def test_missing_data_are_refused_before_anything_is_made(tmp_path) -> None:
    study = tiny(tmp_path, "data.dataset=nyud", "tasks.semseg.classes=40")
    with pytest.raises(DataError, match="nyud is not prepared"):
        run(study, n_trials=1, out=tmp_path / "out", data=tmp_path / "none", emit=print)
    assert not (tmp_path / "out").exists()


def test_report_frames_that_cannot_be_drawn_are_found_before_training(
    data, tmp_path, monkeypatch
) -> None:
    def run_with(*overrides):
        run(tiny(tmp_path, *overrides), n_trials=0, out=tmp_path / "out", data=data, emit=print)

    def paint(values):
        raise IndexError("a colour that there is not")

    monkeypatch.setitem(DRAWINGS, "classes", replace(DRAWINGS["classes"], paint=paint))
    with pytest.raises(DataError, match=(
        r"labels of semseg on the 1 test frames of the report must be drawable as 'classes', found "
        r"IndexError: a colour that there is not; set report_frames = 0"
    )):  # fmt: skip
        run_with()
    monkeypatch.setattr(Semseg, "drawing", "clases")
    with pytest.raises(UsageError, match="unknown drawing of task semseg 'clases'; did you mean"):
        run_with()
    assert not (tmp_path / "out").exists()
    # A report without these pages does without drawings.
    monkeypatch.setattr("gatesearch.search.run.locked", lambda out: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_with("report_frames=0")


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        (("training.batch_size=4",), 4,
         "batch norm of 'stl' needs two frames per device at this image size, found 1: "
         "training.batch_size 4 on 4 devices; take 8, or fewer"),
        (("protocol.size=[64, 64]", "model.head=deeplabv3", "training.batch_size=2"), 2,
         "batch norm of 'stl' needs two frames"),
        (("protocol.size=[64, 64]", "training.batch_size=4", "model.head=deeplabv3",
          "options.mtl.training.batch_size=2"), 2,
         r"batch norm of 'mtl' .*: options\.mtl\.training\.batch_size 2 on 2 devices; take 4"),
        (("options.interrogate.training.batch_size=2", "training.batch_size=4"), 2,
         r"batch norm of 'interrogate' needs"),
        ((), 2, r"training\.batch_size must divide among the devices: 3 frames on 2; take 4"),
    ],
)  # fmt: skip
def test_one_frame_per_device_is_refused_where_batch_norm_needs_two(
    tmp_path, overrides, devices, message
) -> None:
    with pytest.raises(UsageError, match=message):
        check_run(tiny(tmp_path, *overrides), (), ExecutionOptions(devices=devices))


@pytest.mark.parametrize(
    ("overrides", "devices"),
    [
        # Features of 2 x 2 have four values per channel.
        (("protocol.size=[64, 64]", "training.batch_size=2"), 2),
        (("protocol.size=[64, 64]", "model.head=deeplabv3", "training.batch_size=4"), 2),
        (("training.batch_size=2",), 1),
    ],
)
def test_devices_on_which_batch_norm_has_enough_are_let_in(tmp_path, overrides, devices) -> None:
    check_run(tiny(tmp_path, *overrides), (), ExecutionOptions(devices=devices))


LOOKING = 'weightings=["auto_lambda"]'


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        ((LOOKING, "data.validation=1"), 1,
         "weighting 'auto_lambda' passes .* through 'mtl', .*; found data.validation 1 on 1 device"
         "; take 2,"),
        ((LOOKING, "data.validation=3", "training.batch_size=4"), 2,
         "found data.validation 3 on 2 devices; take 4, or leave"),
        ((LOOKING, "data.validation=1", "training.batch_size=4", "protocol.size=[64, 64]"), 2,
         "found data.validation 1 on 2 devices"),
        (('search.weighting=["auto_lambda"]', "data.validation=1"), 1, "through 'interrogate'"),
    ],
)  # fmt: skip
def test_too_few_frames_for_a_weighting_that_looks_at_the_validation_part_are_refused(
    tmp_path, overrides, devices, message
) -> None:
    with pytest.raises(UsageError, match=message):
        check_run(tiny(tmp_path, *overrides), (), ExecutionOptions(devices=devices))


@pytest.mark.parametrize(
    "overrides",
    [
        (LOOKING, "data.validation=2"),
        ("data.validation=1",),
        (LOOKING, "data.validation=1", "protocol.size=[64, 64]"),
        (LOOKING, "data.validation=1", 'methods=["stl"]'),
    ],
)
def test_validation_parts_that_no_weighting_finds_too_small_are_let_in(tmp_path, overrides) -> None:
    check_run(tiny(tmp_path, *overrides), (), ExecutionOptions())


@pytest.mark.parametrize("key", ["seed", "data.validation_seed"])
def test_seeds_have_bounds(tmp_path, key) -> None:
    build_model(check_study(tiny(tmp_path, f"{key}={2**63 - 1}")), "mtl")
    with pytest.raises(UsageError, match=f"{key}: .* less than or equal to 9223372036854775807"):
        tiny(tmp_path, f"{key}={2**63}")


@pytest.mark.parametrize(
    "key",
    [
        "training.epochs", "training.batch_size", "data.validation", "data.train_frames",
        "data.test_frames", "tasks.semseg.classes", "model.head_channels", "search.startup",
        "search.stop_every", "search.stop_after", "search.scalar_trials", "execution.attempts",
        "one_shot.patterns", "one_shot.statistics", "one_shot.epochs", "interrogate.round_to",
        "options.mtl.training.epochs",
    ],
)  # fmt: skip
def test_whole_numbers_have_bounds(tmp_path, key) -> None:
    named = key.rpartition(".")[2]
    with pytest.raises(UsageError, match=f"{named}: Input should be less than or equal to"):
        check_study(tiny(tmp_path, f"{key}={10**30}"))


@pytest.mark.parametrize("size", ["[0, 16]", "[16, -1]", f"[16, {10**30}]"])
def test_sizes_have_bounds(tmp_path, size) -> None:
    with pytest.raises(UsageError, match=r"protocol\.size\.[01]: Input should be"):
        tiny(tmp_path, f"protocol.size={size}")


@pytest.mark.slow("whole run")
def test_a_store_begun_with_a_definition_that_was_refused_takes_the_cured_one(
    data, tmp_path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path), n_trials=0, out=out, data=data, emit=interrupted_at("stl", 1))
    cured = tiny(tmp_path, "data.validation=5", "training.epochs=1", 'methods=["stl"]')
    record = run(cured, n_trials=0, out=out, data=data, emit=lambda event: None)
    assert record.data["validation"] == 5
    assert [r.epochs for r in record.baselines] == [1]
    assert record.definition["data"]["validation"] == 5


@pytest.mark.slow("whole run")
def test_predictions_that_cannot_be_drawn_later_cost_their_page_only(
    data, tmp_path, monkeypatch
) -> None:
    def too_large(*args, **options):
        raise torch.OutOfMemoryError("too large")

    study, out, events = tiny(tmp_path, 'methods=["stl"]'), tmp_path / "out", []
    monkeypatch.setattr("gatesearch.search.predictions.predict", too_large)
    record = run(study, n_trials=0, out=out, data=data, emit=events.append)
    assert record.predictions is None
    assert "test" in record.baselines[0].metrics
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert warning.startswith("predictions on test frames were not drawn (OutOfMemoryError: too la")
    monkeypatch.undo()
    assert run(study, n_trials=0, out=out, data=data, emit=events.append).predictions is not None


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
    options = ExecutionOptions(storage="postgresql://me:secret@server/studies?password=secret")
    assert options.shown_storage == "postgresql://me:***@server/studies?password=***"
    assert "secret" not in repr(options)
    assert ExecutionOptions().shown_storage == ""
