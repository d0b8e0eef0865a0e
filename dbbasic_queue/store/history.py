r"""The history: one row per finished attempt, in `queue.tsv.history`.

    id type attempt outcome due_at ended_at seconds error traceback

Nothing depends on it: you may delete it at any time, and a row that can't be written is lost. Rows
are kept in memory until there are 512 of them, the oldest is a second old, or the pass waits. Then
they are appended by one unsynced write, without the lock: a kill loses the rows in memory, a power
cut those that the kernel has not written yet. The lock is held to start a file, and to rename a
full one to `queue.tsv.history.1`, so that two passes never do that at once.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time

from dbbasic_queue.errors import store_error
from dbbasic_queue.model.escaping import escape, unescape
from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store.disk.files import open_file, open_or_create, unstable_inodes
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.lock import QueueLock

HEADER = b"id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback\n"
LARGEST_BYTES = 16 << 20
"""A larger file is rotated. With the one before it, up to twice as much is kept."""

_LONGEST_ROW_BYTES = 1 << 20
_MOST_ROWS = 512
_LONGEST_DELAY_SECONDS = 1.0
_RETRY_SECONDS = 60.0  # after an error: a write that fails may take a while each time
_TRIES = 100


def _path(queue: str) -> str:
    return queue + ".history"


class HistoryWriter:
    """Writes the history of one pass. Two threads of the pass may use it at once.

    Nothing is written while `may_write` returns False: the disk space that is left is for the
    outcomes of jobs that have run. No method raises OSError, and none may be called under the
    queue's lock.
    """

    def __init__(self, queue: str, lock: QueueLock, may_write: Callable[[], bool]) -> None:
        self._path = _path(queue)
        self._lock = lock
        self._may_write = may_write
        self._lines: list[str] = []
        """the rows that aren't written yet"""
        self._oldest_at = 0.0
        """when the attempt of the first of them ended"""
        self._ended_ms = -1
        self._ended = ""
        """the column `ended_at` for `_ended_ms`, the last value that was formatted"""
        self._mutex = threading.RLock()
        self._file: OpenFile | None = None
        self._next_try_at = 0.0  # on the monotonic clock
        self._failing = False
        """whether the last write failed"""
        self._error: OSError | None = None
        """why it failed, until `take_error` has returned that"""

    def note(
        self,
        row: Row,
        outcome: str,
        error: str,
        ended_at: float,
        seconds: float | None,
        traceback: str = "",
    ) -> None:
        """Add a row, and write all rows if there are 512 of them, or the oldest is a second old.

        Otherwise it stays in memory until the next call, or `flush`.

        `row` is the job as claimed. `error` and `traceback` are escaped. `ended_at` is in Unix
        seconds. `seconds` is how long the handler ran, None if that is unknown.
        """
        state = row.state
        job_type = row.type if row.type.isprintable() else escape(row.type)
        due_at = state.run_at if state.run_at > state.created_at else state.created_at
        if (ms := int(ended_at * 1000)) != self._ended_ms:  # formatting it is a third of the cost
            self._ended_ms = ms
            self._ended = f"{ms / 1000:.3f}"
        duration = "" if seconds is None else f"{seconds:.6f}"
        line = (
            f"{row.id}\t{job_type}\t{state.attempts}\t{outcome}\t{due_at}\t{self._ended}"
            f"\t{duration}\t{error}\t{traceback}\n"
        )
        if not self._lines:
            self._oldest_at = ended_at
        self._lines.append(line)
        age = ended_at - self._oldest_at  # below 0 if the clock was set back
        if len(self._lines) >= _MOST_ROWS or not 0 <= age < _LONGEST_DELAY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in memory, unsynced; they are lost if that fails.

        After an error, rows are dropped for a minute without another try.
        """
        if not self._lines or not self._may_write():
            return
        try:
            self._mutex.acquire()  # not in a `with`: see QueueLock
            lines = self._lines[:]
            del self._lines[: len(lines)]
            if time.monotonic() < self._next_try_at:
                return
            try:
                self._append("".join(lines).encode())
                self._failing = False
            except OSError as e:
                self._file = None
                self._next_try_at = time.monotonic() + _RETRY_SECONDS
                if not self._failing:
                    self._failing, self._error = True, e
        finally:
            try:
                self._mutex.release()
            except RuntimeError:
                pass  # a signal handler raised before it was acquired

    def take_error(self) -> OSError | None:
        """Return why rows were lost, or None. Reported once, until a write has succeeded again."""
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """Write the rows that are in memory, and close the file."""
        self.flush()
        self._file = None

    def _append(self, content: bytes) -> None:
        """Append whole rows by one write, so that they don't mix with those of other passes.

        The torn line of an interrupted write can't be cut off, because other passes may have
        appended since. The next writer ends it.
        """
        file = self._current()
        size = os.fstat(file.fd).st_size
        if size and os.pread(file.fd, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(file.fd, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _current(self) -> OpenFile:
        """Return the file that is at the path: it has a header, and isn't full.

        If it has to be created or rotated for that, the lock is acquired.
        """
        file = self._file
        if file is None or not file.is_ours() or not file.is_at_path():
            file = self._file = open_file(self._path, os.O_RDWR | os.O_APPEND)
        if file is None or not len(HEADER) <= os.fstat(file.fd).st_size < LARGEST_BYTES:
            file = self._file = self._lock.run(self._rotated)
        return file

    def _rotated(self) -> OpenFile:
        """Return a file that has a header and isn't full. Call it under the lock."""
        _take_over(self._path)
        file = open_or_create(self._path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(file.fd).st_size
        if size >= LARGEST_BYTES:  # otherwise another pass has just rotated it
            # Raises NotAQueue if the file that would be replaced isn't ours.
            open_file(self._path + ".1", os.O_RDONLY)
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
            if open_file(old + end, os.O_RDONLY):  # raises NotAQueue if it isn't ours
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
        """Parse a line. Raises ValueError if it isn't a row, or has no end."""
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
            raise ValueError("invalid row: has a NUL byte, or no line end")
        self.traceback = self.traceback[:-1]
        self.attempt = int(attempt)
        self.due_at = int(due_at)
        self.ended_at = float(ended_at)
        self.seconds = float(seconds) if seconds else None
        numbers = (self.attempt, self.due_at, self.ended_at, self.seconds or 0)
        if not all(0 <= number <= LATEST for number in numbers):  # NaN, too
            raise ValueError("invalid row: a number is out of range")

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
    """Yield the finished attempts, or those of one job, in the files' order. Needs no lock.

    `queue` is the path of the queue file. With `only_errors`, attempts without an error are left
    out. So are those that ended before `since` (Unix seconds), except the first one in each file,
    which shows how far back the file goes. Invalid lines are skipped, and the start of each is
    added to `skipped`. Raises NotAQueue if a file isn't a queue's, StoreError if it can't be read.
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
    """Yield the complete lines, and the start of each line that is too long for a row."""
    with open(file.fd, "rb", closefd=False) as lines:
        is_inside_line = False
        while True:
            try:
                line = lines.readline(_LONGEST_ROW_BYTES)
            except OSError as e:
                raise store_error(e, file.path, "nothing was changed") from e
            if not line:
                return
            is_complete = line.endswith(b"\n")
            if not is_inside_line and (is_complete or len(line) == _LONGEST_ROW_BYTES):
                yield line
            is_inside_line = not is_complete


def _files(path: str) -> list[OpenFile]:
    """Return the older and the current file, without those that don't exist."""
    for _ in range(_TRIES):
        place = path
        current = open_file(path, os.O_RDONLY)
        if current is None and os.path.lexists(_old(path)):
            place = _old(path)
            current = open_file(place, os.O_RDONLY)
            if current is None:
                continue  # a pass has just taken it over
        # `_take_over` renames the older file first, so it may be at its new path already.
        older = open_file(place + ".1", os.O_RDONLY) or open_file(path + ".1", os.O_RDONLY)
        if current is None or current.is_at_path():  # otherwise it was just rotated
            return [file for file in (older, current) if file is not None]
    raise unstable_inodes(path)
