"""Running jobs, without training: results as they end, crashes, events, an orderly stop."""

import json
import os
from concurrent.futures import BrokenExecutor

import pytest

from gatesearch.errors import StudyRefusedError
from gatesearch.events import Log, Progress, Warned, to_json
from gatesearch.execution.jobs import EVENTS, SPEC, STOP, Attempts, keep_result
from gatesearch.study import ExecutionSpec
from gatesearch.training import Preempted, RankError, TrainingError
from tests.execution.fakes import FakeExecutor, Watching, job_of, pool_of, result_of


def labels(pairs) -> list[str]:
    return [job.spec.label for job, _ in pairs]


def test_a_result_comes_back_with_its_job(tmp_path) -> None:
    job, watching = job_of(tmp_path), Watching()
    pool = pool_of(FakeExecutor(), observer=watching)
    pool.begin(job)
    assert (pool.free, pool.jobs) == (0, [job])
    ((ended, result),) = pool.results()
    assert (ended, result) == (job, result_of(job))
    assert (pool.free, pool.jobs) == (1, [])
    assert watching.seen == [("begin", "trial 0", 1), ("end", "trial 0")]
    assert (job.folder / SPEC).is_file()


def test_results_come_in_the_order_in_which_jobs_end(tmp_path) -> None:
    executor = FakeExecutor(held=True)
    pool = pool_of(executor, size=3)
    for number in range(3):
        pool.begin(job_of(tmp_path, number))
    assert pool.free == 0
    executor.end("trial 2")
    results = pool.results()
    assert labels([next(results)]) == ["trial 2"]
    assert pool.free == 1
    # One that begins meanwhile may end before those that were there.
    pool.begin(job_of(tmp_path, 3))
    executor.end("trial 3")
    assert labels([next(results)]) == ["trial 3"]
    executor.end("trial 0")
    executor.end("trial 1")
    assert sorted(labels(results)) == ["trial 0", "trial 1"]


def test_there_are_no_results_without_jobs(tmp_path) -> None:
    assert list(pool_of(FakeExecutor()).results()) == []


def test_a_failed_training_is_a_result(tmp_path) -> None:
    def fail(job):
        return result_of(job, state="failed", reason="the loss became nan")

    pool = pool_of(FakeExecutor(fail))
    pool.begin(job_of(tmp_path))
    ((_, result),) = pool.results()
    assert (result.state, result.reason) == ("failed", "the loss became nan")


class Crashing:
    """Ends with errors, then with a result."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    def __call__(self, job):
        return self.errors.pop(0) if self.errors else result_of(job)


@pytest.mark.parametrize("times", [1, 3, 6])
def test_a_worker_that_dies_is_replaced(tmp_path, times) -> None:
    told, executor = [], FakeExecutor(Crashing(*[BrokenExecutor("gone")] * times))
    pool = pool_of(executor, told=told)
    pool.begin(job_of(tmp_path, execution=ExecutionSpec(attempts=2)))
    ((_, result),) = pool.results()
    assert result.state == "complete"
    assert len(executor.submitted) == times + 1
    again = "trial 0: its worker ended without a message; it goes on from its last checkpoint"
    assert told == [Warned(again)] * times


def test_workers_that_die_again_and_again_end_the_run(tmp_path) -> None:
    executor = FakeExecutor(Crashing(*[BrokenExecutor(f"gone {i}") for i in range(9)]))
    pool = pool_of(executor)
    pool.begin(job_of(tmp_path, execution=ExecutionSpec(attempts=2)))
    with pytest.raises(TrainingError, match=r"trial 0: 7 worker .*, the last with: gone 6; see"):
        list(pool.results())
    assert len(executor.submitted) == 7  # three times as often as attempts, and once more


def test_a_worker_that_dies_behind_its_result_is_no_news(tmp_path) -> None:
    def finish_and_die(job):
        keep_result(job, result_of(job))
        return BrokenExecutor("gone")

    told, executor = [], FakeExecutor(finish_and_die, held=True)
    pool = pool_of(executor, told=told)
    pool.begin(job_of(tmp_path))
    executor.end("trial 0")
    executor.train, executor.held = result_of, False
    assert labels(pool.results()) == ["trial 0"]
    assert told == []


def test_processes_that_train_together_and_fail_are_tried_again(tmp_path) -> None:
    error = RankError("rank 1 of 2 was killed by SIGKILL\nand a trace")
    told, executor = [], FakeExecutor(Crashing(*[error] * 3))
    pool = pool_of(executor, told=told)
    pool.begin(job_of(tmp_path, devices=2))
    assert labels(pool.results()) == ["trial 0"]
    again = "rank 1 of 2 was killed by SIGKILL; it goes on from its last checkpoint"
    assert told == [Warned(f"trial 0: {again}")] * 3


def test_any_other_error_is_the_runs(tmp_path) -> None:
    pool = pool_of(FakeExecutor(Crashing(StudyRefusedError("other data"))))
    pool.begin(job_of(tmp_path))
    with pytest.raises(StudyRefusedError, match="other data"):
        list(pool.results())


def test_a_stop_asks_all_and_waits_for_their_checkpoints(tmp_path) -> None:
    asked = False
    executor = FakeExecutor(held=True)
    pool = pool_of(executor, size=2, stop=lambda: asked)
    jobs = [job_of(tmp_path, number) for number in range(2)]
    for job in jobs:
        pool.begin(job)
    executor.end("trial 1")
    results = pool.results()
    assert labels([next(results)]) == ["trial 1"]
    pool.begin(job_of(tmp_path, 2))
    asked = True
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert [job.spec.label for job in executor.stopped] == ["trial 0", "trial 2"]
    assert executor.waiting == []


def test_a_worker_that_was_asked_to_stop_ends_the_run(tmp_path) -> None:
    pool = pool_of(FakeExecutor(Crashing(Preempted())))
    pool.begin(job_of(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        list(pool.results())


def test_events_of_a_worker_are_passed_on_whole_and_once(tmp_path) -> None:
    events = [Log("measuring"), Progress("trial 0", 1, 2, "epochs", "depth 0.5", {"lr": 0.1})]
    told, watching = [], Watching()
    executor = FakeExecutor(held=True)
    pool = pool_of(executor, size=2, told=told, observer=watching)
    job, other = job_of(tmp_path), job_of(tmp_path, 1)
    pool.begin(job)
    pool.begin(other)
    lines = [json.dumps(to_json(event)).encode() + b"\n" for event in events]
    path = job.folder / EVENTS
    path.write_bytes(lines[0] + lines[1][:10])  # one line is being written
    executor.end("trial 1")
    results = pool.results()
    next(results)
    assert told == events[:1]
    path.write_bytes(b"".join(lines))
    executor.end("trial 0")
    assert labels(results) == ["trial 0"]
    assert told == events
    heard = [item for item in watching.seen if item[0] == "heard"]
    assert heard == [("heard", "trial 0", "measuring"), ("heard", "trial 0", "depth 0.5")]


def test_events_of_this_process_are_passed_on_at_once(tmp_path) -> None:
    class Speaking(FakeExecutor):
        def submit(self, job, emit):
            emit(Log("at work"))
            return super().submit(job, emit)

    told, watching = [], Watching()
    pool = pool_of(Speaking(held=True), told=told, observer=watching)
    pool.begin(job_of(tmp_path))
    assert told == [Log("at work")]
    assert ("heard", "trial 0", "at work") in watching.seen


def test_a_run_does_not_count_deaths_of_earlier_runs_against_a_job(tmp_path) -> None:
    job = job_of(tmp_path, execution=ExecutionSpec(attempts=1))
    job.folder.mkdir(parents=True)
    for _ in range(5):  # each run dies with its worker
        pool_of(FakeExecutor(held=True)).begin(job)
        Attempts(job.folder).begin()
    pool = pool_of(FakeExecutor())
    pool.begin(job)
    assert Attempts(job.folder).in_vain == []
    assert Attempts(job.folder).ended_with_run == 5


def test_what_an_earlier_worker_left_is_not_read_again(tmp_path) -> None:
    job, told, watching = job_of(tmp_path), [], Watching()
    job.folder.mkdir(parents=True)
    (job.folder / EVENTS).write_text(json.dumps(to_json(Log("long ago"))) + "\n")
    (job.folder / STOP).touch()
    attempts = Attempts(job.folder)
    attempts.begin()
    attempts.begin()
    pool = pool_of(FakeExecutor(), told=told, observer=watching)
    pool.begin(job)
    assert labels(pool.results()) == ["trial 0"]
    assert told == []
    assert not (job.folder / STOP).exists()
    assert watching.seen[0] == ("begin", "trial 0", 3)


class TestDamagedEvents:
    """Nothing depends on events: what cannot be read is passed over, and said once."""

    def relayed(self, tmp_path, write) -> list:
        executor, told = FakeExecutor(held=True), []
        pool = pool_of(executor, told=told)
        job = job_of(tmp_path)
        pool.begin(job)
        write(job.folder / EVENTS)
        executor.end("trial 0")
        assert [result.trial for _, result in pool.results()] == [0]
        return told

    @pytest.mark.parametrize(
        "line",
        [
            b"", b"{", b"[]", b"\xff", b'{"event": "log"}', b'{"event": "log", "message": 3}',
            b'{"event": "log", "message": "x", "params": [1]}',
            b'{"event": "progress", "stage": "x", "done": "1", "total": 2, "unit": "u",'
            b' "message": ""}',
            b'{"event": "progress", "stage": "x", "done": 1, "total": 2, "unit": "u",'
            b' "message": "", "loss.a": null}',
            b'{"a": ' + b"[" * 100_000, b"1" * 5000,
        ],
        ids=lambda line: line[:30].decode("latin-1"),
    )  # fmt: skip
    def test_a_damaged_line_is_passed_over(self, tmp_path, line) -> None:
        good = json.dumps(to_json(Log("measuring"))).encode()
        told = self.relayed(
            tmp_path, lambda path: path.write_bytes(b"\n".join([good, line, line, good, b""]))
        )
        assert told.count(Log("measuring")) == 2
        (warning,) = [event for event in told if isinstance(event, Warned)]
        assert "has damaged lines; the events of its worker are passed over" in warning.message

    def test_one_that_is_no_regular_file_is_passed_over(self, tmp_path) -> None:
        (warning,) = self.relayed(tmp_path, os.mkfifo)
        assert "must be a regular file, found a named pipe" in warning.message

    def test_a_line_of_gigabytes_is_passed_over(self, tmp_path) -> None:
        def write(path) -> None:
            with path.open("wb") as file:
                file.truncate(40 * 2**20)

        (warning,) = self.relayed(tmp_path, write)
        assert "has damaged lines" in warning.message
