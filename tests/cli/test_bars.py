"""What a terminal shows while networks train, seen through a pseudo-terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

SCRIPT = """
import os, sys, time
from gatesearch.cli.progress import emitter
from gatesearch.events import NetworkTrained, Progress

def epochs(stage, done, total, **losses):
    values = {f"loss.{task}": value for task, value in losses.items()}
    return Progress(stage, done, total, "epochs", "", {**values, "lr": 0.1})

with emitter() as emit:
    emit(Progress("search interrogate 1.3xMTL", 3, 20, "trials"))
    emit(epochs("trial 3", 1, 480, semseg=9.0, depth=9.0, normals=9.0, edges=9.0))
    emit(Progress("trial 4", 7, 9, "epochs", "", {"loss.semseg": 0.25, "delta_mtl": 1.2}))
    emit(Progress("trial 4", 8, 9, "epochs", "", {"loss.semseg": 0.125, "delta_mtl": float("nan")}))
    emit(epochs("trial 5", 9, 9, semseg=7.5))
    for network, depth in (("mtl", 8.5), ("trial 2", 0.5123)):
        metrics = {"semseg": 40.21, "depth": depth, "normals": 19.12, "edges": 0.7123}
        emit(NetworkTrained(f"{network}: 4.021 GFLOPs", True, metrics))
    emit(epochs("trial 3", 12, 480, semseg=1.5123, depth=0.051234, normals=0.2234, edges=0.1234))
    time.sleep(0.5)  # the bars are drawn ten times per second
    sys.stderr.flush()
    os._exit(0)  # without removing the bars
"""
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def screen(width: int) -> list[str]:
    """The last lines that a terminal of this width shows while the script trains."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=end, stdout=end, stderr=end, env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(end)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the script has ended
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert process.wait() == 0
    text = COLOURS.sub("", written.decode()).replace("\r", "")
    return ("search" + text.rsplit("search", 1)[1]).splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_losses_and_the_newest_metrics_stand_below_the_bars(width) -> None:
    lines = screen(width)
    assert max(map(len, lines)) <= width
    bars = [line for line in lines if re.search(r"\d+/\d+", line)]
    assert [line.split()[:2] for line in bars] == [
        ["search", "interrogate"], ["trial", "3"], ["trial", "4"],
    ]  # fmt: skip
    assert "12/480 epochs" in bars[1]
    assert "left" in bars[1]
    assert " ".join(" ".join(lines[len(bars) :]).split()) == (
        "trial 3: loss semseg 1.51 depth 0.0512 normals 0.223 edges 0.123 "
        "trial 4: loss semseg 0.125, Δ_MTL +1.20 % "
        "validation of trial 2: semseg 40.2 depth 0.512 normals 19.1 edges 0.712"
    )
    if width >= 80:
        assert len(lines) == 6


def test_a_very_narrow_terminal_still_shows_every_value() -> None:
    shown = " ".join(" ".join(screen(30)).split())
    assert "loss semseg 1.51 depth 0.0512 normals 0.223 edges 0.123" in shown
    assert "validation of trial 2: semseg 40.2 depth 0.512 normals 19.1 edges 0.712" in shown
