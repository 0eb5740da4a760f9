"""Standard streams that cannot end a command: closed, full, broken, or of a narrow encoding."""

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LastingFile(io.FileIO):
    """A descriptor that takes whatever is written: after its first error it drops everything.

    A command goes on when nobody can read what it prints, so that a training is not lost.

    Attributes:
        error: Its first error; None without one.
    """

    error: OSError | None = None

    def write(self, data: "Buffer", /) -> int:
        """Write as `io.FileIO` does, but wait for a descriptor that another process made busy."""
        size = memoryview(data).nbytes
        try:
            while self.error is None:
                written: int | None = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])
        except OSError as error:
            self.error = error
        return size


def make_lasting() -> None:
    """Replace standard output and standard error by streams on a `LastingFile`.

    Characters that their encodings lack are replaced. A stream that was closed is opened on
    /dev/null first: otherwise the next file to be opened would get its number, and output of a
    library would be written into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:  # not where a test or a notebook has replaced it
        sys.stdout = _lasting(1, sys.stdout, errors="replace")
    if sys.stderr is sys.__stderr__:
        # Names of files stay readable, even those that are no text.
        sys.stderr = _lasting(2, sys.stderr, errors="backslashreplace")


def _lasting(number: int, stream: TextIO | None, *, errors: str) -> io.TextIOWrapper:
    file = LastingFile(number, "w", closefd=False)
    encoding = "utf-8" if stream is None else stream.encoding
    line_buffering = number == 2 or file.isatty()
    writer = io.BufferedWriter(file)
    return io.TextIOWrapper(writer, encoding, errors, line_buffering=line_buffering)


def output_error() -> OSError | None:
    """Flush standard output, and find the error by which it was cut short; None without one.

    A reader that has closed its end of a pipe, such as `head`, has all that it wanted: no error.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return None
    stream.flush()
    file = getattr(stream.buffer, "raw", None)
    error = file.error if isinstance(file, LastingFile) else None
    return None if error is None or error.errno == errno.EPIPE else error
