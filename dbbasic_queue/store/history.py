r"""The history: one row per finished attempt, in `queue.tsv.history`.

    id type attempt outcome due_at ended_at seconds error traceback worker exception output_offset

Rows are kept in memory until there are 512 of them, the oldest is a second old, or the pass waits.
Then they are appended by one write: a kill loses the rows in memory, a power cut those that the
kernel has not written yet. `rotated` describes the file. Before 2.0.0 was released, rows had only
the first nine columns; such rows, and files with both kinds, can be read.
"""

from __future__ import annotations

import math
import os
import threading

from dbbasic_queue.errors import store_error
from dbbasic_queue.model.escaping import escape, unescape
from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store import rotated
from dbbasic_queue.store.disk.files import open_file
from dbbasic_queue.store.rotated import RotatedFile
from dbbasic_queue.store.worker import worker_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.lock import QueueLock

_FIRST_COLUMNS = b"id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback"
HEADER = _FIRST_COLUMNS + b"\tworker\texception\toutput_offset\n"
_HEADERS = (HEADER, _FIRST_COLUMNS + b"\n")
_COLUMNS_BEFORE = 9
_NO_ERROR = b"\t\t\t"
"""A row with neither error nor traceback has it where the error belongs: finding that is quicker
than parsing the row."""
_ERROR_COLUMN = 7
LARGEST_BYTES = 16 << 20
"""A larger file is rotated. With the one before it, up to twice as much is kept."""

FAILED_OUTCOMES = ("failed", "retried", "died")
LONGEST_ERROR = 100
"""Errors are taken for the same if they begin with the same characters, that many."""

_MOST_ROWS = 512
_TAIL_BYTES = 1 << 16
_LONGEST_DELAY_SECONDS = 1.0


def _path(queue: str) -> str:
    return queue + ".history"


def format_instant(at: float) -> str:
    """Return an instant as in the column `ended_at`: Unix seconds with milliseconds, cut off."""
    return f"{int(at * 1000) / 1000:.3f}"


def encode_row(
    row: Row,
    outcome: str,
    error: str,
    ended_at: str,
    seconds: float | None,
    traceback: str,
    worker: str,
    exception: str,
    output_offset: int | None,
) -> str:
    """Return a row of the history, with its newline. `HistoryWriter.note` describes the values."""
    state = row.state
    job_type = row.type if row.type.isprintable() else escape(row.type)
    due_at = state.run_at if state.run_at > state.created_at else state.created_at
    duration = "" if seconds is None else f"{seconds:.6f}"
    offset = "" if output_offset is None else output_offset
    return (
        f"{row.id}\t{job_type}\t{state.attempts}\t{outcome}\t{due_at}\t{ended_at}"
        f"\t{duration}\t{error}\t{traceback}\t{worker}\t{exception}\t{offset}\n"
    )


class HistoryWriter:
    """Writes the history of one pass. Two threads of the pass may use it at once.

    Nothing is written while `may_write` returns False: the disk space that is left is for the
    outcomes of jobs that have run. No method raises OSError, and none may be called under the
    queue's lock.
    """

    def __init__(self, queue: str, lock: QueueLock, may_write: Callable[[], bool]) -> None:
        path = _path(queue)
        self.file = RotatedFile(path, HEADER, LARGEST_BYTES, lock, lambda: _take_over(path))
        self._may_write = may_write
        self._lines: list[str] = []
        """the rows that aren't written yet"""
        self._oldest_at = 0.0
        """when the attempt of the first of them ended"""
        self._ended_ms = -1
        self._ended = ""
        """the column `ended_at` for `_ended_ms`, the last value that was formatted"""
        self._worker = worker_name()
        self._mutex = threading.RLock()

    def note(
        self,
        row: Row,
        outcome: str,
        error: str,
        ended_at: float,
        seconds: float | None,
        traceback: str = "",
        exception: str = "",
        output_offset: int | None = None,
    ) -> None:
        """Add a row, and write all rows if there are 512 of them, or the oldest is a second old.

        Otherwise it stays in memory until the next call, or `flush`.

        `row` is the job as claimed. `error`, `traceback` and `exception` are escaped. `ended_at` is
        in Unix seconds. `seconds` is how long the handler ran, None if that is unknown.
        `output_offset` is where what the handler printed begins in `queue.tsv.output`.
        """
        if (ms := int(ended_at * 1000)) != self._ended_ms:  # formatting it is a third of the cost
            self._ended_ms = ms
            self._ended = format_instant(ended_at)
        line = encode_row(
            row,
            outcome,
            error,
            self._ended,
            seconds,
            traceback,
            self._worker,
            exception,
            output_offset,
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
            self.file.write("".join(lines).encode())
        finally:
            try:
                self._mutex.release()
            except RuntimeError:
                pass  # a signal handler raised before it was acquired

    def take_error(self) -> OSError | None:
        """Return why rows were lost, or None. Reported once, until a write has succeeded again."""
        return self.file.take_error()

    def close(self) -> None:
        """Write the rows that are in memory, and close the file."""
        self.flush()
        self.file.close()


def _take_over(path: str) -> None:
    """Rename the history of an earlier version, `queue.tsv.attempts`, unless there is a new one."""
    old = _old(path)
    if not os.path.lexists(path) and os.path.lexists(old):
        for end in (".1", ""):
            if open_file(old + end, os.O_RDONLY):  # raises NotAQueue if it isn't ours
                os.rename(old + end, path + end)


def paths(queue: str) -> tuple[str, str]:
    """Return the path of the history, and the one that it had in an earlier version."""
    path = _path(queue)
    return path, _old(path)


def _old(path: str) -> str:
    return path.removesuffix("history") + "attempts"


def add(queue: str, lock: QueueLock, attempts: Sequence[Attempt]) -> None:
    """Add attempts of another queue, unsynced, without the offsets of their output there.

    Raises StoreError if the system refuses.
    """
    path = _path(queue)
    file = RotatedFile(path, HEADER, LARGEST_BYTES, lock, lambda: _take_over(path))
    file.write("".join(attempt.line() for attempt in attempts).encode())
    file.close()
    if error := file.take_error():
        raise store_error(error, path, "attempts are missing in the history")


# -- reading: without the lock -----------------------------------------------------------------


class Attempt:
    """One row of the history; `error`, `traceback` and `exception` are escaped as in the file.

    `worker` is "", and `output_offset` None, in a row of nine columns.
    """

    __slots__ = (
        "attempt",
        "due_at",
        "ended_at",
        "error",
        "exception",
        "id",
        "outcome",
        "output_offset",
        "seconds",
        "traceback",
        "type",
        "worker",
    )

    def __init__(self, line: str) -> None:
        """Parse a line. Raises ValueError if it isn't a row, or has no end."""
        if "\0" in line or not line.endswith("\n"):
            raise ValueError("invalid row: has a NUL byte, or no line end")
        columns = line[:-1].split("\t")
        if len(columns) == _COLUMNS_BEFORE:
            columns += ("", "", "")
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
            self.worker,
            self.exception,
            offset,
        ) = columns
        self.attempt = int(attempt)
        self.due_at = int(due_at)
        self.ended_at = float(ended_at)
        self.seconds = float(seconds) if seconds else None
        self.output_offset = int(offset) if offset else None
        numbers = (self.attempt, self.due_at, self.ended_at, self.seconds or 0)
        if not all(0 <= number <= LATEST for number in (*numbers, self.output_offset or 0)):
            raise ValueError("invalid row: a number is out of range")  # or is NaN

    def line(self) -> str:
        """Return the row, with its end, but without the offset of its output."""
        seconds = "" if self.seconds is None else f"{self.seconds:.6f}"
        return (
            f"{self.id}\t{self.type}\t{self.attempt}\t{self.outcome}\t{self.due_at}"
            f"\t{self.ended_at:.3f}\t{seconds}\t{self.error}\t{self.traceback}"
            f"\t{self.worker}\t{self.exception}\t\n"
        )

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
            "worker": unescape(self.worker) or None,
            "exception": unescape(self.exception) or None,
            "output_offset": self.output_offset,
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
    path = _path(queue)
    for file in rotated.files(path, _old(path)):
        first = True
        for line in rotated.lines_beginning(file, prefix) if prefix else rotated.lines(file):
            if not line.startswith(prefix) or line in _HEADERS:
                continue
            if only_errors:
                at = line.find(_NO_ERROR)
                if at >= 0 and line.count(b"\t", 0, at) < _ERROR_COLUMN:
                    continue
            try:
                if first or float(line.split(b"\t", 6)[5]) >= since:
                    attempt = Attempt(line.decode())
                    if attempt.error or not only_errors:
                        yield attempt
                        first = False
            except (ValueError, IndexError):
                if skipped is not None:
                    skipped.append(line[:80].decode("utf-8", "replace"))


def read_latest(queue: str, count: int) -> list[Attempt]:
    """Return the attempts that were written last, at most `count`, the oldest first.

    Reads only the end of the file, so long rows may make it fewer. Needs no lock. Raises the same
    errors as `read`.
    """
    path = _path(queue)
    found: list[Attempt] = []
    for file in reversed(rotated.files(path, _old(path))):
        start = max(os.fstat(file.fd).st_size - _TAIL_BYTES, 0)
        content = os.pread(file.fd, _TAIL_BYTES, start)
        lines = content.split(b"\n")[1 if start else 0 :]
        attempts = []
        for line in lines[:-1]:
            try:
                attempts.append(Attempt(line.decode() + "\n"))
            except ValueError:
                continue  # the header, or a torn row
        found = attempts[-count:] + found
        count -= len(attempts)
        if count <= 0:
            break
    return found
