"""A worker without training: results kept, attempts counted, what it refuses."""

import fcntl
import json
import os
from concurrent.futures import BrokenExecutor
from dataclasses import replace

import pytest
import torch

from gatesearch.checksums import with_checksum
from gatesearch.errors import StudyRefusedError
from gatesearch.events import Log, Warned
from gatesearch.execution import worker
from gatesearch.execution.executors import ThisProcess
from gatesearch.execution.jobs import EVENTS, STOP, Attempts, read_result
from gatesearch.study import ExecutionSpec
from gatesearch.training import Checkpoints, Preempted, RankError, TrainingError
from gatesearch.training.checkpoint import Checkpoint
from gatesearch.trials.context import open_context
from tests.execution.fakes import FakeExecutor, job_of, pool_of, result_of
from tests.search.tiny import tiny


@pytest.fixture
def train(monkeypatch):
    """Trainings by a list of functions, one for each call: of the job's checkpoints."""
    calls = []

    def trained(spec, context, *, out, start, emit, controls):
        came_to = calls.pop(0)(controls.checkpoints)
        if isinstance(came_to, BaseException):
            raise came_to
        return replace(came_to, method=spec.method, trial=spec.trial)

    monkeypatch.setattr(worker, "train_network", trained)
    return calls


def perform(job, told=None, stop=lambda: False):
    return worker.perform(job, None, emit=[].append if told is None else told.append, stop=stop)


def test_a_result_is_kept_and_not_trained_for_again(train, tmp_path) -> None:
    job = job_of(tmp_path)

    def with_checkpoints(checkpoints):
        checkpoints.save(Checkpoint({}, {"x": torch.zeros(2)}))
        return result_of(job)

    train.append(with_checkpoints)
    result = perform(job)
    assert result == read_result(job) == result_of(job)
    assert not list(job.folder.glob("checkpoint-*"))
    assert perform(job) == result  # nothing is left to call


@pytest.mark.parametrize(
    "error", [TrainingError("the loss of depth became nan"), torch.OutOfMemoryError("too large")]
)
def test_a_training_that_cannot_go_on_is_a_failed_result(train, tmp_path, error) -> None:
    train.append(lambda checkpoints: error)
    result = perform(job_of(tmp_path))
    assert (result.state, result.reason, result.attempts) == ("failed", str(error), 1)
    assert (result.trial, result.params) == (0, {"lambda_s": 1.0})


def test_an_attempt_that_is_stopped_counts_and_is_not_in_vain(train, tmp_path) -> None:
    job = job_of(tmp_path, execution=ExecutionSpec(attempts=1))
    train += [lambda checkpoints: Preempted("asked")] * 4 + [lambda checkpoints: result_of(job)]
    for _ in range(4):
        with pytest.raises(Preempted):
            perform(job)
        assert read_result(job) is None
    assert perform(job).attempts == 5


def cut_off(job, checkpoint: int | None = None) -> None:
    """As a process leaves it that was killed."""
    job.folder.mkdir(parents=True, exist_ok=True)
    Attempts(job.folder).begin()
    if checkpoint is not None:
        (job.folder / f"checkpoint-{checkpoint}.safetensors").touch()


def test_trainings_that_are_killed_again_and_again_are_given_up(train, tmp_path) -> None:
    job = job_of(tmp_path, execution=ExecutionSpec(attempts=2))
    for _ in range(3):
        cut_off(job)
    result = perform(job)
    assert (result.state, result.attempts) == ("failed", 3)
    assert result.reason.count("ended without a message") == 3


def test_a_job_during_which_runs_died_is_trained_in_a_process_of_its_own(train, tmp_path) -> None:
    job = job_of(tmp_path, execution=ExecutionSpec(attempts=2))

    def die_alone(job):
        cut_off(job)
        return BrokenExecutor("killed")

    told, worker_ = [], FakeExecutor(die_alone)
    for deaths in range(4):
        executor = ThisProcess(lambda job, emit: perform(job), worker_)
        pool = pool_of(executor, told=told)
        if deaths < 3:  # The run dies in this process: of power, or of the network.
            train.append(lambda checkpoints: SystemExit())
            with pytest.raises(SystemExit):
                pool.begin(job)
            attempts = job.folder / "attempts.json"
            kept = json.loads(attempts.read_text().replace('"SystemExit: "', "null"))
            del kept["checksum"]
            attempts.write_text(json.dumps(with_checksum(kept)))
            assert worker_.submitted == []
            continue
        worker_.train = lambda job: die_alone(job) if len(worker_.submitted) < 4 else perform(job)
        pool.begin(job)
        ((_, result),) = pool.results()
    assert (result.state, result.attempts) == ("failed", 6)
    assert result.reason.count("ended without a message") == 3
    assert len(worker_.submitted) == 4
    assert "the run died 3 times while it was trained" in told[0].message


def test_trainings_that_get_further_are_not_given_up(train, tmp_path) -> None:
    job = job_of(tmp_path, execution=ExecutionSpec(attempts=2))
    for checkpoint in range(6):
        cut_off(job, checkpoint)
    train.append(lambda checkpoints: result_of(job))
    assert perform(job).attempts == 7


def test_a_damaged_checkpoint_is_told(train, tmp_path) -> None:
    job, told = job_of(tmp_path), []
    cut_off(job, 1)

    def look(checkpoints):
        assert checkpoints.newest() is None
        return result_of(job)

    train.append(look)
    perform(job, told)
    assert [type(event) for event in told] == [Warned]
    assert told[0].message.startswith("trial 0: the checkpoint ")


def test_checkpoints_are_of_this_job(train, tmp_path) -> None:
    job = job_of(tmp_path, execution=ExecutionSpec(checkpoint_minutes=3))

    def look(checkpoints: Checkpoints):
        assert (checkpoints.folder, checkpoints.identity) == (job.folder, job.identity)
        assert checkpoints.seconds == 180
        assert checkpoints.stopping()
        return Preempted()

    train.append(look)
    with pytest.raises(Preempted):
        perform(job, stop=lambda: True)


def test_a_folder_that_another_process_trains_in_is_refused(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(worker, "_ORPHAN_SECONDS", 0.05)
    job = job_of(tmp_path)
    job.folder.mkdir(parents=True)
    with (job.folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StudyRefusedError, match="another process is training in"):
            perform(job)
    train.append(lambda checkpoints: result_of(job))
    assert perform(job).state == "complete"


def test_ranks_that_die_again_and_again_are_given_up(tmp_path, monkeypatch) -> None:
    def launched(*arguments, **options):
        raise RankError(f"rank 1 of 2 was killed by SIGKILL\nand more {len(told)}")

    monkeypatch.setattr(worker, "launch", launched)
    job, told = job_of(tmp_path, devices=2), []
    pool = pool_of(ThisProcess(lambda job, emit: perform(job)), told=told)
    pool.begin(job)
    ((ended, result),) = pool.results()
    assert (ended, result.state, result.attempts) == (job, "failed", 4)
    assert result.reason.count("rank 1 of 2 was killed by SIGKILL") == 4
    assert "and more" not in result.reason
    assert [type(event) for event in told] == [Warned] * 4


@pytest.fixture
def work_of(tmp_path, data):
    """Makes the job of a study whose data are there."""
    study = tiny(tmp_path)
    context = open_context(study, data=data, stored=None, emit=lambda event: None)

    def made(**options):
        plain = {"definition": study.definition(), "data": data,
                 "sha256": context.data["sha256"]}  # fmt: skip
        return job_of(tmp_path / "out", **plain | options)

    return made


def test_a_worker_of_its_own_writes_its_events_and_heeds_the_stop_file(
    train, work_of, monkeypatch
) -> None:
    job, asked = work_of(), []

    def trained(spec, context, *, emit, controls, **options):
        asked.append(controls.checkpoints.stopping())
        (job.folder / STOP).touch()
        asked.append(controls.checkpoints.stopping())
        emit(Log(f"{len(context.train)} frames"))
        return result_of(job)

    monkeypatch.setattr(worker, "train_network", trained)
    worker.work(json.dumps(job.to_json()))
    assert read_result(job) == result_of(job)
    assert asked == [False, True]
    lines = (job.folder / EVENTS).read_text().splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["6 frames"]


def test_other_data_than_the_runs_are_refused(work_of) -> None:
    job = work_of(sha256="1" * 64)
    with pytest.raises(StudyRefusedError, match="holds other data here than where the run"):
        worker.context_of(job)


def test_checkpoints_of_a_worker_killed_after_its_result_are_removed(train, tmp_path) -> None:
    job = job_of(tmp_path)
    train.append(lambda checkpoints: result_of(job))
    perform(job)
    (job.folder / "checkpoint-1.safetensors").write_bytes(b"left")
    perform(job)
    assert not list(job.folder.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["lock", EVENTS])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_workers_files_are_opened_only_if_regular(tmp_path, name, kind) -> None:
    job = job_of(tmp_path)
    job.folder.mkdir(parents=True)
    target, path = tmp_path / "target", job.folder / name
    target.write_text("kept")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(StudyRefusedError, match="must be a regular file"):
        worker.work(json.dumps(job.to_json())) if name == EVENTS else perform(job)
    assert target.read_text() == "kept"
