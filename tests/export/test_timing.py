"""Networks are timed side by side, whatever one of them does."""

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
from gatesearch.export import timing, write_network
from gatesearch.export.runtimes import Load, Run
from gatesearch.export.timing import Bench, Figures, Timing, time_models
from gatesearch.methods import build_model
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.trials.kept_networks import as_compact
from tests.export.test_export import card
from tests.pruning.test_extract import put, scattered
from tests.search.tiny import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], Path]:
    """Name of a file -> where it lies: small, mtl and other.safetensors, mtl.onnx."""
    folder = tmp_path_factory.mktemp("shipped")
    study = tiny(folder)
    supernet = scattered(build_model(study, "interrogate"))
    assert isinstance(supernet, GatedSupernet)
    put(supernet, np.random.default_rng(5))
    mtl = as_compact(scattered(build_model(study, "mtl")), study)
    for network, name, form in [
        (extract(supernet), "small", "safetensors"),
        (mtl, "mtl", "safetensors"),
        (mtl, "other", "safetensors"),
        (mtl, "mtl", "onnx"),
    ]:
        write_network(network, card(name), folder / f"{name}.{form}", form=form)
    return lambda name: folder / name


# Runtimes that are named here are found again by the workers, which import this file.


def known(device: str) -> Load:
    """`small` takes 10 ms and 64 MiB, every other network 30 ms and nothing."""

    def load(file: Path, tasks: tuple[str, ...], images: np.ndarray) -> Run:
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert 254 < images.max() <= 255
        small = file.stem == "small"
        held = np.ones(64 << 20 if small else 1, np.uint8)
        return lambda: (time.sleep(0.01 if small else 0.03), held)

    return load


def choosy(device: str) -> Load:
    """Raises where it is to load `small`; the process of `other` is gone after the warm-up."""

    def load(file: Path, tasks: tuple[str, ...], images: np.ndarray) -> Run:
        if file.stem == "small":
            raise ValueError("no small ones\nand much more about it")
        left = iter(range(timing.WARM_UP))
        if file.stem == "other":
            return lambda: os._exit(7) if next(left, None) is None else None
        return lambda: time.sleep(0.001)

    return load


@pytest.fixture
def made_up(monkeypatch) -> None:
    monkeypatch.setattr(timing, "RUNTIMES", {"known": known, "choosy": choosy})


def test_what_is_known_beforehand_is_measured(files, made_up) -> None:
    # A worker's memory is its own, whatever its parent held.
    np.ones(1 << 29, np.uint8)
    paths = [files("small.safetensors"), files("mtl.safetensors")]
    small, mtl = time_models(paths, runtimes=["known"], batch=3, seconds=0.5).rows
    assert small.figures is not None
    assert mtl.figures is not None
    assert 10 <= small.figures.median_ms < 20
    assert 30 <= mtl.figures.median_ms < 50
    assert small.figures.images_per_second == pytest.approx(3e3 / small.figures.median_ms)
    assert small.figures.ratio == 1
    assert mtl.figures.ratio == mtl.figures.median_ms / small.figures.median_ms
    assert 64 <= small.figures.memory_mib < 80
    assert mtl.figures.memory_mib < 16


def test_networks_side_by_side_in_their_runtimes(files) -> None:
    paths = [files("mtl.safetensors"), files("mtl.onnx")]
    found = time_models(paths, runtimes=["eager", "onnxruntime"], batch=2, threads=1, seconds=0.2)
    assert (found.batch, found.device, found.threads) == (2, "cpu", 1)
    ran = [(row.runtime, row.file, row.error) for row in found.rows]
    assert ran == [
        ("eager", paths[0], ""), ("onnxruntime", paths[0], ""), ("onnxruntime", paths[1], ""),
    ]  # fmt: skip
    for row in found.rows:
        assert row.card == card("mtl")
        assert row.figures is not None
        assert 0 < row.figures.median_ms <= row.figures.p95_ms
        assert row.figures.memory_mib > 0
    ratios = [row.figures and row.figures.ratio for row in found.rows]
    assert ratios[:2] == [1, 1]
    # The same network, exported here and before.
    assert ratios[2] == pytest.approx(1, rel=0.5)


@pytest.mark.end_to_end
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(files) -> None:
    (row,) = time_models([files("mtl.safetensors")], runtimes=["compile"], seconds=0.2).rows
    assert row.error == ""
    assert row.figures is not None
    assert row.figures.ratio == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(files) -> None:
    found = time_models([files("mtl.safetensors")], runtimes=["eager"], device="auto", seconds=0.2)
    assert found.device == "cuda"
    assert found.rows[0].figures is not None
    assert found.rows[0].figures.memory_mib > 0


def test_a_runtime_that_fails_is_a_row_and_the_others_go_on(files, made_up) -> None:
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
        ("cut.onnx", {}, "is no ONNX model that can be read"),
        ("program.pt2", {}, "can hold pickles, which run code"),
        ("mtl.onnx", {"batch": 0}, "must hold 1 image or more, found 0"),
        ("mtl.onnx", {"runtimes": ["eagre"]}, "unknown runtime 'eagre'; did you mean 'eager'"),
        ("mtl.onnx", {"runtimes": ["eager"]}, "mtl.onnx runs in onnxruntime alone, found"),
        ("mtl.onnx", {"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_any_worker(
    files, monkeypatch, name, options, message
) -> None:
    if name.startswith("cut"):
        files(name).write_bytes(files("mtl.onnx").read_bytes()[:1000])
    monkeypatch.delattr(timing, "_Worker")
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


@pytest.mark.parametrize("said", ["loading", "measuring"])
def test_an_interrupt_ends_all_processes(files, said) -> None:
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
        while not process.stderr.readline().startswith(said):
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
