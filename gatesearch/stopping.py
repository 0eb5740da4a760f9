"""An orderly end: SIGTERM and Ctrl-C ask, whoever is at work keeps a checkpoint and stops."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Preempted machines are given some ten seconds; what cannot stop by then is cut off. The last ones
# are for the way out, which took more than two on a machine with more at work than it has cores.
GRACE = 7.0

Stop = Callable[[], bool]


def never() -> bool:
    """Nobody asks to stop."""
    return False


@contextmanager
def stoppable(grace: float = GRACE) -> Iterator[Stop]:
    """Turn the first SIGTERM or SIGINT into a request: the function given says whether there was.

    A second signal, or the end of the time of grace, raises KeyboardInterrupt where the process is.
    In another thread than the main one signals are left as they are.

    Args:
        grace: Seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    asked = threading.Event()
    # To the process, so that its main thread is woken from whatever it waits for.
    timer = threading.Timer(grace, os.kill, [os.getpid(), signal.SIGTERM])
    timer.daemon = True

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        timer.start()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def heed() -> Stop:
    """In a child process: SIGTERM asks, Ctrl-C is the parent's, and the parent's death ends all."""
    asked = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return asked.is_set


def _end_with_parent() -> None:
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
