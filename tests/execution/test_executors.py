"""Who runs jobs: this process, and processes of which one may die."""

import json
import os
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from gatesearch.errors import UsageError
from gatesearch.execution import executors
from gatesearch.execution.executors import Processes, ThisProcess, open_executor, visible_devices
from tests.execution.fakes import job_of


def never_performed(job, emit):
    raise AssertionError("nothing is to be trained here")


def test_this_process_does_a_job_at_once(tmp_path) -> None:
    done, told = [], []

    def perform(job, emit) -> None:
        done.append(job)
        emit("an event")

    job = job_of(tmp_path)
    future = ThisProcess(perform).submit(job, told.append)
    assert future.done()
    assert future.result() is None
    assert (done, told) == ([job], ["an event"])


def test_a_failure_is_the_futures_and_ctrl_c_passes_through(tmp_path) -> None:
    def fail(error):
        def perform(job, emit) -> None:
            raise error

        return ThisProcess(perform)

    future = fail(ValueError("no")).submit(job_of(tmp_path), print)
    assert isinstance(future.exception(), ValueError)
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt()).submit(job_of(tmp_path), print)


def test_the_executor_of_a_run(monkeypatch) -> None:
    one = open_executor("process", 1, perform=never_performed)
    assert isinstance(one, ThisProcess)
    for workers, devices in ((2, 1), (1, 2)):
        many = open_executor("process", workers, devices=devices, perform=never_performed)
        assert isinstance(many, Processes)
    with pytest.raises(UsageError, match=r"--executor must be process, ray .*, found 'thread'"):
        open_executor("thread", 1, perform=never_performed)
    monkeypatch.setattr("gatesearch.execution.executors.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'gatesearch\[ray\]'"):
        open_executor("ray", 1, perform=never_performed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_devices() == ["3", "5"]
    with pytest.raises(UsageError, match=r"--devices-per-trial must be at most .*, 2; found 3"):
        open_executor("process", 1, devices=3, perform=never_performed)


def test_devices_are_dealt_out_in_turn(monkeypatch) -> None:
    given = []

    class Pool:
        def __init__(self, *, initargs, **options) -> None:
            given.append(initargs)

        def submit(self, work, text):
            from concurrent.futures import Future

            return Future()

    monkeypatch.setattr(executors, "ProcessPoolExecutor", Pool)
    processes = Processes(3, devices=["0", "1"], each=1, threads=4)
    for number in range(3):
        processes.submit(job_of(Path("nowhere"), number), print)
    assert given == [("0", 4), ("1", 4), ("0", 4)]
    with pytest.raises(RuntimeError, match="all 3 workers are busy"):
        processes.submit(job_of(Path("nowhere"), 3), print)
    given.clear()
    together = Processes(2, devices=["0", "1", "2", "3"], each=2, threads=1)
    for number in range(2):
        together.submit(job_of(Path("nowhere"), number), print)
    assert given == [("0,1", 1), ("2,3", 1)]


def obey(text: str) -> None:
    """What a worker does in these tests: the name of a trial's weighting says what."""
    job = json.loads(text)
    match job["spec"]["weighting"]:
        case "die":
            os.kill(os.getpid(), 9)
        case "wait":
            Path(job["out"], "begun").touch()
            until = time.monotonic() + 60
            while not executors.stopping() and time.monotonic() < until:
                time.sleep(0.01)
            Path(job["out"], "stopped").write_text(str(executors.stopping()))
        case _:
            Path(job["out"], f"{job['spec']['trial']}.pid").write_text(str(os.getpid()))


def told(tmp_path, number: int, what: str):
    from gatesearch.methods import NetworkSpec

    return job_of(tmp_path, spec=NetworkSpec("mtl", 0, number, weighting=what))


@pytest.mark.slow("processes")
def test_a_process_that_dies_takes_no_other_along(tmp_path) -> None:
    processes = Processes(2, devices=[], threads=1, work=obey)
    try:
        waiting = processes.submit(told(tmp_path, 0, "wait"), print)
        dying = processes.submit(told(tmp_path, 1, "die"), print)
        assert isinstance(dying.exception(60), BrokenExecutor)
        assert not waiting.done()
        # Its place is taken by another process, which goes on to serve.
        for number in (2, 3):
            processes.submit(told(tmp_path, number, "work"), print).result(60)
        pids = {(tmp_path / f"{number}.pid").read_text() for number in (2, 3)}
        assert len(pids) == 1
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.01)
        processes.stop([])
        waiting.result(60)
        assert (tmp_path / "stopped").read_text() == "True"
    finally:
        processes.shutdown()
