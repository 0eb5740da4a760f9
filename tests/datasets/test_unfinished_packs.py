"""Packs whose frames several processes make: the same bytes, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gatesearch.datasets import frame_pool, scratch
from gatesearch.datasets.frame_faults import FaultyFramesError, faults
from gatesearch.datasets.frame_pool import call_for_each
from gatesearch.datasets.pack_reader import check_pack
from gatesearch.datasets.pack_writer import NotedFrame, SplitFrames, write_pack
from gatesearch.datasets.scratch import remove_leftovers, scratch_folder
from gatesearch.errors import DataError, UsageError
from gatesearch.tasks import build_task
from tests.datasets.test_pack_writer import files_of_at_most
from tests.toy_packs import toy_frame

SIZE = (5, 7)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Frames:
    """Makes frames, and appends the number of each to a file.

    Attributes:
        log: The file.
        start: Number of the first.
        seconds: How long each takes.
        broken: Places that cannot be made.
        dies: Place at which the process dies.
    """

    log: Path
    start: int = 0
    seconds: float = 0.0
    broken: tuple[int, ...] = ()
    dies: int = -1

    def __call__(self, index):
        if index == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        number = self.start + index
        with self.log.open("a") as file:
            file.write(f"{number}\n")
        time.sleep(self.seconds)
        if index in self.broken:
            raise DataError(f"frame {number} is broken")
        frame = toy_frame(number, size=SIZE, classes=3)
        if number % 3 == 1:
            frame["semseg"] = np.full(SIZE, 255, np.uint8)
        return NotedFrame(frame, {"number": number})

    def made(self):
        return sorted(map(int, self.log.read_text().split())) if self.log.exists() else []


def numbers_of(facts):
    return [f"frames {[fact['number'] for fact in facts]}"]


def write(folder, log, *, identity="x", processes=1, seconds=0.0, train=6, **options):
    options = {"broken": (), "dies": -1, "start": 0} | options
    fields = {
        kind: build_task(kind, {"classes": 3 if kind == "semseg" else 1}, where="toy")
        for kind in ("semseg", "depth", "normals", "edges")
    }
    write_pack(
        folder,
        dataset="toy",
        size=SIZE,
        fields=fields,
        splits={
            "train": SplitFrames(
                [f"a{i}" for i in range(train)],
                Frames(log, seconds=seconds, **options),
                numbers_of,
            ),
            "test": SplitFrames(["b0", "b1"], Frames(log, 100, seconds), numbers_of),
        },
        source="made up",
        identity=identity,
        processes=processes,
        emit=lambda event: None,
    )
    return check_pack(folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The pack of one process that was never killed."""
    folder = tmp_path_factory.mktemp("expected")
    return write(folder / "toy", folder / "log", identity="")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def by_another(data, log, **options):
    """Begin to write in another process."""
    words = ", ".join(f"{key}={value!r}" for key, value in options.items())
    code = (
        "from pathlib import Path; from tests.datasets.test_unfinished_packs import write\n"
        f"write(Path({str(data)!r}) / 'toy', Path({str(log)!r}), {words})"
    )

    def default_signals():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=default_signals, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(condition, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def journal(data):
    paths = list(data.glob(".toy.unfinished-*/journal.jsonl"))
    return paths[0] if paths else None


def journaled(data):
    path = journal(data)
    return 0 if path is None else path.read_text().count("\n")


def test_frames_by_iterator_and_by_function_are_the_same(tmp_path, expected):
    frames = Frames(tmp_path / "log")
    write_pack(
        tmp_path / "toy", dataset="toy", size=SIZE,
        fields={k: build_task(k, {"classes": 3 if k == "semseg" else 1}, where="toy")
                for k in ("semseg", "depth", "normals", "edges")},
        splits={
            "train": SplitFrames([f"a{i}" for i in range(6)],
                                 (frames(i).frame for i in range(6))),
            "test": SplitFrames(["b0", "b1"], (frames(100 + i).frame for i in range(2))),
        },
        source="made up", emit=lambda event: None,
    )  # fmt: skip
    assert check_pack(tmp_path / "toy").digest == expected.digest
    assert expected.manifest.splits["train"].labelled["semseg"] == 4
    assert expected.labelled("train", "semseg").tolist() == [True, False, True, True, False, True]
    assert expected.manifest.notes == ("frames [0, 1, 2, 3, 4, 5]", "frames [100, 101]")
    np.testing.assert_array_equal(
        expected.array("train", "image")[4], toy_frame(4, size=SIZE, classes=3)["image"]
    )


@pytest.mark.slow("processes")
@pytest.mark.parametrize("processes", [2, 5])
def test_several_processes_give_the_same_pack(tmp_path, expected, processes):
    made = write(tmp_path / "toy", tmp_path / "log", processes=processes)
    assert made.manifest == expected.manifest
    assert Frames(tmp_path / "log").made() == [0, 1, 2, 3, 4, 5, 100, 101]
    assert names(tmp_path) == ["log", "toy"]


@pytest.mark.slow("processes")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_preparation_goes_on(tmp_path, expected, processes):
    data, log = tmp_path / "data", tmp_path / "log"
    data.mkdir()
    for kills in range(3):
        other = by_another(data, log, processes=processes, seconds=0.3)
        wait_for(lambda: journaled(data) > kills)  # noqa: B023
        other.kill()
        other.communicate()
        before = journaled(data)
        time.sleep(0.5)  # children of the killed process end by themselves
        remove_leftovers(data)  # keeps what is unfinished
        assert len(names(data)) == 1
    assert before >= 3
    log.unlink()
    made = write(data / "toy", log)
    assert made.manifest == expected.manifest
    assert len(Frames(log).made()) == 8 - before
    assert names(data) == ["toy"]


@contextmanager
def interrupted_after(count):
    """Raise KeyboardInterrupt when so many frames are in the journal."""
    done = 0
    real = frame_pool.call_for_each

    def few(*arguments, **options):
        nonlocal done
        for result in real(*arguments, **options):
            yield result
            done += 1
            if done == count:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatesearch.datasets.pack_writer.call_for_each", few)
        with pytest.raises(KeyboardInterrupt):
            yield


def interrupt(folder, log, *, after=4, **options):
    with interrupted_after(after):
        write(folder, log, **options)
    log.unlink()


def test_an_interrupted_preparation_goes_on(tmp_path, expected):
    log = tmp_path / "log"
    interrupt(tmp_path / "toy", log)
    made = write(tmp_path / "toy", log)
    assert made.manifest == expected.manifest
    assert Frames(log).made() == [4, 5, 100, 101]
    assert names(tmp_path) == ["log", "toy"]


def spoil_bytes(folder):
    path = folder / "train" / "depth.npy"
    data = bytearray(path.read_bytes())
    data[-5 * SIZE[0] * SIZE[1] * 4] ^= 1  # of frame 1 of 6
    path.write_bytes(data)


def cut_journal(folder):
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-5])


def add_nonsense(folder):
    lines = [
        "nonsense", "[]", "[" * 5000, '["train", 99, 1, [true, true, true, true], {}]',
        '["../..", 0, 1, [true, true, true, true], {}]', '["train", -1, 0, [], {}]',
        '["train", 5, 0, [true, true, true, true], {}]',
        '["train", 5, 0, [1, 1, 1, 1], {}]', "\0\xff",
    ]  # fmt: skip
    with (folder / "journal.jsonl").open("a") as file:
        file.write("".join("\n" + line for line in lines))


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (spoil_bytes, [1, 4, 5, 100, 101]),
        (cut_journal, [3, 4, 5, 100, 101]),
        (add_nonsense, [4, 5, 100, 101]),
        (lambda folder: (folder / "journal.jsonl").unlink(), [0, 1, 2, 3, 4, 5, 100, 101]),
        (lambda folder: (folder / "train/depth.npy").unlink(), [0, 1, 2, 3, 4, 5, 100, 101]),
        (lambda folder: (folder / "test/depth.npy").unlink(), [4, 5, 100, 101]),
        (lambda folder: os.truncate(folder / "train/depth.npy", 400),
         [0, 1, 2, 3, 4, 5, 100, 101]),
        (lambda folder: (folder / "train/.labelled.npy").write_text("old"), [4, 5, 100, 101]),
    ],
)  # fmt: skip
def test_frames_count_as_written_only_if_they_are_whole(tmp_path, expected, damage, again):
    log = tmp_path / "log"
    interrupt(tmp_path / "toy", log)
    damage(next(tmp_path.glob(".toy.unfinished-*")))
    assert write(tmp_path / "toy", log).manifest == expected.manifest
    assert Frames(log).made() == again


@pytest.mark.parametrize("change", [{"identity": "other files"}, {"train": 5}])
def test_another_source_begins_anew(tmp_path, change):
    log = tmp_path / "log"
    interrupt(tmp_path / "toy", log, after=3)
    made = write(tmp_path / "toy", log, **change)
    assert len(Frames(log).made()) == made.frames("train") + 2
    assert names(tmp_path) == ["log", "toy"]


def test_without_an_identity_nothing_is_kept(tmp_path):
    interrupt(tmp_path / "toy", tmp_path / "log", identity="")
    assert names(tmp_path) == []


def test_what_is_unfinished_goes_after_a_week(tmp_path, monkeypatch):
    interrupt(tmp_path / "toy", tmp_path / "log")
    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 1
    monkeypatch.setattr(scratch, "_KEPT_SECONDS", -1.0)
    with scratch_folder(tmp_path / "another"):
        assert [name for name in names(tmp_path) if "toy" in name] == []


def test_two_at_once_do_not_share_what_is_unfinished(tmp_path, expected):
    """The second finds the folder locked, makes all frames itself, and both packs are whole."""
    log, other_log = tmp_path / "log", tmp_path / "other"
    ready, go = threading.Event(), threading.Event()

    class Slow(Frames):
        def __call__(self, index):
            ready.set()
            assert go.wait(60)
            return super().__call__(index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.datasets.test_unfinished_packs.Frames", Slow)
        first = threading.Thread(target=write, args=(tmp_path / "toy", log))
        first.start()
        assert ready.wait(60)
    second = write(tmp_path / "toy", other_log)
    go.set()
    first.join()
    assert second.manifest == check_pack(tmp_path / "toy").manifest == expected.manifest
    assert len(Frames(other_log).made()) == len(Frames(log).made()) == 8
    assert names(tmp_path) == ["log", "other", "toy"]


@pytest.mark.slow("processes")
def test_ctrl_c_ends_all_at_once_and_keeps_what_is_made(tmp_path, expected):
    data, log = tmp_path / "data", tmp_path / "log"
    data.mkdir()
    other = by_another(data, log, processes=2, seconds=0.4)
    wait_for(lambda: journaled(data) > 0)
    children = Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split()
    started = time.monotonic()
    other.send_signal(signal.SIGINT)
    _, error = other.communicate(timeout=60)
    assert time.monotonic() - started < 5
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert "frame_pool" not in error.split("KeyboardInterrupt")[-1]
    assert len(children) == 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    before = journaled(data)
    log.unlink()
    assert write(data / "toy", log).manifest == expected.manifest
    assert len(Frames(log).made()) == 8 - before


@pytest.mark.parametrize(
    "processes", [1, None, pytest.param(2, marks=pytest.mark.slow("processes"))]
)
def test_all_faulty_frames_are_named_and_nothing_is_left(tmp_path, processes):
    log = tmp_path / "log"
    with pytest.raises(FaultyFramesError) as error:
        write(tmp_path / "toy", log, broken=(4, 1), processes=processes)
    assert str(error.value) == (
        "2 of 8 frames are faulty:\n  frame 1 is broken\n  frame 4 is broken"
    )
    assert [(fault.id, fault.fault) for fault in error.value.faults] == [
        ("a1", "frame 1 is broken"), ("a4", "frame 4 is broken"),
    ]  # fmt: skip
    assert names(tmp_path) == ["log"]
    with pytest.raises(FaultyFramesError, match=r"^frame 4 is broken$"):
        write(tmp_path / "toy", log, broken=(4,), processes=processes)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow("processes"))])
def test_faults_without_writing(tmp_path, processes):
    log = tmp_path / "log"
    events = []
    found = faults(
        Frames(log, broken=(3, 0)), list("abcd"), processes=processes, emit=events.append
    )
    assert [(f.number, f.id, f.fault) for f in found] == [
        (0, "a", "frame 0 is broken"), (3, "d", "frame 3 is broken"),
    ]  # fmt: skip
    assert [event.done for event in events] == [1, 2, 3, 4]
    assert names(tmp_path) == ["log"]


@pytest.mark.slow("processes")
def test_a_process_that_dies_is_told_with_its_frame(tmp_path):
    with pytest.raises(DataError, match=r"the process that made frame a2 ended with -9 \(out of"):
        write(tmp_path / "toy", tmp_path / "log", dies=2, processes=2)
    assert names(tmp_path) == ["log"]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    with files_of_at_most(300), pytest.raises(DataError, match=r"cannot write .*toy: .*free space"):
        write(tmp_path / "toy", tmp_path / "log")
    assert names(tmp_path) == []


def setting(number):
    import torch

    print("this must not get between the results")
    return number, torch.get_num_threads(), torch.cuda.is_available(), os.getpid()


def fails(number):
    class OddError(Exception):
        pass

    raise OddError(f"odd {number}")


@pytest.mark.slow("processes")
def test_workers_take_one_thread_and_no_device():
    results = list(call_for_each(setting, range(5), processes=2))
    assert sorted(number for number, *_ in results) == [0, 1, 2, 3, 4]
    assert {rest[:2] for _, *rest in results for rest in [tuple(rest)]} == {(1, False)}
    assert os.getpid() not in {pid for *_, pid in results}
    with pytest.raises(RuntimeError, match="OddError: odd"):
        list(call_for_each(fails, range(2), processes=2))


@pytest.mark.slow("processes")
@pytest.mark.parametrize("safe", [True, False])
def test_files_in_the_current_folder_run_only_where_python_looks_there(tmp_path, safe):
    (tmp_path / "colorsys.py").write_text("def odd(number): return number % 2")
    code = (
        "import colorsys, gatesearch.datasets.frame_pool as pool\n"
        "function = getattr(colorsys, 'odd', abs)\n"
        "print(sorted(pool.call_for_each(function, range(4), processes=2)))"
    )
    done = subprocess.run(
        [sys.executable, *(["-P"] if safe else []), "-c", code], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    assert done.stdout.strip() == ("[0, 1, 2, 3]" if safe else "[0, 0, 1, 1]"), done.stderr


@pytest.mark.slow("processes")
def test_no_file_of_the_current_folder_runs_in_workers(tmp_path):
    (tmp_path / "torch.py").write_text("open('was_run', 'w')")
    code = (
        "import gatesearch.datasets.frame_pool as pool\n"
        "print(sorted(pool.call_for_each(abs, range(4), processes=2)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[0, 1, 2, 3]", done.stderr
    assert not (tmp_path / "was_run").exists()


@pytest.mark.slow("processes")
def test_what_takes_long_goes_on_in_processes_by_itself(monkeypatch):
    monkeypatch.setattr(frame_pool, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(frame_pool, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(frame_pool, "cores", lambda: 2)
    results = list(call_for_each(setting, range(6), processes=None))
    assert sorted(number for number, *_ in results) == list(range(6))
    assert [number for number, *_, pid in results if pid == os.getpid()] == [0]
    own = list(call_for_each(lambda number: (number, os.getpid()), range(6), processes=None))
    assert own == [(number, os.getpid()) for number in range(6)]  # not picklable


def test_no_process_at_all():
    with pytest.raises(UsageError, match="processes must be at least 1, found 0"):
        list(call_for_each(partial(setting), range(2), processes=0))


def test_the_journal_is_plain_lines(tmp_path):
    interrupt(tmp_path / "toy", tmp_path / "log", after=1)
    lines = journal(tmp_path).read_text().split("\n")
    split, index, checksum, labelled, facts = json.loads(lines[1])
    assert (split, index, labelled, facts) == ("train", 0, [True] * 4, {"number": 0})
    assert isinstance(checksum, int)
