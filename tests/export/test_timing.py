"""Networks are timed side by side, whatever one of them does.

No test compares times of real runs: where a figure is expected, a clock of the test's own gave it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gatesearch.cli import main
from gatesearch.errors import DataError, UsageError
from gatesearch.export import timing, timing_worker, write_network
from gatesearch.export.runtimes import Load, Run
from gatesearch.export.timing import ROUNDS, Bench, Figures, Timing, compare, time_models
from gatesearch.export.timing_worker import Measurement, TimingJob, measure_laps
from gatesearch.methods import build_model
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.trials.kept_networks import as_compact
from tests.export.test_export import card
from tests.pruning.test_extract import put, scattered
from tests.search.tiny import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], Path]:
    """Name of a file -> its path: small, mtl and other.safetensors, mtl.onnx."""
    folder = tmp_path_factory.mktemp("shipped")
    study = tiny(folder)
    supernet = scattered(build_model(study, "interrogate"))
    assert isinstance(supernet, GatedSupernet)
    put(supernet, np.random.default_rng(5))
    mtl = as_compact(scattered(build_model(study, "mtl")), "mtl", study)
    for network, name, form in [
        (extract(supernet), "small", "safetensors"),
        (mtl, "mtl", "safetensors"),
        (mtl, "other", "safetensors"),
        (mtl, "mtl", "onnx"),
    ]:
        write_network(network, card(name), folder / f"{name}.{form}", form=form)
    return lambda name: folder / name


class FakeClock:
    """Stands still until something takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


# The workers import this file to find the runtimes named here.


def known(device: str) -> Load:
    """`small` takes 1/8 s and 64 MiB, every other network 1/2 s and nothing."""

    def load(file: Path, tasks: tuple[str, ...], images: np.ndarray) -> Run:
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert 254 < images.max() <= 255
        small = file.stem == "small"
        held = np.ones(64 << 20 if small else 1, np.uint8)
        clock = timing_worker.perf_counter = FakeClock()
        return lambda: (clock.pass_seconds(0.125 if small else 0.5), held)

    return load


def choosy(device: str) -> Load:
    """Raises where it is to load `small`; the process of `other` is gone after the warm-up."""

    def load(file: Path, tasks: tuple[str, ...], images: np.ndarray) -> Run:
        if file.stem == "small":
            raise ValueError("no small ones\nand much more about it")
        left = iter(range(timing_worker.WARM_UP))
        if file.stem == "other":
            return lambda: os._exit(7) if next(left, None) is None else None
        return lambda: None

    return load


@pytest.fixture
def fake_runtimes(monkeypatch) -> None:
    for module in (timing, timing_worker):
        monkeypatch.setattr(module, "RUNTIMES", {"known": known, "choosy": choosy})


@pytest.mark.slow("processes")
def test_what_is_known_beforehand_is_measured(files, fake_runtimes) -> None:
    # A worker's memory is its own, whatever its parent held.
    np.ones(1 << 29, np.uint8)
    paths = [files("small.safetensors"), files("mtl.safetensors")]
    small, mtl = time_models(paths, runtimes=["known"], batch=3, seconds=5.0).rows
    assert small.figures is not None
    assert mtl.figures is not None
    assert (small.figures.median_ms, small.figures.p95_ms) == (125.0, 125.0)
    assert (mtl.figures.median_ms, mtl.figures.p95_ms) == (500.0, 500.0)
    assert (small.figures.images_per_second, mtl.figures.images_per_second) == (24.0, 6.0)
    assert (small.figures.ratio, mtl.figures.ratio) == (1.0, 4.0)
    assert 64 <= small.figures.memory_mib < 80
    assert mtl.figures.memory_mib < 16


class TestMeasureLaps:
    @pytest.fixture
    def clock(self, monkeypatch) -> FakeClock:
        clock = FakeClock()
        monkeypatch.setattr(timing_worker, "perf_counter", clock)
        return clock

    def test_each_run_is_timed_but_the_first(self, clock) -> None:
        takes = iter([64.0, 1.0, 0.5, 2.0, 4.0, 8.0])
        # After 1, 1.5 and 3.5 s there is time left, after 7.5 s there is none.
        assert measure_laps(lambda: clock.pass_seconds(next(takes)), 4.0) == [1.0, 0.5, 2.0, 4.0]

    def test_there_is_one_lap_whatever_it_takes(self, clock) -> None:
        assert measure_laps(lambda: clock.pass_seconds(60.0), 0.0) == [60.0]


class TestCompare:
    @staticmethod
    def measured(
        name: str, *laps: float, runtime: str = "eager", batch: int = 1, error: str = ""
    ) -> Measurement:
        job = TimingJob(Path(name), card(name), runtime, batch, "cpu", 1)
        return Measurement(job, laps, 7.0, error)

    def test_figures_by_hand(self) -> None:
        laps = [0.25, 0.125, 0.5, 0.375, 2.0]
        (row,) = compare([self.measured("a", *laps, batch=3)])
        # The median of five is the third; the 95th percentile lies 0.8 of the way from the fourth
        # (0.5) to the fifth (2.0).
        assert row == Timing(
            Path("a"), card("a"), "eager",
            Figures(375.0, pytest.approx(1700.0), 8.0, 7.0, 1.0),
        )  # fmt: skip

    def test_ratios_are_to_the_first_network_of_the_same_runtime(self) -> None:
        rows = compare(
            [
                self.measured("a", 0.5),
                self.measured("b", 0.25),
                self.measured("a", 4.0, runtime="onnxruntime"),
                self.measured("b", 6.0, runtime="onnxruntime"),
            ]
        )
        assert [row.figures and row.figures.ratio for row in rows] == [1.0, 0.5, 1.0, 1.5]

    def test_without_the_first_network_there_are_no_ratios(self) -> None:
        first, second, other = compare(
            [
                self.measured("a", error="no compiler"),
                self.measured("b", 0.25),
                self.measured("a", 0.5, runtime="onnxruntime"),
            ]
        )
        assert first == Timing(Path("a"), card("a"), "eager", None, "no compiler")
        assert second.figures is not None
        assert second.figures.ratio is None
        assert other.figures is not None
        assert other.figures.ratio == 1.0


def test_networks_of_a_runtime_take_turns_next_to_each_other(files, monkeypatch) -> None:
    calls = []

    class FakeWorker:
        def __init__(self, job: TimingJob) -> None:
            self.job = job
            self.name = f"{job.file.stem} {job.runtime}"

        def load(self, folder: Path) -> None:
            calls.append(("load", self.name))

        def measure(self, seconds: float) -> None:
            calls.append((seconds, self.name))

        def hang_up(self) -> None:
            calls.append(("hang up", self.name))

        def end(self, wait: float) -> None:
            assert 0 <= wait <= timing_worker.GRACE

        @property
        def measurement(self) -> Measurement:
            return Measurement(self.job, [1.0], 0.0)

    monkeypatch.setattr(timing, "Worker", FakeWorker)
    paths = [files("small.safetensors"), files("mtl.safetensors")]
    names = ["eager", "onnxruntime"]
    rows = time_models(paths, runtimes=names, seconds=10.0).rows
    turn = ["small eager", "mtl eager", "small onnxruntime", "mtl onnxruntime"]
    assert calls == [
        (what, name) for what in ("load", *[10.0 / ROUNDS] * ROUNDS, "hang up") for name in turn
    ]
    assert [f"{row.file.stem} {row.runtime}" for row in rows] == turn


@pytest.mark.slow("processes")
def test_networks_side_by_side_in_their_runtimes(files) -> None:
    paths = [files("mtl.safetensors"), files("mtl.onnx")]
    timed = time_models(paths, runtimes=["eager", "onnxruntime"], batch=2, threads=1, seconds=0.2)
    assert (timed.batch, timed.device, timed.threads) == (2, "cpu", 1)
    ran = [(row.runtime, row.file, row.error) for row in timed.rows]
    assert ran == [
        ("eager", paths[0], ""), ("onnxruntime", paths[0], ""), ("onnxruntime", paths[1], ""),
    ]  # fmt: skip
    for row in timed.rows:
        assert row.card == card("mtl")
        assert row.figures is not None
        assert 0 < row.figures.median_ms <= row.figures.p95_ms
        assert row.figures.memory_mib > 0
    medians = [row.figures.median_ms for row in timed.rows if row.figures]
    ratios = [row.figures.ratio for row in timed.rows if row.figures]
    # The first of each runtime, and the third to the second.
    assert ratios == [1, 1, pytest.approx(medians[2] / medians[1])]


@pytest.mark.slow("compiles")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(tmp_path) -> None:
    study = tiny(tmp_path, "model.backbone=cnn4", "model.output_stride=8")  # each layer is compiled
    mtl = as_compact(scattered(build_model(study, "mtl")), "mtl", study)
    write_network(mtl, card("mtl"), tmp_path / "mtl.safetensors", form="safetensors")
    (row,) = time_models([tmp_path / "mtl.safetensors"], runtimes=["compile"], seconds=0.2).rows
    assert row.error == ""
    assert row.figures is not None
    assert row.figures.ratio == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(files) -> None:
    timed = time_models([files("mtl.safetensors")], runtimes=["eager"], device="auto", seconds=0.2)
    assert timed.device == "cuda"
    assert timed.rows[0].figures is not None
    assert timed.rows[0].figures.memory_mib > 0


@pytest.mark.slow("processes")
def test_a_runtime_that_fails_is_a_row_and_the_others_go_on(files, fake_runtimes) -> None:
    paths = [files(f"{name}.safetensors") for name in ("small", "mtl", "other")]
    raised, fine, died = time_models(paths, runtimes=["choosy"], seconds=0.1).rows
    assert (raised.figures, raised.error) == (None, "ValueError: no small ones")
    assert fine.error == ""
    assert fine.figures is not None
    assert fine.figures.ratio is None
    assert died.figures is None
    assert died.error.startswith("its process ended with code 7")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("absent.onnx", {}, "no model .*absent.onnx; write one with `gatesearch export`"),
        ("cut.safetensors", {}, "cut.card.json beside it"),
        ("cut.onnx", {}, "it ends in no checksum"),
        ("program.pt2", {}, "can hold pickles, which run code"),
        ("mtl.onnx", {"batch": 0}, "must hold 1 image or more, found 0"),
        ("mtl.onnx", {"runtimes": ["eagre"]}, "unknown runtime 'eagre'; did you mean 'eager'"),
        ("mtl.onnx", {"runtimes": ["eager"]}, "mtl.onnx runs in onnxruntime alone, found"),
        ("mtl.onnx", {"device": "gpu"}, "unknown device 'gpu'"),
        (
            "mtl.onnx",
            {"tasks": ["depth"]},
            r"cuts the network of a .safetensors, .* export --tasks",
        ),
        ("mtl.safetensors", {"tasks": ["dpth"]}, "unknown task 'dpth'; did you mean 'depth'"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_any_worker(
    files, monkeypatch, name, options, message
) -> None:
    if name.startswith("cut"):
        files(name).write_bytes(files("mtl.onnx").read_bytes()[:1000])
    monkeypatch.delattr(timing, "Worker")
    with pytest.raises((DataError, UsageError), match=message):
        time_models([files("mtl.safetensors"), files(name)], **options)


@pytest.mark.parametrize(
    ("there", "options", "message"),
    [
        (False, {"device": "cuda"}, "found none; use --device cpu"),
        (True, {"device": "auto"}, "mtl.onnx runs in onnxruntime alone, .* on cuda"),
        (True, {"device": "cuda", "runtimes": ["onnxruntime"]}, "timed on the processor"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(
    files, monkeypatch, there, options, message
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    with pytest.raises(UsageError, match=message):
        time_models([files("mtl.onnx")], **options)


@pytest.mark.slow("processes")
def test_json_of_the_command_line(files) -> None:
    models = [str(files("small.safetensors")), str(files("mtl.safetensors"))]
    command = [sys.executable, "-m", "gatesearch", "bench", "--model", *models]
    options = ["--runtime", "eager", "--batch", "2", "--threads", "1", "--seconds", "0.2", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, *options], cwd=root, capture_output=True, text=True, check=True
    )
    printed = json.loads(done.stdout.splitlines()[-1])
    rows = printed.pop("rows")
    assert printed == {"batch": 2, "device": "cpu", "threads": 1}
    assert [row["file"] for row in rows] == models
    for row in rows:
        assert set(row) == {
            "file", "network", "runtime", "gflops", "params_m", "size", "median_ms", "p95_ms",
            "images_per_second", "memory_mib", "ratio",
        }  # fmt: skip
        assert row["size"] == [96, 128]
        assert row["images_per_second"] == pytest.approx(2e3 / row["median_ms"])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_failures_on_the_command_line(monkeypatch, capsys, options) -> None:
    rows = (
        Timing(Path("a.safetensors"), card("a"), "compile", None, "no compiler"),
        Timing(Path("b.safetensors"), card("b"), "compile", Figures(2.0, 3.0, 500.0, 7.0, None)),
    )
    monkeypatch.setattr("gatesearch.export.time_models", lambda *_, **__: Bench(1, "cpu", 1, rows))
    monkeypatch.setattr(sys, "argv", ["gatesearch", "bench", "a.safetensors", *options])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == "warning: a.safetensors in compile: no compiler\n"
    if options:
        failed, fine = json.loads(printed.out)["rows"]
        assert failed["error"] == "no compiler"
        assert not {"median_ms", "ratio"} & set(failed)
        assert (fine["median_ms"], fine["ratio"]) == (2.0, None)
        assert "error" not in fine
    else:
        *_, failed, fine = printed.out.splitlines()
        assert failed.split()[-1] == "failed"
        assert fine.split()[-4:] == ["2.00", "3.00", "500.0", "7"]


@pytest.mark.slow("processes")
@pytest.mark.parametrize("step", ["loading", "measuring"])
def test_an_interrupt_ends_all_processes(files, step) -> None:
    models = [str(files("small.safetensors")), str(files("mtl.safetensors"))]
    command = [sys.executable, "-m", "gatesearch", "bench", "--runtime", "eager", "--seconds", "60"]
    with subprocess.Popen(
        [*command, *models],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell started in the background has its children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith(step):
            assert process.poll() is None
        # As a terminal does: to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
        assert process.wait() == 130
    deadline = time.monotonic() + 20
    while _alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
