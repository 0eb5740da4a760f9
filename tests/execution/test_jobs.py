"""A job as JSON, and the files in its folder."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gatesearch.checksums import with_checksum, without_checksum
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
from gatesearch.files import LARGEST_TABLE
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


DAMAGED = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "no checksum": b"{}",
    "no UTF-8": b"\xff",
    "no checksum of a bad job": b'{"spec": {"trial": "../up"}}',
    "deep": b'{"a": ' + b"[" * 100_000,
    "large": b'{"a": "' + b"x" * (LARGEST_TABLE + 1) + b'"}',
}


def put(kind: str, path: Path) -> None:
    """Put something that is no regular file at a path."""
    if kind == "a symbolic link":
        path.with_name("target").write_text("kept")
        path.symlink_to(path.with_name("target"))
    elif kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("name", [SPEC, RESULT, ATTEMPTS])
class TestDamagedFiles:
    def reading(self, job, name):
        calls = {
            SPEC: lambda: read_spec(job.folder / SPEC),
            RESULT: lambda: read_result(job),
            ATTEMPTS: lambda: Attempts(job.folder),
        }
        return calls[name]

    def whole(self, job):
        """Write all three files."""
        job.write()
        keep_result(job, result_of(job))
        Attempts(job.folder).begin()

    def refused(self, job, name) -> None:
        with pytest.raises(StudyRefusedError, match="move it away") as caught:
            self.reading(job, name)()
        assert str(caught.value).startswith(str(job.folder / name))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700

    @pytest.mark.parametrize("kind", DAMAGED)
    def test_damage_is_refused_in_one_line(self, tmp_path, name, kind) -> None:
        job = job_of(tmp_path)
        self.whole(job)
        whole = (job.folder / name).read_bytes()
        (job.folder / name).write_bytes(DAMAGED[kind])
        self.refused(job, name)
        (job.folder / name).write_bytes(whole)
        assert self.reading(job, name)() is not None  # put right, it is read as before

    @pytest.mark.parametrize("kind", ["a symbolic link", "a named pipe", "a folder"])
    def test_only_regular_files_are_read(self, tmp_path, name, kind) -> None:
        job = job_of(tmp_path)
        job.folder.mkdir(parents=True)
        put(kind, job.folder / name)
        self.refused(job, name)

    def test_no_flipped_bit_is_taken_as_truth(self, tmp_path, name) -> None:
        job = job_of(tmp_path, start=result_of(job_of(tmp_path)), drawn_from={"lambda_s": "{}"})
        self.whole(job)
        path, random = job.folder / name, Random(0)
        data, truth = path.read_bytes(), self.reading(job, name)()
        for _ in range(400):
            flipped = bytearray(data)
            flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
            path.write_bytes(flipped)
            try:
                found = self.reading(job, name)()
            except StudyRefusedError:
                continue
            # A flipped blank or letter of an escape can leave the same values.
            assert vars(found) == vars(truth)

    @pytest.mark.parametrize("value", ["1", [1], {"a": 1}, -1, True, None])
    def test_a_checksum_does_not_excuse_wrong_types(self, tmp_path, name, value) -> None:
        job = job_of(tmp_path)
        self.whole(job)
        path = job.folder / name
        table = without_checksum(json.loads(path.read_text()))
        if name == SPEC:
            table["objectives"] = value
        elif name == RESULT:
            table["result"]["gflops"] = value
        else:
            table["attempts"][0]["process"] = value
        path.write_text(json.dumps(with_checksum(table)))
        self.refused(job, name)

    def test_unknown_keys_are_refused(self, tmp_path, name) -> None:
        job = job_of(tmp_path)
        self.whole(job)
        table = without_checksum(json.loads((job.folder / name).read_text()))
        (job.folder / name).write_text(json.dumps(with_checksum(table | {"more": 1})))
        self.refused(job, name)


@pytest.mark.parametrize(
    "change",
    [{"trial": 1}, {"seed": 1}, {"method": "mtan"}, {"params": {"lambda_s": 2.0}}, {"trial": None}],
    ids=str,
)
def test_a_result_of_another_network_is_refused(tmp_path, change) -> None:
    job = job_of(tmp_path)
    job.write()
    keep_result(job, replace(result_of(job), **change))
    with pytest.raises(
        StudyRefusedError, match=r"result\.json holds the result of .*, not that of"
    ):
        read_result(job)


def test_a_missing_specification_is_none(tmp_path) -> None:
    assert read_spec(tmp_path / "trials" / "0000" / SPEC) is None


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
    for text, said in ((b"{", "is damaged"), (b"[]", "should be an object")):
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
