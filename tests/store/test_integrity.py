"""Whatever is changed in a database is noticed, and the last backup comes back.

`GATESEARCH_FLIPS=2000` flips as many bits of a database, one at a time.
"""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from random import Random

import optuna
import pytest

from gatesearch.errors import StudyRefusedError
from gatesearch.measures import Gain
from gatesearch.store.backup import DATABASE, back_up, damage, last_backup, restore
from gatesearch.store.integrity import is_sealed, seal, unseal
from gatesearch.store.opening import open_store, read_store
from gatesearch.store.optuna_trials import GAIN_AND_COST
from gatesearch.store.patterns import keep_pattern
from tests.search.tiny import tiny
from tests.store.test_store import FREE, TASKS, begun, ended, result

FLIPS = int(os.environ.get("GATESEARCH_FLIPS", "150"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with everything that one can hold, backed up."""
    folder = tmp_path_factory.mktemp("finished")
    store = open_store(tiny(folder), folder=folder / "out", tasks=TASKS)
    store.keep("data", {"pack": "scenes", "sha256": "0" * 64})
    store.keep("runtime", {"precision": "fp32", "memory_format": "nchw"})
    for method in ("stl", "mtl"):
        store.keep_result(result(method, curves={"loss": [float("nan"), 0.5]}))
    store.keep_result(result("one_shot", part="supernet"))
    trials = [ended(store), ended(store, budget="1.3xMTL"), ended(store)]
    store.finish(begun(store), result(trial=3, state="failed", reason="why"), None)
    store.finish(begun(store), result(trial=4, state="stopped"), None)
    begun(store)  # cut off
    store.keep_test(trials[0], {"semseg": 18.0, "depth": float("nan")})
    patterns = store.patterns("one_shot", 0)
    for _ in range(2):
        trial = patterns.ask()
        trial.suggest_float("share.depth", 0.0, 1.0)
        trial.suggest_categorical("kind", ["a", "b"])
        keep_pattern(patterns, trial, {"semseg": 3.0, "depth": float("nan")}, Gain(1.0), 2.0)
    patterns.ask()  # cut off
    store.close()
    back_up(folder / "out")
    return folder / "out"


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def change(out, *statements) -> None:
    with closing(sqlite3.connect(out / DATABASE)) as database, database:
        for statement in statements:
            assert database.execute(statement).rowcount


def of_trial(number: int) -> str:
    return (
        "trial_id = (SELECT trial_id FROM trial_user_attributes"
        f" WHERE key = 'trial' AND value_json = '{number}')"
    )


PATTERN = "trial_id = (SELECT min(trial_id) FROM trial_user_attributes WHERE key = 'metrics')"
SEARCH = "study_id = (SELECT study_id FROM studies WHERE study_name = 'tiny interrogate')"

CHANGES = {
    "a digit of a baseline": "UPDATE study_user_attributes SET value_json ="
    " replace(value_json, '20.0', '21.0') WHERE key LIKE 'baseline/stl/%'",
    "the name of a baseline": "UPDATE study_user_attributes SET key = 'baseline/stk/uniform/0'"
    " WHERE key = 'baseline/stl/uniform/0'",
    "an unknown attribute": "UPDATE study_user_attributes SET key = 'dbta' WHERE key = 'data'",
    "an attribute in place of another": "UPDATE study_user_attributes SET value_json = (SELECT"
    " value_json FROM study_user_attributes WHERE key = 'data') WHERE key = 'runtime'",
    "the definition": "UPDATE study_user_attributes SET value_json ="
    " replace(value_json, 'cnn4', 'cnn5') WHERE key = 'definition'",
    "test figures": "UPDATE study_user_attributes SET value_json ="
    " replace(value_json, '18.0', '19.0') WHERE key = 'test/0'",
    "the number of test figures": "UPDATE study_user_attributes SET key = 'test/1'"
    " WHERE key = 'test/0'",
    "the identity": "UPDATE study_user_attributes SET value_json = replace(replace(value_json,"
    " '1', '2'), '3', '4') WHERE key = 'identity'",
    "JSON": "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'tasks'",
    "deep JSON": "UPDATE study_user_attributes SET value_json ="
    " replace(hex(zeroblob(50000)), '00', '[') WHERE key = 'tasks'",
    "a number for JSON": "UPDATE study_user_attributes SET value_json = 7 WHERE key = 'tasks'",
    "nothing for JSON": "UPDATE study_user_attributes SET value_json = NULL WHERE key = 'tasks'",
    "bytes for JSON": "UPDATE study_user_attributes SET value_json = x'ff' WHERE key = 'tasks'",
    "a result": "UPDATE trial_user_attributes SET value_json ="
    f" replace(value_json, '1.5', '1.4') WHERE key = 'result' AND {of_trial(0)}",
    "validation": "UPDATE trial_user_attributes SET value_json ="
    f" replace(value_json, '0.5', '0.4') WHERE key = 'validation' AND {of_trial(0)}",
    "a number": f"UPDATE trial_user_attributes SET value_json = '7' WHERE key = 'trial' AND"
    f" {of_trial(0)}",
    "results of two trials": "UPDATE trial_user_attributes SET value_json = (SELECT value_json"
    f" FROM trial_user_attributes WHERE key = 'result' AND {of_trial(2)})"
    f" WHERE key = 'result' AND {of_trial(0)}",
    "an attribute of a trial": f"UPDATE trial_user_attributes SET key = 'resulu' WHERE"
    f" key = 'result' AND {of_trial(0)}",
    "a missing attribute": f"DELETE FROM trial_user_attributes WHERE key = 'begun' AND"
    f" {of_trial(0)}",
    "a parameter": f"UPDATE trial_params SET param_value = 0.25 WHERE {of_trial(0)}",
    "the name of a parameter": f"UPDATE trial_params SET param_name = 'y' WHERE {of_trial(0)}",
    "a distribution": "UPDATE trial_params SET distribution_json = replace(distribution_json,"
    f" '1.0', '2.0') WHERE {of_trial(0)}",
    "a missing parameter": f"DELETE FROM trial_params WHERE {of_trial(0)}",
    "a parameter of one that was cut off": "UPDATE trial_params SET param_value = 0.25"
    f" WHERE {of_trial(5)}",
    "a value": f"UPDATE trial_values SET value = 9.0 WHERE objective = 0 AND {of_trial(0)}",
    "an infinite value": f"UPDATE trial_values SET value_type = 'INF_POS' WHERE {of_trial(0)}",
    "a missing value": f"DELETE FROM trial_values WHERE objective = 1 AND {of_trial(0)}",
    "a state": f"UPDATE trials SET state = 'FAIL' WHERE {of_trial(0)}",
    "an unknown state": f"UPDATE trials SET state = 'COMPLETF' WHERE {of_trial(0)}",
    "a failed trial": f"UPDATE trials SET state = 'PRUNED' WHERE {of_trial(3)}",
    "a finished one that is to run": f"UPDATE trials SET state = 'RUNNING' WHERE {of_trial(0)}",
    "a time": f"UPDATE trials SET datetime_start = '2026-1?-01' WHERE {of_trial(0)}",
    "an index": f"UPDATE trials SET number = 6 WHERE {of_trial(0)}",
    "a missing trial": f"DELETE FROM trials WHERE {of_trial(0)}",
    "a trial in another search": "UPDATE trials SET number = 1, study_id = (SELECT study_id FROM"
    f" studies WHERE study_name LIKE '%1.3xMTL') WHERE {of_trial(5)}",
    "a search": "UPDATE studies SET study_name = 'tiny interrogatf' WHERE"
    " study_name = 'tiny interrogate'",
    "a missing search": "DELETE FROM studies WHERE study_name = 'tiny interrogate'",
    "the patterns": "UPDATE studies SET study_name = 'tiny patterns one_shot seed 1' WHERE"
    " study_name LIKE 'tiny patterns%'",
    "a direction": f"UPDATE study_directions SET direction = 'MINIMIZE' WHERE {SEARCH}",
    "a missing direction": f"DELETE FROM study_directions WHERE objective = 1 AND {SEARCH}",
    "the name of an objective": "UPDATE study_system_attributes SET value_json ="
    f" '[\"delta_mtl\", \"gflopt\"]' WHERE {SEARCH}",
    "a pattern": "UPDATE trial_user_attributes SET value_json = replace(value_json, '3.0', '4.0')"
    f" WHERE {PATTERN}",
    "a parameter of a pattern": "UPDATE trial_params SET param_value = 0.25"
    f" WHERE param_name = 'share.depth' AND {PATTERN}",
    "a choice of a pattern": "UPDATE trial_params SET param_value = 1 - param_value"
    f" WHERE param_name = 'kind' AND {PATTERN}",
    "a value of a pattern": f"UPDATE trial_values SET value = 9.0 WHERE {PATTERN}",
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_and_the_backup_comes_back(out, tmp_path, what) -> None:
    truth = repr(read_store(out))
    change(out, CHANGES[what])
    bad = (out / DATABASE).read_bytes()
    for read in (read_store, lambda out: open_store(tiny(tmp_path), folder=out, tasks=TASKS)):
        with pytest.raises(StudyRefusedError, match="gatesearch status") as caught:
            read(out)
        assert str(caught.value).startswith(f"{out / DATABASE} is damaged (")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700
        assert (out / DATABASE).read_bytes() == bad
    with pytest.raises(StudyRefusedError):
        back_up(out)  # a damaged database takes no backup's place
    assert restore(out).backup == last_backup(out)
    assert repr(read_store(out)) == truth


def test_a_damaged_backup_is_no_backup(out) -> None:
    shutil.copy(out / f"{DATABASE}.backup", out / f"{DATABASE}.backup.1")
    with closing(sqlite3.connect(out / f"{DATABASE}.backup")) as database, database:
        database.execute(CHANGES["a value"])
    assert last_backup(out).path.name == f"{DATABASE}.backup.1"


def dumped(path) -> list:
    """All that a record, or what a search draws from it, is read from."""
    tables = (
        "studies", "study_directions", "study_user_attributes", "trials", "trial_params",
        "trial_values", "trial_user_attributes", "trial_system_attributes",
    )  # fmt: skip
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        rows = {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
        # Times are shown by Optuna's dashboard alone.
        rows["trials"] = [row[:4] for row in rows["trials"]]
        return [(table, sorted(of, key=repr)) for table, of in rows.items()]


def test_no_flipped_bit_is_taken_as_truth(out) -> None:
    path, random = out / DATABASE, Random(FLIPS)
    data, truth = path.read_bytes(), dumped(path)
    noticed = 0
    for _ in range(FLIPS):
        flipped = bytearray(data)
        flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        if damage(path) is None:
            assert dumped(path) == truth
        else:
            noticed += 1
    assert noticed > FLIPS / 20


def test_a_trial_killed_while_its_result_is_written_goes_on(out, tmp_path) -> None:
    store = open_store(tiny(tmp_path), folder=out, tasks=TASKS)
    (trial,) = store.unfinished()

    def killed(*arguments, **options) -> None:
        raise KeyboardInterrupt

    for name in ("set_trial_user_attr", "set_trial_state_values"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(store.storage, name, killed)
            with pytest.raises(KeyboardInterrupt):
                store.finish(trial, result(trial=5), [1.0, 1.5])
        assert damage(out / DATABASE) is None
    again = open_store(tiny(tmp_path), folder=out, tasks=TASKS)
    assert again.unfinished() == [trial]
    again.finish(trial, result(trial=5, state="failed", reason="x"), None)
    assert read_store(out).trials[-1].reason == "x"


def test_a_search_killed_before_it_was_listed_goes_on(out, tmp_path) -> None:
    store = open_store(tiny(tmp_path), folder=out, tasks=TASKS)

    def killed(*arguments) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            store.open_search("mtan", GAIN_AND_COST)
    assert damage(out / DATABASE) is None
    again = open_store(tiny(tmp_path), folder=out, tasks=TASKS)
    again.open_search("mtan", GAIN_AND_COST)
    assert again.attribute("searches")["mtan"] == 2


def test_notes_on_the_dashboard_are_no_damage(out, tmp_path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / DATABASE}")
    study = optuna.load_study(study_name=f"tiny {FREE}", storage=storage)
    storage.set_study_system_attr(study._study_id, "dashboard:note_ver", 1)
    storage.remove_session()
    storage.engine.dispose()
    change(
        out,
        "INSERT INTO trial_system_attributes (trial_id, key, value_json)"
        " SELECT trial_id, 'dashboard:1:note_str', '\"good\"' FROM trials",
    )
    assert damage(out / DATABASE) is None
    assert len(read_store(out).trials) == 5


def test_another_study_in_the_same_file_is_refused(out, tmp_path) -> None:
    before = (out / DATABASE).read_bytes()
    with pytest.raises(StudyRefusedError, match="must hold study 'other', found 'tiny'"):
        open_store(tiny(tmp_path).model_copy(update={"name": "other"}), folder=out, tasks=TASKS)
    assert (out / DATABASE).read_bytes() == before


def test_results_that_the_database_lacks_are_listed(out) -> None:
    for number in (0, 5, 6, 12):
        (out / "trials" / f"{number:04d}").mkdir(parents=True)
        if number != 6:
            (out / "trials" / f"{number:04d}" / "result.json").touch()
    (out / "trials" / "notes").mkdir()
    assert read_store(out).untaken == (5, 12)


def test_a_seal_is_of_name_and_value() -> None:
    sealed = seal("a", [1, {"b": float("inf")}])
    assert is_sealed(json.loads(json.dumps(sealed)))
    assert unseal("a", sealed) == [1, {"b": float("inf")}]
    for name, stored in (("b", sealed), ("a", sealed | {"value": 2}), ("a", 1), ("a", None)):
        with pytest.raises(ValueError, match=f"attribute '{name}'"):
            unseal(name, stored)


def test_a_change_on_a_server_is_refused(tmp_path, postgres_url) -> None:
    study, folder = tiny(tmp_path).model_copy(update={"name": "sealed"}), tmp_path / "out"

    def opened():
        return open_store(study, folder=folder, tasks=TASKS, storage=postgres_url)

    def read():
        return read_store(folder, storage=postgres_url, name="sealed")

    store = opened()
    store.keep_result(result("stl", curves={"loss": [float("nan")]}))
    ended(store, gain=1.0)
    again = opened()
    assert len(again.record().trials) == len(read().trials) == 1
    again.close()
    trial = (
        "objective = 0 AND trial_id IN (SELECT trial_id FROM trials JOIN studies USING (study_id)"
        " WHERE study_name LIKE 'sealed %%')"
    )
    for change in (
        f"UPDATE trial_values SET value = 9.0 WHERE {trial}",
        "UPDATE studies SET study_name = 'sealed x' WHERE study_name = 'sealed interrogate'",
    ):
        with store.storage.engine.begin() as connection:
            assert connection.exec_driver_sql(change).rowcount == 1
        for call in (opened, read):
            with pytest.raises(StudyRefusedError, match=r"the store on .* is damaged") as told:
                call()
            assert "\n" not in str(told.value)
        with store.storage.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE trial_values SET value = 1.0 WHERE {trial}")
    store.close()
