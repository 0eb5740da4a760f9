"""Standard streams that are closed, full, broken or of a narrow encoding end no command."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gatesearch.cli.streams import LastingFile
from gatesearch.store.status import StatusFile, TrialOutcome
from tests.store.test_status import database

ROOT = Path(__file__).parents[2]
BEST = "best: trial 1, {}_MTL +1.25 % on validation, 0.5 GFLOPs; 1 on the front"
STATUS = "status --study scenes"
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no device that is full")


@pytest.fixture
def shell(tmp_path):
    """Run `gatesearch` with redirections in a folder with the store of an interrupted run."""
    folder = tmp_path / "runs" / "scenes"
    folder.mkdir(parents=True)
    database(folder, study="scenes")
    run = StatusFile(folder, study="scenes", fingerprint="f00d", wanted=4, n_trials=4)
    run.search([TrialOutcome(1, "complete", 1.25, 0.5)])

    def call(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        program = f'"{sys.executable}" -m gatesearch'
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {program} {command}"],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    return call


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: " ".join(environment.values()),
)
def test_characters_that_an_encoding_lacks_are_replaced(shell, environment) -> None:
    done = shell(STATUS, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii").splitlines()[3] == BEST.format("?")


def test_utf_8_is_kept(shell) -> None:
    done = shell(STATUS, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode("utf-8").splitlines()[3] == BEST.format("Δ")


@pytest.mark.slow("processes")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_bytes_that_are_no_text_are_named(shell, encoding) -> None:
    done = shell("report --study scenes --out $'\\xff\\xe9'", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert done.stderr.startswith(rb"gatesearch: error: no store in \udcff\udce9; ")


@pytest.mark.slow("processes")
def test_a_definition_with_bytes_that_are_no_text_is_refused(shell) -> None:
    done = shell("run --study scenes --set $'tasks.\\xff.kind=depth'")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert rb"--set takes text in the encoding of file names here, utf-8, found 'tasks.\udcff" in (
        done.stderr
    )


@pytest.mark.slow("processes")
@pytest.mark.parametrize("option", ["out", "data", "reports", "reuse"])
def test_a_folder_that_some_libraries_could_not_open_is_refused_at_once(
    shell, tmp_path, option
) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = shell(f"run --study scenes --{option} $'a\\xff'")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"--{option} takes text in the encoding".encode() in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow("processes")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_silent(shell, closed) -> None:
    done = shell(f"{STATUS} {closed}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"best: trial 1" in done.stdout) == (closed == "2>&-")
    refused = shell(f"status --study scene {closed}")
    assert refused.returncode == 2
    assert (b"did you mean 'scenes'?" in refused.stderr) == (closed == ">&-")


@pytest.mark.slow("processes")
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path) -> None:
    code = """
import os, sys
from gatesearch.cli.streams import make_lasting
make_lasting()
with open("file", "wb") as file:
    os.write(1, b"output of a library")
    print("output", file.fileno() > 2)
    os.system("echo output of a child")
"""
    command = ["bash", "-c", f"'{sys.executable}' -c '{code}' <&- >&- 2>&-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow("processes")
@pytest.mark.parametrize("options", ["", "--json"])
def test_a_reader_that_has_enough_is_no_error(shell, options) -> None:
    done = shell(f"{STATUS} {options} | true")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = shell(f"{STATUS} | head -1")
    assert done.stdout == b"scenes: 1 of 4 trials ended, 0 in work\n"
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow("processes")
@FULL
@pytest.mark.parametrize("command", [STATUS, f"{STATUS} --json", "--version", "run --help"])
def test_a_full_output_is_one_line_and_exit_3(shell, command) -> None:
    done = shell(f"{command} > /dev/full")
    assert done.returncode == 3
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(
        "gatesearch: error: cannot write standard output: No space left on device; what the "
    )


@pytest.mark.slow("processes")
@FULL
def test_a_full_standard_error_hides_nothing_else(shell) -> None:
    done = shell(f"{STATUS} --json 2> /dev/full")
    assert (done.returncode, json.loads(done.stdout)["study"]) == (0, "scenes")
    assert shell("status --study scene 2> /dev/full").returncode == 2


@FULL
@pytest.mark.slow("trains")
@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&1 | true", "2>&- >&-"])
def test_a_training_outlives_its_terminal(shell, tmp_path, redirection) -> None:
    tiny = ROOT / "tests" / "end_to_end" / "tiny.toml"
    done = shell(f"run --study {tiny} --n-trials 1 {redirection}")
    assert done.returncode == 0
    told = json.loads(shell(f"status --study {tiny} --json").stdout)
    assert told["trials"]["complete"] == 1
    assert (tmp_path / "reports" / "tiny.pdf").is_file()


def test_the_first_error_is_kept_and_the_rest_dropped() -> None:
    reader, writer = os.pipe()
    with LastingFile(writer, "w") as file:
        assert (file.write(b"abc"), file.error) == (3, None)
        os.close(reader)
        assert (file.write(b"abcd"), file.error.errno) == (4, errno.EPIPE)
        assert file.write(memoryview(b"12345678").cast("I")) == 8


def test_a_busy_descriptor_is_waited_for() -> None:
    """As one that does not block, which another program has made of a shared terminal."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    room = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    received = bytearray()

    def read() -> None:
        time.sleep(0.1)
        while len(received) < 2 * room:
            received.extend(os.read(reader, room))

    thread = threading.Thread(target=read)
    with LastingFile(writer, "w") as file:
        thread.start()
        assert file.write(b"a" * room) == room
        assert file.write(b"b" * room) > 0
        assert file.error is None
        os.set_blocking(writer, True)
        os.write(writer, b"c" * room)
    thread.join()
    os.close(reader)
    assert received[: room + 1] == b"a" * room + b"b"
