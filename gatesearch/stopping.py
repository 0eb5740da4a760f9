"""Stop a run in order: SIGTERM or Ctrl-C asks it to keep checkpoints and end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds between the request to stop and KeyboardInterrupt. Preempted machines are killed about ten
# seconds after SIGTERM; the rest is for leaving the process, which has taken more than two seconds
# on a machine with more running processes than cores.
GRACE = 7.0

# Tells whether there was a request to stop.
Stop = Callable[[], bool]


def never() -> bool:
    """Return False: there is no request to stop."""
    return False


@contextmanager
def stoppable(grace: float = GRACE) -> Iterator[Stop]:
    """Turn the first SIGTERM or SIGINT into a request to stop; yield the function that tells of it.

    A second signal, or the end of the grace time, raises KeyboardInterrupt in the main thread. In
    other threads than the main one, signals keep their handlers and there is never a request.

    Args:
        grace: Seconds from the first signal to KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    asked = threading.Event()
    # The timer sends a signal, which wakes the main thread from whatever it waits for.
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
    """Set up a child process: SIGTERM requests a stop, and Ctrl-C is left to the parent process.

    If the parent dies, the child ends at once.

    Returns:
        Function that tells whether there was a request to stop.
    """
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
