"""Stores of gatesearch 0.1.0 are brought to this version's form, whatever state they are in.

`gatesearch_0_1_0.zip` holds such a store, made with gatesearch 0.1.0 by the script `made_by.sh` in
it: a study `tiny` with the baselines stl and mtl, mtl under the weighting `scalar` (trials 0 and
1), a trial without and one under a budget (2 and 3), a one-shot supernet with six patterns and two
networks cut from it (4 and 5), and a trial that was cut off in training (6). Beside it are the
study's file, the data, in `report.json` what `gatesearch report --json` of 0.1.0 printed, and in
`outputs.json` what its exported networks compute. Left out are backups, lock, log and reports; the
database was made small by VACUUM.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pytest

from gatesearch.errors import StudyRefusedError
from gatesearch.execution.jobs import read_result, read_spec
from gatesearch.export import read_model
from gatesearch.methods import binding_methods, check_study
from gatesearch.results import FORMAT, Result
from gatesearch.search.setup import task_infos
from gatesearch.store.backup import DATABASE
from gatesearch.store.integrity import seal
from gatesearch.store.opening import open_store, read_store
from gatesearch.store.optuna_trials import GAIN, GAIN_AND_COST
from gatesearch.store.store import Store
from gatesearch.store.upgrade import OLD_COPY, upgradable, upgrade
from gatesearch.study import load_study
from gatesearch.summary import summary
from tests.cli.conftest import cli  # noqa: F401 - a fixture

ZIP = Path(__file__).with_name("gatesearch_0_1_0.zip")
CUT_OFF = 6
MOVED = {
    "warmups/seed0": "starts/interrogate-warm-up-seed0",
    "supernet_warmups/seed0": "starts/one_shot-warm-up-seed0",
    "supernets/seed0": "starts/one_shot-supernet-seed0",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    zipfile.ZipFile(ZIP).extractall(folder)
    return folder


@pytest.fixture
def folder(unpacked, tmp_path) -> Path:
    """The folder in which gatesearch 0.1.0 ran."""
    return shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def out(folder) -> Path:
    """The old store."""
    return folder / "runs" / "tiny"


@pytest.fixture
def before(unpacked) -> Path:
    """The old store, only to be read."""
    return unpacked / "runs" / "tiny"


@pytest.fixture(scope="module")
def upgraded(unpacked, tmp_path_factory) -> Path:
    """The store after its upgrade; only read it."""
    out = shutil.copytree(unpacked / "runs" / "tiny", tmp_path_factory.mktemp("new") / "tiny")
    upgrade(out)
    return out


def reopened(folder) -> Store:
    """The store as a run opens it, with the study's file as it was written for 0.1.0."""
    study = check_study(load_study(folder / "tiny.toml"))
    return open_store(
        study, folder=folder / "runs" / "tiny", tasks=task_infos(study), complete=check_study,
        binding=binding_methods,
    )  # fmt: skip


def rows(path, query) -> list[tuple]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def change(path, *statements) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def contents(out) -> dict[str, object]:
    """Every file's bytes, of a database what it holds; but for lock files, which are empty."""

    def of(path):
        if path.name == DATABASE:
            with closing(sqlite3.connect(path)) as database:
                return list(database.iterdump())
        return path.read_bytes()

    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(out)): of(path) for path in paths}


def of_trial(number) -> str:
    """Where clause of attributes of a trial."""
    return (
        "trial_id IN (SELECT trial_id FROM trial_user_attributes"
        f" WHERE key = 'trial' AND value_json = '{number}')"
    )


def with_details(printed):
    """What 0.1.0 printed, with the keys for figures that came later, of which it had none."""
    points = {
        name: [{**point, "details": {}} for point in printed[name]]
        for name in ("front", "baselines")
    }
    return printed | points | {"controls": [], "comparisons": []}


def untold(number) -> tuple[str, str]:
    """Statements after which a trial has no result in the database."""
    return (
        f"UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE {of_trial(number)}",
        "DELETE FROM trial_user_attributes WHERE key IN ('result', 'validation') AND "
        + of_trial(number),
    )


class TestWhatIsKept:
    def test_the_report_is_that_of_the_old_version(self, upgraded, unpacked) -> None:
        record = read_store(upgraded)
        printed = with_details(json.loads((unpacked / "report.json").read_text()))
        now = summary(record, Path("reports/tiny.pdf"))
        fronts = now.pop("fronts")  # old versions had the front of all trials alone
        assert fronts.keys() == {"interrogate", "one_shot"}
        steered = now.pop("controllability")  # nor how well preferences are followed
        assert [(row["method"], row["n"]) for row in steered] == [("one_shot", 2)]
        assert now == printed
        assert printed["trials"] == {"complete": 4, "failed": 0, "pruned": 0}

    def test_every_result_is_equal_but_for_what_is_called_otherwise(self, upgraded, before) -> None:
        old = [
            json.loads(text)
            for kind in ("study", "trial")
            for (text,) in rows(
                before / DATABASE,
                f"SELECT value_json FROM {kind}_user_attributes"
                " WHERE value_json LIKE '%\"format\": %'",
            )
        ]
        results = (
            "SELECT value_json FROM study_user_attributes"
            " WHERE key LIKE 'baseline/%' OR key LIKE 'start/%' ORDER BY study_user_attribute_id",
            "SELECT value_json FROM trial_user_attributes WHERE key = 'result' ORDER BY trial_id",
        )
        new, of_trials = (
            [json.loads(text) for (text,) in rows(upgraded / DATABASE, query)] for query in results
        )
        new = [item["value"] for item in new] + [json.loads(item["json"]) for item in of_trials]
        assert len(old) == 3 + 3 + 6
        called = {}
        for one, other in zip(old, new, strict=True):
            role, part = one.pop("role"), other.pop("part")
            assert (one.pop("format"), other.pop("format")) == (4, FORMAT)
            assert other.pop("files") == {}, "networks of 0.1.0 have no checksums"
            assert other.pop("details") == {}, "results of 0.1.0 have no further figures"
            later = [other.pop(name) for name in ("control", "of", "width", "gates", "task_gflops")]
            assert later == ["", None, 1.0, {}, {}], "and are of no control"
            methods = one.pop("method"), other.pop("method")
            called[role, one["trial"] in (4, 5)] = (part, *methods)
            assert one == other
        assert called == {
            # Baselines, trials; the last is mtl's under `scalar` or InterroGate's.
            ("network", False): ("", "interrogate", "interrogate"),
            ("network", True): ("", "interrogate", "one_shot"),
            ("warmup", False): ("warm-up", "interrogate", "interrogate"),
            ("supernet_warmup", False): ("warm-up", "interrogate", "one_shot"),
            ("supernet", False): ("supernet", "interrogate", "one_shot"),
        }

    def test_searches_are_named_by_method_and_budget(self, folder) -> None:
        upgrade(folder / "runs" / "tiny")
        store = reopened(folder)
        numbers = {name: [r.trial for r in store.results(name)] for name in store.searches}
        assert numbers == {
            "interrogate": [2],
            "interrogate 1.3xMTL": [3],
            "one_shot": [4, 5],
            "scalar mtl seed 0": [0, 1],
        }
        two, one = len(GAIN_AND_COST), len(GAIN)
        assert [store.objectives(name) for name in numbers] == [two, one, two, one]
        assert len(store.patterns("one_shot", 0).trials) == 6
        assert {(r.method, r.part) for r in store.record().starts} == {
            ("interrogate", "warm-up"), ("one_shot", "warm-up"), ("one_shot", "supernet"),
        }  # fmt: skip

    def test_optuna_finds_its_trials_as_they_were(self, upgraded, before) -> None:
        def trials(out):
            storage = optuna.storages.RDBStorage(f"sqlite:///{out / DATABASE}")
            found = {
                trial._trial_id: (
                    trial.state, trial.values, trial.params, trial.distributions,
                    trial.system_attrs, trial.datetime_start, trial.datetime_complete,
                    {k: trial.user_attrs.get(k) for k in ("trial", "validation")},
                )
                for study in optuna.get_all_study_names(storage)
                for trial in optuna.load_study(study_name=study, storage=storage).trials
            }  # fmt: skip
            metrics = {
                name: optuna.load_study(study_name=name, storage=storage).metric_names
                for name in optuna.get_all_study_names(storage)
            }
            storage.remove_session()
            storage.engine.dispose()
            return found, metrics

        (old, _), (new, metrics) = trials(before), trials(upgraded)
        assert new == old
        assert metrics["tiny interrogate"] == ["delta_mtl", "gflops"]
        assert metrics["tiny interrogate 1.3xMTL"] == ["delta_mtl"]

    def test_networks_are_moved_and_not_touched(self, upgraded, before) -> None:
        networks = {
            str(path.relative_to(before)): path.read_bytes() for path in before.rglob("model.*")
        }
        assert len(networks) == 3 + 3 + 6 + 4  # baselines, starts, trials; four with a description
        for path, data in networks.items():
            place, _, name = path.rpartition("/")
            assert (upgraded / MOVED.get(place, place) / name).read_bytes() == data
        assert not any((upgraded / old).parent.exists() for old in MOVED)

    def test_the_old_database_is_kept(self, upgraded, before) -> None:
        assert (upgraded / OLD_COPY).read_bytes() == (before / DATABASE).read_bytes()
        assert not list(upgraded.glob(".*"))

    @pytest.mark.parametrize(
        "place", ["baselines/stl-seed0", "baselines/mtl-seed0", *MOVED.values()]
    )
    def test_files_of_a_training_are_read_again(self, upgraded, place) -> None:
        job = read_spec(upgraded / place / "spec.json")
        record = read_store(upgraded)
        kept = read_result(job)
        (stored,) = [
            r for r in (*record.baselines, *record.starts)
            if (r.method, r.part, r.weighting) == (kept.method, kept.part, "uniform")
        ]  # fmt: skip
        # Test figures are in the database alone.
        assert kept.metrics.get("validation") == stored.metrics.get("validation")
        assert (kept.curves, kept.gflops) == (stored.curves, stored.gflops)


class TestWhatWasCutOff:
    def test_a_trial_begins_anew_under_its_number(self, folder, before) -> None:
        trial = before / "trials" / f"{CUT_OFF:04d}"
        assert list(trial.glob("checkpoint-*"))
        upgrade(folder / "runs" / "tiny")
        (pending,) = reopened(folder).unfinished()
        assert (pending.search, pending.number) == ("interrogate", CUT_OFF)
        assert set(pending.params) == {"lambda_s", "tau.semseg", "tau.depth"}
        left = folder / "runs" / "tiny" / "trials" / f"{CUT_OFF:04d}"
        assert [path.name for path in left.iterdir() if path.name != "lock"] == ["spec.json"]

    def test_a_result_that_was_not_told_yet_is_kept(self, out) -> None:
        expected = read_result_of_trial(out, 3)
        change(out / DATABASE, *untold(3))
        upgrade(out)
        job = read_spec(out / "trials" / "0003" / "spec.json")
        assert (job.search, job.objectives, job.spec.trial) == ("interrogate 1.3xMTL", 1, 3)
        assert read_result(job) == expected

    def test_a_trial_of_which_no_backup_knows_is_read_from_its_files(self, out) -> None:
        expected = read_result_of_trial(out, 5)
        change(
            out / DATABASE,
            f"DELETE FROM trials WHERE {of_trial(5)}",
            f"DELETE FROM trial_user_attributes WHERE {of_trial(5)}",
        )
        upgrade(out)
        job = read_spec(out / "trials" / "0005" / "spec.json")
        assert (job.search, job.objectives) == ("one_shot", 2)
        assert (job.spec.method, job.start.method, job.start.part) == (
            "one_shot", "one_shot", "supernet",
        )  # fmt: skip
        assert read_result(job) == expected

    def test_baselines_and_starts_that_were_not_told_are_trained_again(self, out) -> None:
        change(
            out / DATABASE,
            "DELETE FROM study_user_attributes WHERE key IN ('baseline/mtl/uniform/0', 'warmup/0')",
        )
        upgrade(out)
        job = read_spec(out / "baselines" / "mtl-seed0" / "spec.json")
        assert read_result(job) is None
        assert not (out / MOVED["warmups/seed0"]).exists()
        assert not (out / "warmups").exists()

    @pytest.mark.parametrize("has_files", [True, False])
    def test_a_search_whose_only_trial_was_cut_off(self, folder, out, has_files) -> None:
        change(
            out / DATABASE,
            f"UPDATE trials SET number = 0 WHERE {of_trial(CUT_OFF)}",
            f"DELETE FROM trials WHERE {of_trial(2)}",
            f"DELETE FROM trial_user_attributes WHERE {of_trial(2)}",
        )
        if not has_files:
            shutil.rmtree(out / "trials" / f"{CUT_OFF:04d}")
        upgrade(out)
        store = reopened(folder)
        begun = [(trial.search, trial.number) for trial in store.unfinished()]
        # Without files nothing of it was trained, and its number is free.
        assert begun == ([("interrogate", CUT_OFF)] if has_files else [])
        assert max(store.numbers) == (CUT_OFF if has_files else CUT_OFF - 1)

    def test_a_damaged_file_of_a_trial_is_passed_over(self, folder, out) -> None:
        trial = out / "trials" / f"{CUT_OFF:04d}"
        (trial / "spec.json").write_text('{"candidate": {}}')
        (out / "baselines" / "mtl-seed0" / "result.json").write_text("{")
        upgrade(out)
        assert [trial.number for trial in reopened(folder).unfinished()] == [CUT_OFF]
        with pytest.raises(StudyRefusedError, match=r"spec\.json is damaged.*move it away"):
            read_spec(trial / "spec.json")


def read_result_of_trial(out, number) -> Result:
    (text,) = rows(
        out / DATABASE,
        f"SELECT value_json FROM trial_user_attributes WHERE key = 'result' AND {of_trial(number)}",
    )[0]
    return Result.from_json(json.loads(text))


class TestTheUpgradeItself:
    def test_a_second_one_changes_nothing(self, out) -> None:
        upgrade(out)
        before = contents(out)
        upgrade(out)
        read_store(out)
        assert contents(out) == before

    def test_cut_off_at_any_step_it_is_completed_later(
        self, before, upgraded, tmp_path, monkeypatch
    ) -> None:
        expected = contents(upgraded)
        steps = {name: getattr(os, name) for name in ("replace", "unlink", "rename")}
        left = 0

        def counted(name):
            def step(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return steps[name](*arguments, **options)

            return step

        for allowed in range(100):
            out = shutil.copytree(before, tmp_path / f"{allowed}")
            (out / f".{DATABASE}.upgrade").write_bytes(b"half a database")
            (out / f".{DATABASE}.upgrade-journal").write_bytes(b"and its journal")
            (out / f".{OLD_COPY}").write_bytes(b"half a copy")
            left = allowed
            with monkeypatch.context() as patched:
                for name in steps:
                    patched.setattr(os, name, counted(name))
                try:
                    upgrade(out)
                except KeyboardInterrupt:
                    assert upgradable(out)
                else:
                    break
            upgrade(out)
            found = contents(out)
            # What a process that writes a file whole leaves where it is killed.
            assert {n: d for n, d in found.items() if not n.split("/")[-1].startswith(".")} == (
                expected
            )
        assert allowed > 15

    def test_a_backup_of_the_old_version_that_is_put_back_is_upgraded_too(self, out) -> None:
        old = (out / DATABASE).read_bytes()
        upgrade(out)
        before = contents(out)
        (out / DATABASE).write_bytes(old)
        upgrade(out)
        assert contents(out) == before

    def test_a_transaction_that_was_killed_is_taken_back_first(self, out, upgraded) -> None:
        writer = f"""
import os, sqlite3
database = sqlite3.connect({str(out / DATABASE)!r}, isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN")
database.execute("UPDATE trial_user_attributes SET value_json = hex(zeroblob(9999))")
os.kill(os.getpid(), {signal.SIGKILL:d})
"""
        subprocess.run([sys.executable, "-c", writer], check=False)
        assert (out / f"{DATABASE}-journal").stat().st_size
        upgrade(out)
        assert contents(out)[DATABASE] == contents(upgraded)[DATABASE]

    def test_stores_of_this_version_and_of_none_are_left(self, out, upgraded, tmp_path) -> None:
        before = contents(upgraded)
        upgrade(upgraded)
        assert contents(upgraded) == before
        nothing = tmp_path / "nothing"
        nothing.mkdir()
        upgrade(nothing)
        (nothing / DATABASE).touch()
        upgrade(nothing)
        assert not upgradable(nothing)
        # A first start that was killed has no definition yet.
        change(out / DATABASE, "DELETE FROM study_user_attributes WHERE key = 'definition'")
        upgrade(out)
        assert not upgradable(out)
        assert not (out / OLD_COPY).exists()

    def test_a_store_without_any_trial(self, folder, out) -> None:
        change(
            out / DATABASE,
            "DELETE FROM trials",
            "DELETE FROM trial_user_attributes",
            "DELETE FROM studies WHERE study_name <> 'tiny'",
        )
        shutil.rmtree(out / "trials")
        upgrade(out)
        store = reopened(folder)
        assert store.searches == {}
        assert [r.method for r in store.record().baselines] == ["stl", "mtl", "mtl"]

    def test_a_full_disk_leaves_the_store_as_it_was(self, out) -> None:
        before = contents(out)
        code = f"""
import resource
from pathlib import Path
from gatesearch.store.integrity import seal
from gatesearch.store.opening import read_store
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
read_store(Path({str(out)!r}))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "DataError" in done.stderr.splitlines()[-1]
        assert "is a store of gatesearch 0.1.0" in done.stderr
        kept = contents(out)
        kept.pop(f".{DATABASE}.upgrade", None)
        assert kept == before

    def test_a_damaged_database_is_refused_and_left(self, out) -> None:
        data = (out / DATABASE).read_bytes()
        for bad in (b"precious notes" * 400, data[: len(data) // 2]):
            (out / DATABASE).write_bytes(bad)
            with pytest.raises(StudyRefusedError, match=r"study\.db"):
                read_store(out)
            assert (out / DATABASE).read_bytes() == bad


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (
            "UPDATE study_user_attributes SET value_json = replace(value_json,"
            " '\"balance\"', '\"gone\": 3, \"balance\"') WHERE key = 'definition'",
            "unknown key 'gone'",
        ),
        (
            "UPDATE study_user_attributes SET value_json = replace(value_json,"
            ' \'"kind": "depth"\', \'"kind": "flow"\') WHERE key = \'definition\'',
            "'flow'",
        ),
        (
            "UPDATE study_user_attributes SET value_json = replace(value_json,"
            " '\"format\": 4', '\"format\": 3')",
            "a stored result must have format 4, 6, 7, 8 or 9, found 3",
        ),
    ],
    ids=["an unknown key", "an unknown task", "an older result"],
)
def test_what_no_0_1_0_wrote_is_refused_and_left(out, statement, what) -> None:
    change(out / DATABASE, statement)
    before = contents(out)
    with pytest.raises(StudyRefusedError) as caught:
        read_store(out)
    assert what in str(caught.value)
    kept = contents(out)
    kept.pop(f".{DATABASE}.upgrade", None)
    assert kept == before


def test_a_store_of_a_later_version_is_refused_in_one_sentence(cli, folder, out) -> None:  # noqa: F811
    upgrade(out)
    later = json.dumps(seal("format", 4))
    change(
        out / DATABASE,
        f"UPDATE study_user_attributes SET value_json = '{later}' WHERE key = 'format'",
    )
    for verb in ("report", "run"):
        data = ["--data", "data"] if verb == "run" else []
        done = cli(verb, "--study", "tiny.toml", *data)
        assert (done.returncode, done.stdout) == (4, "")
        assert len(done.stderr.splitlines()) == 1
        assert "(store format 4, this version reads 3)" in done.stderr


TRAINED = {"trial", "baseline"}


def trained(out) -> list[str]:
    """Trainings of which the log says that they have ended."""
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    events = [json.loads(line) for line in lines]
    return [event["message"].split(":")[0] for event in events if event["event"] in TRAINED]


@pytest.mark.slow("whole run")
class TestRuns:
    def test_a_run_goes_on_and_trains_nothing_again(self, cli, folder, out) -> None:  # noqa: F811
        def run(*options):
            done = cli("run", "--study", "tiny.toml", "--data", "data", "--json", *options)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        old = with_details(json.loads((folder / "report.json").read_text()))
        assert run("--n-trials", "1", "--weightings", "uniform,scalar")["front"] == old["front"]
        run("--n-trials", "1", "--budget", "1.3xMTL")
        run("--search", "one_shot", "--points", "2")
        assert trained(out) == []
        assert run("--n-trials", "2")["trials"]["complete"] == 5
        assert trained(out) == [f"trial {CUT_OFF}"]
        assert read_store(out).trials[-1].attempts == 1
        # The next ones of each search.
        run("--n-trials", "3")
        run("--search", "one_shot", "--points", "3")
        assert trained(out) == [f"trial {number}" for number in (6, 7, 8)]

    def test_baselines_are_taken_over_into_another_store(self, cli, folder, out) -> None:  # noqa: F811
        done = cli(
            *("run", "--study", "tiny.toml", "--data", "data", "--n-trials", "0"),
            *("--out", "other", "--reuse", "runs/tiny"),
        )
        assert done.returncode == 0, done.stderr
        assert trained(folder / "other") == ["stl, from runs/tiny", "mtl, from runs/tiny"]
        assert not upgradable(out)
        old, new = read_store(out), read_store(folder / "other")
        assert [r.metrics for r in new.baselines] == [r.metrics for r in old.baselines[:2]]

    def test_every_kept_network_is_exported_and_computes_the_same(self, cli, folder, out) -> None:  # noqa: F811
        record = read_store(out)
        networks = [r.name.removeprefix("trial ") for r in (*record.baselines, *record.trials)]
        assert networks == ["stl", "mtl", "mtl + scalar", "2", "3", "4", "5"]
        image = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16)).astype(np.float32)
        expected = json.loads((folder / "outputs.json").read_text())
        for network in networks:
            path = folder / f"{network}.safetensors"
            done = cli("export", "--study", "tiny.toml", "--trial", network, "--to", str(path))
            assert done.returncode == 0, done.stderr
            model = read_model(path)
            for task, scores in zip(model.card.tasks, model.run(image), strict=True):
                means = scores.mean((0, 2, 3))
                assert means == pytest.approx(expected[network][task], rel=1e-4, abs=1e-5)
