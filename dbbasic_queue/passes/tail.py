"""The end of what a job's process has printed: the last 64 KiB that came out of a pipe."""

from __future__ import annotations

import os
from contextlib import suppress

KEPT_BYTES = 64 << 10
_READ_BYTES = 64 << 10
_MOST_READS_AT_THE_END = 64
"""A pipe may hold up to 1 MiB, but a process that escaped could fill it again and again."""


class Printed:
    """The last bytes that an attempt has printed, and how many came before them."""

    __slots__ = ("kept", "left_out")

    def __init__(self, kept: bytes, left_out: int) -> None:
        self.kept = kept
        self.left_out = left_out


class Tail:
    """Reads a pipe, and keeps the last 64 KiB. `fd` is the pipe's reading end."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.kept = bytearray()
        self._read_bytes = 0

    @property
    def left_out(self) -> int:
        """How many bytes came before `kept`."""
        return self._read_bytes - len(self.kept)

    def read(self) -> bool:
        """Read some of what is in the pipe; return False at its end: no process can write to it.

        Raises BlockingIOError if nothing is in the pipe now.
        """
        part = os.read(self.fd, _READ_BYTES)
        self._read_bytes += len(part)
        self.kept += part
        del self.kept[:-KEPT_BYTES]
        return bool(part)

    def read_rest(self) -> None:
        """Read what is left in the pipe, without waiting for more."""
        with suppress(BlockingIOError):
            for _ in range(_MOST_READS_AT_THE_END):
                if not self.read():
                    break
