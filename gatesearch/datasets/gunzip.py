"""Decompresses gzip, within bounds of memory and time."""

import io
import zlib
from typing import IO, Any

# Bytes that are read at once; small, since each gzip member copies what is left of them.
_CHUNK = 2**14
_GZIP = 31  # zlib's window bits for gzip with its checksum


class Gunzip(io.RawIOBase):
    """The decompressed content of a gzip file, as a stream.

    Unlike the standard library's reader, it skips the file's name and comment in its header
    quickly, however long they are.

    Args:
        raw: The gzip file, at its beginning.

    Raises:
        zlib.error: While reading: it is damaged.
        EOFError: While reading: it was cut.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._input = b""
        self._decoder: Any = None  # of the current member; None between members

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as possible; return the number of bytes, 0 at the end."""
        while True:
            self._input = self._input or self._raw.read(_CHUNK)
            at_end = not self._input
            if self._decoder is None:
                if at_end:
                    return 0
                self._input = self._input.lstrip(b"\0")  # padding
                if not self._input:
                    continue
                self._decoder = zlib.decompressobj(wbits=_GZIP)
            decoder = self._decoder
            data = decoder.decompress(self._input, len(buffer))
            if decoder.eof:
                self._input, self._decoder = decoder.unused_data, None
            else:
                self._input = decoder.unconsumed_tail
                if at_end and not data:
                    raise EOFError("the compressed stream ends early")
            if data:
                buffer[: len(data)] = data
                return len(data)
