"""The store: whose it is, what counts in it, who holds it, and what is refused."""

import json
import shutil
from dataclasses import replace
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.methods import binding_methods, check_study
from gatesearch.results import Result, TaskInfo
from gatesearch.store.backup import DATABASE
from gatesearch.store.names import search_name
from gatesearch.store.opening import open_store, read_store
from gatesearch.store.optuna_trials import GAIN, GAIN_AND_COST
from gatesearch.store.store import PendingTrial, Store
from tests.search.tiny import tiny

TASKS = (
    TaskInfo("semseg", "mIoU", "%", True, "semseg", "classes", 8),
    TaskInfo("depth", "RMSE", "m", False, "depth", "range", 1),
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store as a run begins it; making one takes Optuna a while."""
    folder = tmp_path_factory.mktemp("stores")
    open_store(tiny(folder), folder=folder / "out", tasks=TASKS)
    return folder / "out"


@pytest.fixture
def study(tmp_path):
    return tiny(tmp_path)


@pytest.fixture
def out(tmp_path, empty):
    shutil.copytree(empty, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def store(study, out) -> Store:
    return open_store(study, folder=out, tasks=TASKS)


def result(method="interrogate", trial=None, **options) -> Result:
    figures = {"semseg": 20.0 + (trial or 0), "depth": 0.5}
    return Result(method, 0, trial, metrics={"validation": figures}, gflops=1.5, **options)


RANDOM = optuna.samplers.RandomSampler(seed=0)
# Searches of a method without a budget, and under one.
FREE, BOUND = "interrogate", "interrogate 1.3xMTL"


def begun(store: Store, budget: str = "") -> PendingTrial:
    search = search_name("interrogate", budget)
    store.open_search(search, GAIN if budget else GAIN_AND_COST)
    return store.begin(search, RANDOM, lambda trial: {"x": trial.suggest_float("x", 0.0, 1.0)})


def ended(store: Store, gain: float = 1.0, budget: str = "", **options) -> Result:
    trial = begun(store, budget)
    kept = result(trial=trial.number, budget=budget, **options)
    store.finish(trial, kept, [gain] if budget else [gain, 1.5])
    return kept


def test_everything_comes_back(store, study, out) -> None:
    baselines = [result("stl"), result("mtl", state="failed", reason="the loss became nan")]
    for baseline in baselines:
        store.keep_result(baseline)
    trials = [ended(store), ended(store)]
    store.finish(begun(store), result(trial=2, state="failed", reason="why"), None)
    record = read_store(out)
    assert record == store.record()
    assert record.baselines == tuple(baselines)
    assert record.trials[:2] == tuple(trials)
    assert (record.trials[2].state, record.trials[2].reason) == ("failed", "why")
    assert (record.name, record.protocol, record.tasks) == ("tiny", "scenes-16", TASKS)
    assert record.fingerprint == study.fingerprint
    assert record.definition == study.definition()
    assert len(store.results(FREE)) == 3


def test_baselines_come_single_tasks_first_then_hard_sharing(store) -> None:
    for method in ("mtan", "cross_stitch", "mtl", "stl"):
        for seed in (1, 0):
            store.keep_result(replace(result(method), seed=seed))
    order = [(r.seed, r.method) for r in store.record().baselines]
    assert order == [(s, m) for s in (0, 1) for m in ("stl", "mtl", "cross_stitch", "mtan")]


def test_a_baseline_trained_again_replaces_the_old(store) -> None:
    store.keep_result(result("mtl", state="failed", reason="x"))
    store.keep_result(result("mtl"))
    assert [r.state for r in store.record().baselines] == ["complete"]


def test_test_figures_are_kept_beside_the_validation_ones(store, study, out) -> None:
    baseline, trial = result("stl"), ended(store)
    store.keep_result(baseline)
    figures = {"semseg": 18.0, "depth": float("nan")}
    told = {"semseg": {"IoU wall": 50.0, "IoU floor": float("nan")}}
    store.keep_test(baseline, {"semseg": 17.0, "depth": 0.6}, told)
    store.keep_test(trial, figures, told)
    record = read_store(out)
    assert record.baselines[0].metrics["test"] == {"semseg": 17.0, "depth": 0.6}
    assert record.trials[0].metrics["validation"] == trial.metrics["validation"]
    assert record.trials[0].metrics["test"] == pytest.approx(figures, nan_ok=True)
    for kept in (record.baselines[0], record.trials[0]):
        assert kept.details["test"]["semseg"] == pytest.approx(told["semseg"], nan_ok=True)


def test_a_trial_that_was_cut_off_is_found_again(store, study, out) -> None:
    kept = ended(store)
    cut = begun(store)  # a process is killed here
    later = open_store(study, folder=out, tasks=TASKS)
    assert len(later.results(FREE)) == 1
    assert later.unfinished() == [cut]
    assert later.record().trials == (kept,)
    assert later.results(FREE) == [kept]
    assert ended(later).trial == 2
    later.finish(cut, result(trial=1), [3.0, 1.5])
    assert later.unfinished() == []
    assert [trial.trial for trial in later.record().trials] == [0, 1, 2]


def test_a_trial_whose_drawing_was_cut_off_was_never_begun(store, study, out) -> None:
    store.open_search(FREE, GAIN_AND_COST)
    store.searches[FREE].ask().suggest_float("x", 0.0, 1.0)  # killed before it was whole
    store.searches[FREE].enqueue_trial({"x": 0.5})  # killed before it was asked for
    later = open_store(study, folder=out, tasks=TASKS)
    assert later.unfinished() == []
    assert len(later.results(FREE)) == 0
    assert ended(later).trial == 0
    assert len(later.results(FREE)) == 1


@pytest.mark.parametrize("budget", ["", "1.3xMTL"])
def test_a_trial_is_begun_whole_or_not_at_all(store, study, out, budget) -> None:
    ended(store, budget=budget)
    name = search_name("interrogate", budget)

    def cut(trial):
        trial.suggest_float("x", 0.0, 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.begin(name, RANDOM, cut)
    assert len(store.searches[name].get_trials()) == 1
    next_one = begun(store, budget)
    assert next_one.index == 1
    assert open_store(study, folder=out, tasks=TASKS).unfinished() == [next_one]


def test_a_trial_is_told_once(store) -> None:
    trial = begun(store)
    store.finish(trial, result(trial=0), [1.0, 1.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        store.finish(trial, result(trial=0), [2.0, 1.0])
    assert len(store.results(FREE)) == 1


def test_a_trial_that_a_backup_does_not_know_is_adopted(study, store, out, tmp_path) -> None:
    shutil.copytree(out, tmp_path / "backup")
    ended(store)
    cut = begun(store, "1.3xMTL")
    old = open_store(study, folder=tmp_path / "backup", tasks=TASKS)
    old.adopt(cut, objectives=1)
    (adopted,) = old.unfinished()
    assert (adopted.search, adopted.number, adopted.params) == (BOUND, 1, cut.params)
    assert old.objectives(BOUND) == 1
    old.finish(adopted, result(trial=1, budget="1.3xMTL"), [1.0])
    assert [trial.trial for trial in old.record().trials] == [1]
    assert begun(old).number == 2


def test_trials_under_a_budget_are_a_search_of_their_own(store, study, out) -> None:
    ended(store)
    for count in (1, 2):
        assert ended(store, budget="1.3xMTL").trial == count
        assert len(store.results(BOUND)) == count
    begun(store, "20M")  # killed
    later = open_store(study, folder=out, tasks=TASKS)
    searches = (FREE, BOUND, "interrogate 20M", "interrogate 9G", "another")
    assert [len(later.results(name)) for name in searches] == [1, 2, 0, 0, 0]
    assert begun(later).number == 4  # numbers are the whole store's
    later.keep_test(later.record().trials[2], {"semseg": 3.0, "depth": 0.1})
    record = read_store(out)
    assert [(r.trial, r.budget) for r in record.trials] == [(0, ""), (1, "1.3xMTL"), (2, "1.3xMTL")]
    assert record.trials[2].metrics["test"] == {"semseg": 3.0, "depth": 0.1}
    # one objective under a budget, which is taken up anyway
    assert [later.objectives(name) for name in (FREE, BOUND)] == [2, 1]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.lr=0.5", "training.lr: 0.001 -> 0.5"),
        ("tasks.semseg.weight=3.0", "tasks.semseg.weight: 1.0 -> 3.0"),
        ("search.tau=[0.0, 0.5]", "search.space.tau: [0.2, 0.8] -> [0.0, 0.5]"),
        ("options.mtl.start=stl", "options.mtl.start: absent -> stl"),
    ],
)
def test_another_definition_is_refused_by_its_key(tmp_path, store, out, override, line) -> None:
    store.keep_result(result("stl"))
    store.close()
    other = tiny(tmp_path, override)
    before = (out / DATABASE).read_bytes()
    with pytest.raises(StudyRefusedError) as caught:
        open_store(other, folder=out, tasks=TASKS)
    assert f"\n  {line}\n" in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert (out / DATABASE).read_bytes() == before


def test_a_folder_holds_one_study(tmp_path, store, out) -> None:
    store.close()
    before = (out / DATABASE).read_bytes()
    with pytest.raises(StudyRefusedError, match=r"must hold study 'other', found 'tiny', whose"):
        open_store(tiny(tmp_path, "name=other"), folder=out, tasks=TASKS)
    assert (out / DATABASE).read_bytes() == before


def test_a_store_without_any_result_takes_a_new_definition(tmp_path, study, store, out) -> None:
    store.keep("data", {"sha256": "0" * 64})
    store.keep("runtime", {"precision": "fp32", "memory_format": "nchw"})
    store.close()
    begun = out / "baselines" / "stl-seed0"
    begun.mkdir(parents=True)
    (begun / "checkpoint-1.safetensors").write_text("hours of work")
    other = tiny(tmp_path, "training.precision=bf16", "tasks.semseg.weight=3.0")
    taken = open_store(other, folder=out, tasks=TASKS[:1])
    assert taken.attribute("definition") == other.definition()
    assert taken.attribute("fingerprint") == other.fingerprint
    # What was chosen with the old definition is chosen anew.
    assert not taken.attribute("runtime")
    assert not taken.attribute("data")
    assert [task["name"] for task in taken.attribute("tasks")] == [TASKS[0].name]
    aside = out / f"unfinished-{study.fingerprint}" / "baselines" / "stl-seed0"
    assert (aside / "checkpoint-1.safetensors").read_text() == "hours of work"
    assert not begun.exists()
    taken.keep_result(result("stl"))
    taken.close()
    with pytest.raises(StudyRefusedError, match="made with another definition"):
        open_store(study, folder=out, tasks=TASKS)


@pytest.mark.parametrize("override", ["seed=7", 'methods=["stl"]', "report_frames=0"])
def test_what_changes_no_result_is_let_in(tmp_path, study, out, override) -> None:
    store = open_store(tiny(tmp_path, override), folder=out, tasks=TASKS)
    assert store.attribute("fingerprint") == study.fingerprint
    assert store.attribute("definition") == study.definition()


@pytest.fixture
def older(store, out):
    """A store from before there was `search.scalar_trials`, with options that are the default."""
    definition = store.attribute("definition")
    del definition["search"]["scalar_trials"]
    definition["options"] = {"interrogate": {"align": False}}
    store.keep("definition", definition)
    store.keep("fingerprint", "of it")
    store.keep_result(result("stl"))
    ended(store)
    return out


def open_checked(study, folder) -> Store:
    """Open a store as a run does, which knows of methods."""
    return open_store(
        check_study(study),
        folder=folder,
        tasks=TASKS,
        complete=check_study,
        binding=binding_methods,
    )


def test_an_option_that_came_later_had_its_default(study, older) -> None:
    store = open_checked(study, older)
    assert store.attribute("fingerprint") == study.fingerprint
    assert store.attribute("definition") == study.definition()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("search.scalar_trials=7", "search.scalar_trials: 10 -> 7"),
        ("interrogate.align=true", "options.interrogate.align: absent -> True"),
    ],
)
def test_an_option_that_came_later_and_is_used_is_refused(tmp_path, older, override, line) -> None:
    other = tiny(tmp_path, override)
    with pytest.raises(StudyRefusedError) as caught:
        open_checked(other, older)
    assert f"\n  {line}\n" in str(caught.value)


def test_options_bind_a_store_that_holds_results_of_their_method(tmp_path, older) -> None:
    other = tiny(tmp_path, "one_shot.patterns=7", "options.mtl.training.lr=0.5")
    store = open_checked(other, older)
    assert store.attribute("fingerprint") == check_study(other).fingerprint
    store.keep_result(result("one_shot", part="supernet"))
    with pytest.raises(StudyRefusedError, match=r"\n  options\.one_shot\.patterns: 7 -> 8\n"):
        open_checked(tiny(tmp_path, "one_shot.patterns=8"), older)


def test_results_of_another_version_are_refused(study, store, out) -> None:
    store.keep_result(result("stl"))
    definition = store.attribute("definition") | {"results_version": 1, "gone": 3}
    del definition["search"]["scalar_trials"]
    store.keep("definition", definition)
    store.keep("fingerprint", "of it")
    with pytest.raises(StudyRefusedError) as caught:
        open_store(study, folder=out, tasks=TASKS)
    for line in ("results_version: 1 -> 4", "gone: 3 -> absent"):
        assert f"\n  {line}\n" in str(caught.value)


@pytest.mark.parametrize("version", [1, 2, 4])
def test_a_store_of_another_form_is_refused_in_one_sentence(study, store, out, version) -> None:
    store.keep("format", version)
    for call in (lambda: read_store(out), lambda: open_store(study, folder=out, tasks=TASKS)):
        with pytest.raises(StudyRefusedError, match=r"another version of gatesearch") as caught:
            call()
        assert f"(store format {version}, this version reads 3)" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_store(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"no store in .*absent; run the study first"):
        read_store(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("kind", ["not a database", "cut short", "overwritten inside"])
def test_a_damaged_database_is_refused_and_left(out, study, kind) -> None:
    path = out / DATABASE
    data = path.read_bytes()
    bad = {
        "not a database": b"precious notes" * 400,
        "cut short": data[: len(data) // 2],
        "overwritten inside": data[:4096] + b"\xa5" * 8192 + data[12288:],
    }[kind]
    path.write_bytes(bad)
    for call in (lambda: read_store(out), lambda: open_store(study, folder=out, tasks=TASKS)):
        with pytest.raises(StudyRefusedError, match=r"study\.db"):
            call()
        assert path.read_bytes() == bad


def test_a_store_that_was_never_set_up_is_refused(tmp_path, out) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(out / DATABASE)) as database:
        database.execute("delete from study_user_attributes where key = 'definition'")
        database.commit()
    with pytest.raises(StudyRefusedError, match="'definition' is missing"):
        read_store(out)


def test_a_dashboard_shows_names_attributes_and_the_front(store, out) -> None:
    from optuna.storages import RDBStorage
    from optuna_dashboard import wsgi

    for gain in (1.0, 3.0):
        ended(store, gain)
    ended(store, budget="1.3xMTL")
    storage = RDBStorage(f"sqlite:///{out / DATABASE}")
    application = wsgi(storage)

    def get(path):
        environment = {"PATH_INFO": path}
        setup_testing_defaults(environment)
        return json.loads(b"".join(application(environment, lambda *told: None)))

    found = get("/api/studies")["study_summaries"]
    assert [study["study_name"] for study in found] == ["tiny", f"tiny {FREE}", f"tiny {BOUND}"]
    shown = get("/api/studies/2")
    assert shown["objective_names"] == ["delta_mtl", "gflops"]
    assert [trial["number"] for trial in shown["best_trials"]] == [1]
    attributes = {item["key"]: item["value"] for item in shown["trials"][1]["user_attrs"]}
    assert attributes["trial"] == "1"
    assert json.loads(attributes["validation"]) == {"semseg": 21.0, "depth": 0.5}
    storage.remove_session()
    storage.engine.dispose()
