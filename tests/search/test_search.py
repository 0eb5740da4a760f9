"""The search alone: a store, and a made-up executor in place of trainings."""

import math
import shutil
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from sqlalchemy import event

from gatesearch.events import Log, NetworkTrained, Progress, Warned
from gatesearch.execution.jobs import RESULT, keep_result, read_result, read_spec
from gatesearch.methods import METHODS, Context, NetworkSpec, check_study
from gatesearch.methods.base import Method, NoOptions
from gatesearch.methods.mtl import MTL
from gatesearch.methods.space import Range
from gatesearch.results import Result
from gatesearch.search.controls import train_controls
from gatesearch.search.networks import Networks
from gatesearch.search.plans import SearchPlan, method_plan
from gatesearch.search.search import Search
from gatesearch.search.setup import task_infos
from gatesearch.store.backup import DATABASE
from gatesearch.store.opening import open_store
from gatesearch.store.store import Store
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import Runtime, TrainingError
from gatesearch.trials.early_stopping import COST, GAIN
from gatesearch.trials.kept_networks import MODEL, TENSORS
from tests.execution.fakes import FakeExecutor, job_of, pool_of, result_of
from tests.search.tiny import tiny

RUNTIME = {"precision": "fp32", "memory_format": "nchw"}
CPU = Runtime(device="cpu", **RUNTIME)
RANDOM = "search.sampler='random'"
# The order of a search with no network in it: what it starts from, and what it is compared with.
BASES = ["stl", "mtl"]


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A store as a run begins it; making one takes Optuna a while."""
    folder = tmp_path_factory.mktemp("stores")
    study = check_study(tiny(folder))
    open_store(study, folder=folder / "out", tasks=task_infos(study)).close()
    return folder / "out"


class StatusOf:
    """A status that writes no file."""

    def __init__(self) -> None:
        self.wanted: list[tuple[int, int]] = []
        self.of_controls: list[tuple[int, int]] = []
        self.known: list = []
        self.ends: list = []

    def baselines(self, done: int, wanted: int) -> None:
        self.wanted.append((done, wanted))

    def controls(self, done: int, wanted: int) -> None:
        self.of_controls.append((done, wanted))

    def search(self, known) -> None:
        self.known = list(known)

    def ended(self, trial) -> None:
        self.ends.append(trial)


@dataclass
class Running:
    """A search over a store, and all that it told."""

    search: Search
    executor: FakeExecutor
    store: Store
    study: Study
    status: StatusOf
    told: list = field(default_factory=list)
    changes: list = field(default_factory=list)

    @property
    def trained(self) -> list[str]:
        """Labels of what was trained, in order."""
        return [job.spec.label for job in self.executor.submitted]

    def plan(self, n_trials: int, method: str = "interrogate") -> SearchPlan:
        """The search of a method."""
        return method_plan(
            METHODS[method], self.search.networks.context, self.store,
            single_task=lambda: self.search.networks.known(NetworkSpec("stl", self.study.seed)),
            budgets=(), prefer={}, n_trials=n_trials, emit=self.told.append,
        )  # fmt: skip

    def tune(self, n_trials: int, method: str = "interrogate") -> list[Result]:
        """Bring the search of a method to so many trials; its results."""
        plan = self.plan(n_trials, method)
        for error in self.search.run_trials([plan]).values():
            raise error
        return self.store.results(plan.name)


def open_quickly(folder: Path, url: str = "") -> RDBStorage:
    """A database that is there already, without waiting for the disk."""
    storage = RDBStorage(
        f"sqlite:///{folder / DATABASE}", skip_compatibility_check=True, skip_table_creation=True
    )

    def hurry(connection, record) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    event.listen(storage.engine, "connect", hurry)
    return storage


@pytest.fixture
def opened(tmp_path, empty, monkeypatch) -> Callable[..., Running]:
    """Opens the store of a test, as another process does that goes on with it."""
    shutil.copytree(empty, tmp_path / "out")
    monkeypatch.setattr("gatesearch.store.opening.open_database", open_quickly)
    stores: list[Store] = []

    def open_(
        *overrides: str, train=result_of, held: bool = False, size: int = 1, bases: bool = True,
        stop=lambda: False,
    ) -> Running:  # fmt: skip
        for store in stores[1:]:
            store.close()
        study, out = check_study(tiny(tmp_path, *overrides)), tmp_path / "out"
        if not stores:
            stores.append(open_store(check_study(tiny(tmp_path)), folder=out, tasks=()))
            stores[0].keep_definition(study)
        store = open_store(study, folder=out, tasks=task_infos(study))
        store.keep("runtime", RUNTIME)
        stores.append(store)
        tasks = build_tasks(study.tasks)
        context = Context(study, tasks, None, None, None, CPU, {"sha256": "0" * 64})
        executor, told, changes = FakeExecutor(with_network(train)), [], []
        pool = pool_of(executor, size=size, told=told, stop=stop)
        status = StatusOf()
        if bases:
            known = {(r.method, r.seed) for r in store.bases}
            for spec in (NetworkSpec(method, study.seed) for method in BASES):
                if (spec.method, spec.seed) not in known:
                    store.keep_result(result_of(job_of(out, spec=spec)))
        networks = Networks(
            store, context, told.append, data=tmp_path / "data",
            changed=lambda: changes.append(1),
        )  # fmt: skip
        search = Search(networks, pool, status)
        running = Running(search, executor, store, study, status, told, changes)
        executor.held = held
        return running

    yield open_
    for store in stores:
        store.close()


def with_network(train):
    """Leave a file where a network would be."""

    def trained(job):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / MODEL).with_suffix(TENSORS).write_text(job.spec.label)
        return train(job)

    return trained


def gain_by(key: str) -> Callable:
    """Trainings whose mIoU is 20 plus a parameter, so that Δ_MTL rises with it."""

    def train(job):
        value = float(job.spec.params.get(key, 0.0))
        return result_of(job, validation={"semseg": 20.0 + value})

    return train


def test_baselines_come_first_and_once(opened) -> None:
    running = opened(bases=False)
    running.search.train_bases(BASES, seeds=[0])
    assert running.trained == ["stl", "mtl"]
    assert [r.method for r in running.store.bases] == ["stl", "mtl"]
    assert len(running.changes) == 2
    assert running.status.wanted == [(0, 2), (1, 2), (2, 2)]
    ended = [event for event in running.told if isinstance(event, NetworkTrained)]
    assert [(event.message.split(":")[0], event.trial) for event in ended] == [
        ("stl", False), ("mtl", False),
    ]  # fmt: skip
    again = opened(bases=False)
    again.search.train_bases(BASES, seeds=[0])
    assert again.trained == []
    assert again.status.wanted[0] == (2, 2)


def run_in_rounds(running: Running) -> list[list[str]]:
    """End jobs only when all that can begin have begun; the labels of each such round."""
    executor, rounds = running.executor, []
    executor.held = True

    def steered() -> bool:
        if executor.waiting:
            rounds.append(executor.waiting)
            for label in executor.waiting:
                executor.end(label)
        return False

    running.search.pool.stop = steered
    return rounds


def test_baselines_of_all_seeds_share_the_workers(opened) -> None:
    running = opened(size=6, bases=False)
    rounds = run_in_rounds(running)
    running.search.train_bases(BASES, seeds=[0, 1, 2])
    assert rounds == [["stl", "mtl", "stl, seed 1", "mtl, seed 1", "stl, seed 2", "mtl, seed 2"]]
    assert {(r.method, r.seed) for r in running.store.bases} == {
        (method, seed) for method in BASES for seed in (0, 1, 2)
    }
    assert running.status.wanted == [(done, 6) for done in range(7)]


def test_controls_of_all_searches_share_the_workers(opened) -> None:
    running = opened(RANDOM, size=4)
    methods = ["interrogate", "branch"]
    for method in methods:
        running.tune(1, method)
    rounds = run_in_rounds(running)
    train_controls(running.search, methods, (), seeds=[0], wanted=True, headroom=0)
    assert rounds == [
        [f"{kind} of trial {trial}, seed 0" for trial in (0, 1) for kind in ("mtl@B", "branch")]
    ]
    assert running.status.of_controls[-1] == (4, 4)


def test_what_starts_from_single_task_networks_waits_for_them(opened) -> None:
    overrides = ("options.mtl.start=stl",)
    running = opened(*overrides, size=2, held=True, bases=False)
    waited = []

    class Ending(FakeExecutor):
        def submit(self, job, emit):
            waited.append((job.spec.label, None if job.start is None else job.start.method))
            return super().submit(job, emit)

    running.search.pool.executor = Ending(with_network(result_of))
    running.search.train_bases(BASES, seeds=[0])
    assert waited == [("stl", None), ("mtl", "stl")]


def test_a_failed_baseline_is_told_and_tried_again(opened) -> None:
    def fail(job):
        failed = job.spec.method == "mtl"
        return (
            result_of(job, state="failed", reason="nan", metrics={}) if failed else result_of(job)
        )

    running = opened(train=fail, bases=False)
    running.search.train_bases(BASES, seeds=[0])
    assert Warned("mtl failed: nan") in running.told
    assert [r.state for r in running.store.bases] == ["complete", "failed"]
    again = opened(bases=False)
    again.search.train_bases(BASES, seeds=[0])
    assert again.trained == ["mtl"]
    assert [r.state for r in again.store.bases] == ["complete", "complete"]


# Half of the two epochs is a warm-up that a baseline starts from too.
WARMED = ("adashare.warmup=0.5",)


def test_baselines_are_trained_after_the_start_network_of_their_method(opened) -> None:
    running = opened(*WARMED, bases=False)
    running.search.train_bases([*BASES, "adashare"], seeds=[0])
    assert running.trained == ["stl", "mtl", "warm-up of adashare", "adashare"]
    # Trials of the same seed start from it too.
    running.tune(1, "adashare")
    assert running.trained[4:] == ["trial 0"]


def test_a_failed_start_network_fails_the_baselines_behind_it_alone(opened) -> None:
    def fail(job):
        failed = bool(job.spec.part)
        return (
            result_of(job, state="failed", reason="nan", metrics={}) if failed else result_of(job)
        )

    running = opened(*WARMED, train=fail, bases=False)
    running.search.train_bases(["stl", "adashare", "mtl"], seeds=[0])
    assert running.trained == ["stl", "warm-up of adashare", "mtl"]
    assert Warned("adashare failed: warm-up of adashare failed: nan") in running.told
    states = {result.method: result.state for result in running.store.bases}
    assert states == {"stl": "complete", "adashare": "failed", "mtl": "complete"}
    again = opened(*WARMED, bases=False)
    again.search.train_bases(["stl", "adashare", "mtl"], seeds=[0])
    assert again.trained == ["warm-up of adashare", "adashare"]


def test_a_method_that_balances_by_itself_is_trained_once(opened) -> None:
    running = opened('weightings=["pcgrad", "dwa"]', bases=False)
    running.search.train_bases(["stl", "gradsplit", "mtl"], seeds=[0])
    assert running.trained == ["stl", "gradsplit", "mtl + pcgrad", "mtl + dwa"]


def test_single_task_networks_must_not_fail(opened) -> None:
    running = opened(
        train=lambda job: result_of(job, state="failed", reason="nan", metrics={}), bases=False
    )
    with pytest.raises(TrainingError, match="stl failed: nan"):
        running.search.train_bases(BASES, seeds=[0])
    assert running.store.bases == []
    # Nothing of it is left in the way of the next attempt.
    again = opened(bases=False)
    again.search.train_bases(BASES, seeds=[0])
    assert again.trained == ["stl", "mtl"]


def test_n_trials_is_a_total(opened) -> None:
    running = opened(RANDOM)
    assert [r.trial for r in running.tune(3)] == [0, 1, 2]
    assert running.trained == ["trial 0", "trial 1", "trial 2"]
    params = [r.params for r in running.tune(3)]
    assert running.tune(2) == running.tune(3)
    assert len(running.trained) == 3
    further = opened(RANDOM)
    assert [r.params for r in further.tune(5)][:3] == params
    assert further.trained == ["trial 3", "trial 4"]
    # As in one go: each draw depends on its number alone.
    assert len({tuple(r.params.values()) for r in further.tune(5)}) == 5


def test_progress_and_outcomes_are_told(opened) -> None:
    running = opened(RANDOM, train=gain_by("tau.depth"))
    results = running.tune(2)
    told = [event for event in running.told if isinstance(event, Progress)]
    assert [(event.stage, event.done, event.total) for event in told] == [
        ("search", 0, 2), ("search", 1, 2), ("search", 2, 2),
    ]  # fmt: skip
    begun = [event for event in running.told if isinstance(event, Log)]
    assert [event.params for event in begun] == [r.params for r in results]
    assert [(end.trial, end.state) for end in running.status.ends] == [
        (0, "complete"), (1, "complete"),
    ]  # fmt: skip
    # 20 and 0.5 are those of the single-task networks: half a gain of mIoU in percent.
    for end, result in zip(running.status.ends, results, strict=True):
        assert end.gain == pytest.approx(100 * result.params["tau.depth"] / 20 / 2)
    assert len(running.changes) == 2


def test_results_are_told_in_the_order_in_which_they_end(opened) -> None:
    running = opened(RANDOM, size=3, held=True)
    executor, order = running.executor, ["trial 2", "trial 0", "trial 3", "trial 1"]

    class Steered:
        def __call__(self):
            if order and order[0] in executor.waiting:
                executor.end(order.pop(0))
            return False

    running.search.pool.stop = Steered()
    results = running.tune(4)
    told = [e.message.split(":")[0] for e in running.told if isinstance(e, NetworkTrained)]
    assert told == ["trial 2", "trial 0", "trial 3", "trial 1"]
    assert [r.trial for r in results] == [0, 1, 2, 3]


def test_no_more_begin_than_were_asked_for(opened) -> None:
    running = opened(RANDOM, size=8)
    assert len(running.tune(3)) == 3
    assert len(running.trained) == 3


def test_a_search_leaves_free_workers_to_those_after_it(opened) -> None:
    running = opened(RANDOM, *WARMED, size=2, held=True)
    executor = running.executor
    seen: list[list[str]] = []

    class Steered:
        def __call__(self):
            if len(executor.waiting) == 2:
                seen.append(executor.waiting)
            if len(executor.waiting) == 2 or len(running.trained) == 4:
                for label in executor.waiting[:1]:
                    executor.end(label)
            return False

    running.search.pool.stop = Steered()
    plans = [running.plan(1, "adashare"), running.plan(2)]
    assert running.search.run_trials(plans) == {}
    # The search of adashare waits for its warm-up; as soon as that has ended, it goes before.
    assert seen == [
        ["warm-up of adashare", "trial 0"],
        ["trial 0", "trial 1"],
        ["trial 1", "trial 2"],
    ]
    of = {plan.first.method: running.store.results(plan.name) for plan in plans}
    assert {name: [r.trial for r in trials] for name, trials in of.items()} == {
        "adashare": [1], "interrogate": [0, 2],
    }  # fmt: skip
    assert not running.search.run_trials(plans)
    assert len(running.trained) == 4


def test_a_search_whose_start_fails_leaves_the_others_theirs(opened) -> None:
    def fail(job):
        return result_of(job, state="failed", reason="nan") if job.spec.part else result_of(job)

    running = opened(RANDOM, *WARMED, train=fail, size=2)
    adashare, interrogate = running.plan(2, "adashare"), running.plan(2)
    (failure,) = running.search.run_trials([adashare, interrogate]).items()
    assert failure[0] == adashare.name
    assert str(failure[1]) == "warm-up of adashare failed: nan"
    # Told when it happens, not when the other search has ended.
    kinds = [type(event) for event in running.told if isinstance(event, Warned | NetworkTrained)]
    assert kinds == [Warned, NetworkTrained, NetworkTrained]
    assert [r.state for r in running.store.results(interrogate.name)] == ["complete"] * 2
    assert running.store.results(adashare.name) == []
    again = opened(RANDOM, *WARMED, size=2)
    assert again.search.run_trials([again.plan(2, "adashare"), again.plan(2)]) == {}
    assert again.trained == ["warm-up of adashare", "trial 2", "trial 3"]


def test_what_two_interrupted_searches_began_goes_on(opened) -> None:
    running = opened(RANDOM, size=2)
    running.executor.train = lambda job: KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        running.search.run_trials([running.plan(1), running.plan(1, "branch")])
    begun = [(trial.number, trial.search) for trial in running.store.unfinished()]
    assert begun == [(0, running.plan(1).name), (1, running.plan(1, "branch").name)]
    again = opened(RANDOM, size=2)
    again.search.run_trials([again.plan(2), again.plan(1, "branch")])
    assert again.trained == ["trial 0", "trial 2", "trial 1"]


def test_failed_and_undefined_trials_count(opened) -> None:
    def train(job):
        if job.spec.trial == 0:
            return result_of(job, state="failed", reason="the loss became nan", metrics={})
        return result_of(job, validation={"depth": float("nan")} if job.spec.trial == 1 else {})

    running = opened(RANDOM, train=train)
    results = running.tune(3)
    assert [r.state for r in results] == ["failed", "failed", "complete"]
    assert results[1].reason == "Δ_MTL is undefined: the metric of depth is nan"
    warned = [event.message for event in running.told if isinstance(event, Warned)]
    assert warned == [f"trial {r.trial} failed: {r.reason}" for r in results[:2]]
    assert opened(RANDOM).tune(3) == results


ZERO = {"semseg": 0.0}


def test_a_single_task_metric_of_zero_fails_trials_and_the_study_goes_on(opened) -> None:
    def train(job):
        return result_of(job, validation=ZERO if job.spec.method == "stl" else {})

    running = opened(RANDOM, train=train, bases=False)
    running.search.train_bases(BASES, seeds=[0])
    results = running.tune(2)
    fault = "the single-task network of semseg has 0, and the gain divides by it"
    assert [(r.state, r.reason) for r in results] == [
        ("failed", f"Δ_MTL is undefined: {fault}")
    ] * 2  # fmt: skip
    assert [r.state for r in running.store.bases] == ["complete", "complete"]
    warned = [event.message for event in running.told if isinstance(event, Warned)]
    assert warned[0].startswith(f"Δ_MTL is undefined for every network of this seed: {fault}; all")
    ended = [event.message for event in running.told if isinstance(event, NetworkTrained)]
    assert ended[1].startswith("mtl: Δ_MTL undefined, 1.000 GFLOPs, validation semseg 20")
    # The next start finds nothing left to do, and finishes what a killed one left.
    again = opened(RANDOM, train=train, bases=False)
    again.search.train_bases(BASES, seeds=[0])
    assert again.tune(2) == results
    assert again.trained == []
    assert [r.state for r in again.tune(3)] == ["failed"] * 3


@pytest.mark.parametrize("baseline", [math.inf, math.nan])
def test_a_result_left_by_a_killed_run_is_told_though_its_gain_is_undefined(
    opened, tmp_path, baseline
) -> None:
    running = opened(RANDOM, bases=False)
    running.executor.train = lambda job: result_of(job, validation={"depth": baseline})
    running.search.train_bases(BASES, seeds=[0])
    cut_off(running, 1)
    job = read_spec(tmp_path / "out" / "trials" / "0000" / "spec.json")
    keep_result(job, result_of(job))
    (result,) = opened(RANDOM, bases=False).tune(1)
    assert result.state == "failed"
    assert f"the metric of the single-task network of depth is {baseline}" in result.reason


def test_failed_trials_are_tried_again_on_demand_as_new_ones(opened) -> None:
    def fail_odd(job):
        if job.spec.trial in (1, 3):
            return result_of(job, state="failed", reason="killed", metrics={})
        return result_of(job)

    running = opened(RANDOM, train=fail_odd)
    first = running.tune(4)
    assert [r.state for r in first] == ["complete", "failed", "complete", "failed"]
    assert running.tune(4) == first, "not by itself"
    again = opened(RANDOM, train=lambda job: (
        result_of(job, state="failed", reason="killed", metrics={})
        if job.spec.trial == 5 else result_of(job)
    ))  # fmt: skip
    again.search._retry_failed = True
    results = again.tune(4)
    assert again.trained == ["trial 4", "trial 5"]
    assert [r.params for r in results[4:]] == [first[1].params, first[3].params]
    assert [r.state for r in results[4:]] == ["complete", "failed"]
    assert results[:4] == first, "what failed stays told"
    # Only what failed again is tried once more.
    last = opened(RANDOM)
    last.search._retry_failed = True
    assert last.tune(4)[6:][0].params == first[3].params
    assert last.trained == ["trial 6"]
    assert len(last.tune(4)) == 7
    # A larger total goes on with new draws.
    plain = opened(RANDOM)
    assert plain.tune(8)[7].params not in [r.params for r in results]


def test_workers_that_die_again_and_again_end_the_run_and_lose_nothing(opened) -> None:
    running = opened(RANDOM, "execution.attempts=1", train=lambda job: BrokenExecutor("gone"),
                     bases=False)  # fmt: skip
    running.executor.train = result_of
    running.search.train_bases(BASES, seeds=[0])
    running.executor.train = lambda job: (
        BrokenExecutor("gone") if job.spec.trial == 1 else result_of(job)
    )
    with pytest.raises(TrainingError, match="trial 1: 4 worker processes ended"):
        running.tune(3)
    again = opened(RANDOM, bases=False)
    assert [r.trial for r in again.tune(3)] == [0, 1, 2]
    assert again.trained == ["trial 1", "trial 2"]
    assert Log("trial 1 goes on", again.told[1].params) in again.told


def test_a_stop_keeps_trials_for_later(opened) -> None:
    asked = False
    running = opened(RANDOM, size=2, held=True, stop=lambda: asked)
    asked = True
    with pytest.raises(KeyboardInterrupt):
        running.tune(3)
    begun = {trial.number: trial.params for trial in running.store.unfinished()}
    assert set(begun) == {0, 1}
    asked = False
    again = opened(RANDOM)
    assert {r.trial: r.params for r in again.tune(2)} == begun
    assert [event.message for event in again.told if isinstance(event, Log)] == [
        "trial 0 goes on", "trial 1 goes on",
    ]  # fmt: skip


def cut_off(running: Running, n_trials: int) -> None:
    """As a process leaves a search that was killed while its first trial was running."""
    running.executor.train = lambda job: KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        running.tune(n_trials)


def test_results_of_a_run_that_died_are_told(opened, tmp_path) -> None:
    running = opened(RANDOM)
    cut_off(running, 2)
    job = read_spec(tmp_path / "out" / "trials" / "0000" / "spec.json")
    # Its worker lived on for a while, and came to a result.
    keep_result(job, result_of(job, validation={"semseg": 30.0}))
    again = opened(RANDOM)
    results = again.tune(2)
    assert [r.metrics["validation"]["semseg"] for r in results] == [30.0, 20.0]
    assert again.trained == ["trial 1"]
    told = [e.message.split(":")[0] for e in again.told if isinstance(e, NetworkTrained)]
    assert told == ["trial 0", "trial 1"]


def test_a_worker_killed_before_it_cleared_its_checkpoints_leaves_none(opened, tmp_path) -> None:
    cut_off(opened(RANDOM), 1)
    job = read_spec(tmp_path / "out" / "trials" / "0000" / "spec.json")
    keep_result(job, result_of(job))
    left = [job.folder / name for name in ("checkpoint-1.safetensors", "checkpoint-2.safetensors")]
    left.append(job.folder / ".checkpoint-3.safetensors.17")
    for path in left:
        path.write_bytes(b"a state")
    assert [r.state for r in opened(RANDOM).tune(1)] == ["complete"]
    assert [path.name for path in left if path.exists()] == []
    assert read_result(job) is not None


def test_trials_behind_the_last_backup_are_taken_up(opened, tmp_path) -> None:
    running = opened(RANDOM)
    running.tune(1)
    out = tmp_path / "out"
    running.store.close()
    shutil.copy(out / DATABASE, tmp_path / "backup.db")
    running = opened(RANDOM, bases=False)
    lost = running.tune(3)[1:]
    running.store.close()
    shutil.copy(tmp_path / "backup.db", out / DATABASE)
    # One of them came to a result, one was still running.
    (out / "trials" / "0002" / RESULT).unlink()
    again = opened(RANDOM, bases=False)
    results = again.tune(4)
    assert [r.trial for r in results] == [0, 1, 2, 3]
    assert [r.params for r in results[1:3]] == [r.params for r in lost]
    assert again.trained == ["trial 2", "trial 3"]
    taken = [e.message for e in again.told if "was begun after the backup" in e.message]
    assert [message.split(" was")[0] for message in taken] == ["trial 1", "trial 2"]


@pytest.mark.parametrize("harm", ["another store", "no files", "a name that is none"])
def test_what_is_no_orphan_is_passed_over(opened, tmp_path, harm) -> None:
    running = opened(RANDOM)
    running.tune(1)
    source, folder = (tmp_path / "out" / "trials" / name for name in ("0000", "0007"))
    if harm == "another store":
        job = read_spec(source / "spec.json")
        replace(job, store="another", spec=replace(job.spec, trial=7)).write()
    elif harm == "no files":
        folder.mkdir()
    else:
        shutil.copytree(source, folder.with_name("copy of 0000"))
    again = opened(RANDOM)
    assert [r.trial for r in again.tune(2)] == [0, 1]


def test_given_configurations_are_tried_first_and_once(opened) -> None:
    def given(*weights: float) -> str:
        tables = ", ".join(f"{{lambda_s={w}, tau={{semseg=0.75, depth=0.25}}}}" for w in weights)
        return f"search.first=[{tables}]"

    first = opened(RANDOM, given(0.5, 2.0))
    results = first.tune(3)
    assert [r.params["lambda_s"] for r in results[:2]] == [0.5, 2.0]
    assert results[0].params["tau.semseg"] == 0.75
    more = opened(RANDOM, given(0.5, 4.0, 2.0))
    assert [r.params["lambda_s"] for r in more.tune(5)][3] == 4.0
    assert more.tune(5)[4].params["lambda_s"] not in (0.5, 2.0, 4.0)
    # Another seed has tried none of them.
    other = opened(RANDOM, "seed=1", given(0.5))
    last = other.tune(6)[-1]
    assert (last.seed, last.params["lambda_s"]) == (1, 0.5)


PLAIN = Method(
    name="plain", paper="none", year=2026, summary="a second method to search",
    build=MTL.build, options=NoOptions, space={"strength": Range(0.1, 1.0, log=True)},
)  # fmt: skip


def test_two_tuned_methods_share_a_store(opened, monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "plain", PLAIN)
    running = opened(RANDOM)
    first, second = running.tune(2), running.tune(3, "plain")
    assert [(r.method, r.trial) for r in first] == [("interrogate", 0), ("interrogate", 1)]
    assert [(r.method, r.trial) for r in second] == [("plain", 2), ("plain", 3), ("plain", 4)]
    assert set(second[0].params) == {"strength"}
    # Each total is its own; numbers go on.
    again = opened(RANDOM)
    assert [r.trial for r in again.tune(3)] == [0, 1, 5]
    assert again.trained == ["trial 5"]
    record = again.store.record()
    assert [t.method for t in record.trials] == ["interrogate"] * 2 + ["plain"] * 3 + [
        "interrogate"
    ]


def test_what_trials_start_from_is_trained_once(opened) -> None:
    overrides = (RANDOM, "interrogate.warmup=0.5", "options.interrogate.start=stl")
    running = opened(*overrides)
    running.tune(2)
    assert running.trained == ["warm-up of interrogate", "trial 0", "trial 1"]
    warm, trial = running.executor.submitted[:2]
    assert (warm.start.method, trial.start.part) == ("stl", "warm-up")
    again = opened(*overrides)
    again.tune(3)
    assert again.trained == ["trial 2"]
    other = opened(*overrides, "seed=4")
    other.tune(4)
    assert other.trained == ["warm-up of interrogate, seed 4", "trial 3"]
    assert other.executor.submitted[1].start.seed == 4


def test_a_warm_up_must_not_fail(opened) -> None:
    def fail(job):
        return result_of(job, state="failed", reason="nan") if job.spec.part else result_of(job)

    running = opened(RANDOM, "interrogate.warmup=0.5", train=fail)
    with pytest.raises(TrainingError, match="warm-up of interrogate failed: nan"):
        running.tune(1)
    assert running.store.unfinished() == []
    again = opened(RANDOM, "interrogate.warmup=0.5")
    again.tune(1)
    assert again.trained == ["warm-up of interrogate", "trial 0"]


def judged(job, *gains: float):
    """A result whose trial was judged after each epoch."""
    curves = {GAIN: list(gains), COST: [1.0] * len(gains)}
    return result_of(job, curves=curves)


@pytest.mark.parametrize("rule", ["median", "halving"])
def test_trials_are_judged_by_those_before_them(opened, rule) -> None:
    def train(job):
        assert job.single_task == {"semseg": 20.0, "depth": 0.5}
        if job.spec.trial == 2:
            return replace(judged(job, -9.0), state="stopped", reason="too bad", metrics={})
        return judged(job, 1.0 + job.spec.trial, 5.0 + job.spec.trial)

    running = opened(RANDOM, f"search.stop={rule}", "search.stop_every=1")
    running.executor.train = train
    results = running.tune(4)
    assert [r.state for r in results] == ["complete", "complete", "stopped", "complete"]
    rivals = [list(job.rivals) for job in running.executor.submitted]
    assert rivals == [
        [],
        [(1, 1.0, 1.0), (2, 1.0, 5.0)],
        [(1, 1.0, 1.0), (2, 1.0, 5.0), (1, 1.0, 2.0), (2, 1.0, 6.0)],
        [(1, 1.0, 1.0), (2, 1.0, 5.0), (1, 1.0, 2.0), (2, 1.0, 6.0), (1, 1.0, -9.0)],
    ]
    # What a run finds in its store counts as much.
    again = opened(RANDOM, f"search.stop={rule}", "search.stop_every=1", bases=False)
    again.executor.train = lambda job: judged(job, 0.0, 0.0)
    again.tune(5)
    assert len(again.executor.submitted[0].rivals) == 5 + 2
    assert [outcome.state for outcome in again.status.known] == [r.state for r in results]


def test_trials_are_not_judged_unless_the_study_asks(opened) -> None:
    running = opened(RANDOM, train=lambda job: judged(job, 1.0))
    running.tune(2)
    assert all(not job.rivals and not job.single_task for job in running.executor.submitted)


WEIGHTS = (RANDOM, "search.scalar_trials=3", 'weightings=["uniform", "scalar"]')


def test_weights_of_losses_are_searched_and_the_best_kept(opened, tmp_path) -> None:
    running = opened(*WEIGHTS, train=gain_by("weight.semseg"), bases=False)
    running.search.train_bases(BASES, seeds=[0])
    assert running.trained == ["stl", "mtl"] + [f"mtl + scalar, trial {i}" for i in range(3)]
    tries = running.store.results("scalar mtl seed 0")
    # The study's own weights come first.
    assert tries[0].params == {"weight.semseg": 1.0, "weight.depth": 1.0}
    best = max(tries, key=lambda r: r.params["weight.semseg"])
    *_, scalar = running.store.bases
    assert (scalar.weighting, scalar.trial, scalar.params) == ("scalar", None, best.params)
    assert (scalar.train_images, scalar.train_seconds) == (3 * 12, 3.0)
    kept = tmp_path / "out" / "baselines" / "mtl-scalar-seed0" / "model.safetensors"
    assert kept.read_text() == f"mtl + scalar, trial {best.trial}"
    assert running.store.record().trials == ()
    assert running.status.ends == []
    again = opened(*WEIGHTS, bases=False)
    again.search.train_bases(BASES, seeds=[0])
    assert again.trained == []


def test_weights_of_which_none_came_to_an_end(opened) -> None:
    def fail(job):
        if job.spec.weighting == "scalar":
            return result_of(job, state="failed", reason="nan", metrics={})
        return result_of(job)

    running = opened(*WEIGHTS, train=fail, bases=False)
    running.search.train_bases(BASES, seeds=[0])
    *_, scalar = running.store.bases
    assert (scalar.state, scalar.weighting) == ("failed", "scalar")
    assert scalar.reason.startswith("none of 3 trials came to an end")


def test_weights_are_not_stopped_early(opened) -> None:
    running = opened(*WEIGHTS, "search.stop=median", bases=False)
    running.search.train_bases(BASES, seeds=[0])
    assert all(not job.single_task for job in running.executor.submitted)
    assert running.tune(1)[0].state == "complete"
    assert running.executor.submitted[-1].single_task


def test_trials_may_draw_their_weighting(opened) -> None:
    running = opened(RANDOM, 'search.weighting=["rlw", "pcgrad"]')
    results = running.tune(6)
    assert all(r.weighting == r.params["weighting"] for r in results)
    assert {r.weighting for r in results} == {"rlw", "pcgrad"}


def test_a_baseline_of_two_files_is_copied_whole(opened, tmp_path, monkeypatch) -> None:
    """The weights' search keeps the best trial's network, compact ones with their description."""
    monkeypatch.setitem(METHODS, "plain", PLAIN)
    running = opened(*WEIGHTS, bases=False)

    def train(job):
        (job.folder / MODEL).with_suffix(".json").write_text(job.spec.label)
        return result_of(job, validation={"semseg": 20.0 + (job.spec.trial or 0)})

    running.executor.train = with_network(train)
    running.search.train_bases(["stl", "plain"], seeds=[0])
    folder = tmp_path / "out" / "baselines" / "plain-scalar-seed0"
    assert {path.name: path.read_text() for path in folder.glob("model.*")} == dict.fromkeys(
        ("model.json", "model.safetensors"), "plain + scalar, trial 2"
    )
