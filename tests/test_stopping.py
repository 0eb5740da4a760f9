"""The first signal asks, the second ends, and so does the end of the time of grace."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gatesearch.stopping import never, stoppable

# Never looks whether it was asked, but for the thread that says so.
DEAF = """
import threading, time
from gatesearch.stopping import stoppable

def tell(stop):
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)

with stoppable(grace={grace}) as stop:
    threading.Thread(target=tell, args=(stop,), daemon=True).start()
    print("ready", flush=True)
    time.sleep(600)
"""


def deaf(grace: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF.format(grace=grace)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(second) -> None:
    process = deaf(grace=600)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(second)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 10


def test_grace_is_not_for_ever() -> None:
    process = deaf(grace=0.1)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]


def test_signals_are_the_main_threads() -> None:
    found = []

    def elsewhere() -> None:
        with stoppable() as stop:
            found.append(stop)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [never]
    with stoppable() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not stop()
    assert signal.getsignal(signal.SIGTERM) == before
