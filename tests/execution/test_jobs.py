"""A job as JSON, and the files in its folder."""

import json
import shutil
from dataclasses import replace

import pytest

from gatesearch.cost import Budget
from gatesearch.errors import StudyRefusedError
from gatesearch.execution.jobs import (
    ATTEMPTS,
    RESULT,
    SPEC,
    Attempts,
    Job,
    forget_result,
    keep_result,
    read_result,
    read_spec,
)
from gatesearch.methods import NetworkSpec
from gatesearch.study import ExecutionSpec
from tests.execution.fakes import job_of, result_of


def test_a_job_survives_json(tmp_path) -> None:
    start = result_of(job_of(tmp_path, spec=NetworkSpec("interrogate", 0, part="warm-up")))
    job = job_of(
        tmp_path,
        spec=NetworkSpec(
            "mtan", 3, 5, {"strength": 1.5, "kind": "soft"},
            (Budget("1.3xMTL", "macs", 1e6), Budget("12ms@cpu", "latency", 0.012)), "", "pcgrad",
        ),
        start=start, execution=ExecutionSpec(attempts=7), single_task={"depth": 0.5},
        rivals=((1, 1.5, -2.0), (2, 1.5, 3.0)), devices=2, search="mtan 1.3xMTL", objectives=2,
        drawn_from={"strength": "a distribution"},
    )  # fmt: skip
    again = Job.from_json(json.loads(json.dumps(job.to_json())))
    assert again == job
    assert again.identity == job.identity


def test_identity_is_of_what_the_result_depends_on(tmp_path) -> None:
    job = job_of(tmp_path)
    same = replace(
        job, out=tmp_path / "elsewhere", execution=ExecutionSpec(attempts=9), devices=2,
        rivals=((1, 2.0, 3.0),),
    )  # fmt: skip
    assert same.identity == job.identity
    for changed in (
        {"store": "another"},
        {"definition": {"name": "another"}},
        {"spec": replace(job.spec, seed=1)},
        {"spec": replace(job.spec, params={"lambda_s": 2.0})},
        {"spec": replace(job.spec, weighting="pcgrad")},
    ):
        assert replace(job, **changed).identity != job.identity


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        (NetworkSpec("mtl", 3), "baselines/mtl-seed3"),
        (NetworkSpec("mtl", 3, weighting="pcgrad"), "baselines/mtl-pcgrad-seed3"),
        (NetworkSpec("interrogate", 3, part="warm-up"), "starts/interrogate-warm-up-seed3"),
        (NetworkSpec("interrogate", 3, 12), "trials/0012"),
    ],
)
def test_a_specification_is_read_from_its_folder_wherever_that_was_moved(
    tmp_path, spec, folder
) -> None:
    job = job_of(tmp_path / "out", spec=spec)
    job.write()
    assert job.folder == tmp_path / "out" / folder
    assert read_spec(job.folder / SPEC) == job
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = read_spec(tmp_path / "moved" / folder / SPEC)
    assert moved == replace(job, out=tmp_path / "moved")


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"spec": {"trial": "../up"}}'])
def test_what_is_no_specification_is_none(tmp_path, text) -> None:
    path = tmp_path / "trials" / "0000" / SPEC
    path.parent.mkdir(parents=True)
    assert read_spec(path) is None
    path.write_bytes(text)
    assert read_spec(path) is None


def test_a_specification_in_another_trials_folder_is_none(tmp_path) -> None:
    job = job_of(tmp_path, 1)
    job.write()
    shutil.copytree(job.folder, tmp_path / "trials" / "0002")
    assert read_spec(tmp_path / "trials" / "0002" / SPEC) is None


def test_a_result_is_that_of_this_very_job(tmp_path) -> None:
    job = job_of(tmp_path)
    assert read_result(job) is None
    job.write()
    keep_result(job, result_of(job, gflops=2.5))
    assert read_result(job) == result_of(job, gflops=2.5)
    with pytest.raises(StudyRefusedError, match="belongs to another study or trial than trial 0"):
        read_result(replace(job, store="another"))
    for text, said in ((b"{", "is damaged"), (b"[]", "an object is expected")):
        (job.folder / RESULT).write_bytes(text)
        with pytest.raises(StudyRefusedError, match=said):
            read_result(job)


def test_a_job_that_is_done_again_begins_with_nothing(tmp_path) -> None:
    job = job_of(tmp_path)
    job.write()
    forget_result(job)  # nothing there
    keep_result(job, result_of(job))
    Attempts(job.folder).begin()
    forget_result(job)
    assert read_result(job) is None
    assert len(Attempts(job.folder)) == 0
    assert [path.name for path in job.folder.iterdir()] == [SPEC]


def test_attempts_in_vain_are_those_that_got_no_further(tmp_path) -> None:
    def begun() -> Attempts:
        attempts = Attempts(tmp_path)
        attempts.begin()
        return attempts

    begun()
    begun()
    assert len(Attempts(tmp_path).in_vain) == 2
    assert "ended without a message" in Attempts(tmp_path).in_vain[0]
    (tmp_path / "checkpoint-1.safetensors").touch()
    assert Attempts(tmp_path).in_vain == []  # the last one got somewhere
    begun().crash("killed by SIGKILL")
    begun()
    causes = Attempts(tmp_path).in_vain
    assert [cause.split(", ")[-1] for cause in causes] == [
        "killed by SIGKILL", "or out of memory)",
    ]  # fmt: skip
    begun().end("Preempted")
    assert Attempts(tmp_path).in_vain == []  # in order
    begun()
    assert len(Attempts(tmp_path).in_vain) == 1
    assert len(Attempts(tmp_path)) == 6


def test_attempts_that_died_with_their_run_are_not_in_vain(tmp_path) -> None:
    def died_with_run() -> None:
        Attempts(tmp_path).begin()
        Attempts(tmp_path).end_with_run()

    Attempts(tmp_path).end_with_run()  # nothing was begun
    assert len(Attempts(tmp_path)) == 0
    for count in range(1, 5):
        died_with_run()
        assert (Attempts(tmp_path).in_vain, Attempts(tmp_path).ended_with_run) == ([], count)
    Attempts(tmp_path).begin()  # dies alone
    Attempts(tmp_path).begin()
    assert len(Attempts(tmp_path).in_vain) == 2
    assert Attempts(tmp_path).ended_with_run == 4
    Attempts(tmp_path).crash("killed by SIGKILL")
    Attempts(tmp_path).end_with_run()  # it is known to have died alone
    assert len(Attempts(tmp_path).in_vain) == 2
    (tmp_path / "checkpoint-1.safetensors").touch()
    died_with_run()
    assert Attempts(tmp_path).ended_with_run == 1, "the others got as far as a checkpoint"
    Attempts(tmp_path).begin()
    Attempts(tmp_path).end("Preempted")
    assert Attempts(tmp_path).ended_with_run == 0


def test_attempts_count_on_from_checkpoint_ten(tmp_path) -> None:
    for number in (9, 10):
        (tmp_path / f"checkpoint-{number}.safetensors").touch()
    Attempts(tmp_path).begin()
    kept = json.loads((tmp_path / ATTEMPTS).read_bytes())["attempts"]
    assert [attempt["from"] for attempt in kept] == ["checkpoint-10.safetensors"]
