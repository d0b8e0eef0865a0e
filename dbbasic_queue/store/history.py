r"""The history: a row for each attempt that has ended, in `queue.tsv.history`.

    id type attempt outcome due_at ended_at seconds error traceback

Nothing depends on it: it may be deleted at any time, and a row that cannot be written is lost, not
waited for. Rows are kept in memory until there are some hundreds of them or the oldest is a
second old, and are appended by one unsynced write, without the lock: a kill loses what is in
memory, a power cut what the kernel has not written by itself. The lock is taken to begin a file,
and to rename a full one to `queue.tsv.history.1`, so that two passes do neither at once.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time

from dbbasic_queue.model.escaping import escape, unescape
from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store.disk.files import open_file, open_or_create, unstable_inodes
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.claiming.slots import Slot
    from dbbasic_queue.store.disk.lock import QueueLock

HEADER = b"id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback\n"
LARGEST = 16 << 20
"""Bytes after which the file is rotated; with the one before it, twice as much is kept."""

_LONGEST = 1 << 20  # bytes of a line that can be a row
_MOST_ROWS = 512
_TRIES = 100
_MOST_SECONDS = 1.0
_PAUSE = 60.0  # after an error: to find out that it is still there may take a while each time


def _path(queue: str) -> str:
    return queue + ".history"


class HistoryWriter:
    """Writes the history of one pass; safe from two of its threads.

    Nothing is written while the slot's room on the disk is given up: that is for the outcomes of
    jobs that have run. No method raises OSError, and none may be called under the queue's lock.
    """

    def __init__(self, queue: str, lock: QueueLock, slot: Slot) -> None:
        self._path = _path(queue)
        self._lock = lock
        self._slot = slot
        self._lines: list[str] = []
        self._oldest_at = 0.0
        self._ended_ms = -1
        self._ended = ""
        self._mutex = threading.RLock()
        self._file: OpenFile | None = None
        self._next_try = 0.0
        self._failing = False
        self._error: OSError | None = None

    def note(
        self,
        row: Row,
        outcome: str,
        error: str,
        ended_at: float,
        seconds: float | None,
        traceback: str = "",
    ) -> None:
        """Add a row to what is written before long.

        `row` is the job as its claim left it. `error` and `traceback` are escaped. `ended_at` is
        in Unix seconds. `seconds` is how long the handler ran, None where nobody knows.
        """
        state = row.state
        job_type = row.type if row.type.isprintable() else escape(row.type)
        due_at = state.run_at if state.run_at > state.created_at else state.created_at
        if (ms := int(ended_at * 1000)) != self._ended_ms:  # to format it is a third of the cost
            self._ended_ms = ms
            self._ended = f"{ms / 1000:.3f}"
        took = "" if seconds is None else f"{seconds:.6f}"
        line = (
            f"{row.id}\t{job_type}\t{state.attempts}\t{outcome}\t{due_at}\t{self._ended}"
            f"\t{took}\t{error}\t{traceback}\n"
        )
        if not self._lines:
            self._oldest_at = ended_at
        self._lines.append(line)
        if len(self._lines) >= _MOST_ROWS or not 0 <= ended_at - self._oldest_at < _MOST_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand what is noted to the kernel; what it refuses is lost."""
        if not self._lines or not self._slot.has_room():
            return
        try:
            self._mutex.acquire()  # not in a `with`: see QueueLock
            lines = self._lines[:]
            del self._lines[: len(lines)]
            if time.monotonic() < self._next_try:
                return
            try:
                self._append("".join(lines).encode())
                self._failing = False
            except OSError as e:
                self._file = None
                self._next_try = time.monotonic() + _PAUSE
                if not self._failing:
                    self._failing, self._error = True, e
        finally:
            try:
                self._mutex.release()
            except RuntimeError:
                pass  # a signal handler raised before it was acquired

    def take_error(self) -> OSError | None:
        """Return why rows were lost; once, until some have been written again."""
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """Write what is noted, and close the file."""
        self.flush()
        self._file = None

    def _append(self, content: bytes) -> None:
        """Append whole rows by one write, so that they do not mix with those of other passes.

        What an interrupted one leaves cannot be cut off, for others may have written since: the
        next writer ends the torn line.
        """
        file = self._current()
        size = os.fstat(file.fd).st_size
        if size and os.pread(file.fd, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(file.fd, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _current(self) -> OpenFile:
        """Return the file that is at the path, started and not full."""
        file = self._file
        if file is None or not file.is_ours() or not file.is_at_path():
            file = self._file = open_file(self._path, os.O_RDWR | os.O_APPEND)
        if file is None or not len(HEADER) <= os.fstat(file.fd).st_size < LARGEST:
            file = self._file = self._lock.run(self._rotated)
        return file

    def _rotated(self) -> OpenFile:
        """Return a file that has the header and isn't full. Under the lock."""
        _take_over(self._path)
        file = open_or_create(self._path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(file.fd).st_size
        if size >= LARGEST:  # else another pass has rotated it meanwhile
            open_file(self._path + ".1", os.O_RDONLY)  # refuses what is not ours to replace
            os.rename(self._path, self._path + ".1")
            file = open_or_create(self._path, os.O_RDWR | os.O_APPEND)
            size = 0
        if size < len(HEADER):
            os.ftruncate(file.fd, 0)
            os.write(file.fd, HEADER)
        return file


def _take_over(path: str) -> None:
    """Rename the history of an earlier version, `queue.tsv.attempts`, unless there is a new one."""
    old = _old(path)
    if not os.path.lexists(path) and os.path.lexists(old):
        for end in (".1", ""):
            if open_file(old + end, os.O_RDONLY):  # raises NotAQueue for what isn't ours
                os.rename(old + end, path + end)


def _old(path: str) -> str:
    return path.removesuffix("history") + "attempts"


# -- reading: without the lock -----------------------------------------------------------------


class Attempt:
    """One row of the history; `error` and `traceback` are escaped as in the file."""

    __slots__ = (
        "attempt",
        "due_at",
        "ended_at",
        "error",
        "id",
        "outcome",
        "seconds",
        "traceback",
        "type",
    )

    def __init__(self, line: str) -> None:
        """Raises ValueError for a line that isn't a row, or has no end."""
        (
            self.id,
            self.type,
            attempt,
            self.outcome,
            due_at,
            ended_at,
            seconds,
            self.error,
            self.traceback,
        ) = line.split("\t", 9)
        if "\0" in line or not self.traceback.endswith("\n"):
            raise ValueError("it has a NUL byte, or no end")
        self.traceback = self.traceback[:-1]
        self.attempt = int(attempt)
        self.due_at = int(due_at)
        self.ended_at = float(ended_at)
        self.seconds = float(seconds) if seconds else None
        numbers = (self.attempt, self.due_at, self.ended_at, self.seconds or 0)
        if not all(0 <= number <= LATEST for number in numbers):  # NaN, too
            raise ValueError("a number is out of range")

    def as_dict(self) -> Any:
        """Return the columns with Python values."""
        return {
            "id": self.id,
            "type": self.type,
            "attempt": self.attempt,
            "outcome": self.outcome,
            "due_at": self.due_at,
            "ended_at": self.ended_at,
            "seconds": self.seconds,
            "error": unescape(self.error) or None,
            "traceback": unescape(self.traceback) or None,
        }


def read(
    queue: str,
    job_id: str = "",
    since: float = -math.inf,
    skipped: list[str] | None = None,
    *,
    only_errors: bool = False,
) -> Iterator[Attempt]:
    """Yield the history, or that of one job, in the files' order; skip lines that are not rows.

    What ended before `since` is passed over, but for the first row of a file, which says how far
    back that goes; with `only_errors`, so is what has no error. The start of each line that was
    skipped is added to `skipped`. Raises NotAQueue or StoreError where a file cannot be used.
    """
    prefix = job_id.encode() + b"\t" if job_id else b""
    for file in _files(_path(queue)):
        first = True
        for line in _lines(file):
            if not line.startswith(prefix) or line == HEADER:
                continue
            if only_errors and line.endswith(b"\t\t\n"):
                continue
            try:
                if first or float(line.split(b"\t", 6)[5]) >= since:
                    yield Attempt(line.decode())
                    first = False
            except (ValueError, IndexError):
                if skipped is not None:
                    skipped.append(line[:80].decode("utf-8", "replace"))


def _lines(file: OpenFile) -> Iterator[bytes]:
    """Yield the complete lines; of one that is too long for a row, only the start."""
    with open(file.fd, "rb", closefd=False) as lines:
        in_a_line = False
        while line := lines.readline(_LONGEST):
            is_complete = line.endswith(b"\n")
            if not in_a_line and (is_complete or len(line) == _LONGEST):
                yield line
            in_a_line = not is_complete


def _files(path: str) -> list[OpenFile]:
    """Return the older file and the current one, as far as they are there."""
    for _ in range(_TRIES):
        current = open_file(path, os.O_RDONLY)
        if current is None:
            path = _old(path) if os.path.lexists(_old(path)) else path
            current = open_file(path, os.O_RDONLY)
        older = open_file(path + ".1", os.O_RDONLY)
        if current is None or current.is_at_path():  # else it was rotated in between
            return [file for file in (older, current) if file is not None]
    raise unstable_inodes(path)
