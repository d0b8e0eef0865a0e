"""How far running jobs are: the file `queue.tsv.progress`, to which their processes append rows.

    id attempt started_at at done total note

Only the last row of an attempt counts. A row with the attempt 0 ends what was reported before: the
number of an interrupted or stopped attempt may be used again. The process that runs the handler
writes it, perhaps one that its pass has forked; `rotated` describes the file. It is small: the rows
of an attempt that hasn't reported for long may be rotated away.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import LARGEST_AMOUNT
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.states import LATEST, PROCESSING
from dbbasic_queue.store import rotated
from dbbasic_queue.store.rotated import RotatedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.lock import QueueLock

HEADER = b"id\tattempt\tstarted_at\tat\tdone\ttotal\tnote\n"
LARGEST_BYTES = 1 << 20
"""A larger file is rotated. With the one before it, up to twice as much is kept."""


def _path(queue: str) -> str:
    return queue + ".progress"


class Progress:
    """One row: how far an attempt was at the instant `at`.

    `started_at` is when its handler was called; both are in Unix seconds. `total` is None if it is
    unknown. `note` is escaped as in the file.
    """

    __slots__ = ("at", "attempt", "done", "id", "note", "started_at", "total")

    def __init__(self, line: str) -> None:
        """Parse a line. Raises ValueError if it isn't a row, or has no end."""
        if "\0" in line or not line.endswith("\n"):
            raise ValueError("invalid row: has a NUL byte, or no line end")
        self.id, attempt, started_at, at, done, total, self.note = line[:-1].split("\t")
        self.attempt = int(attempt)
        self.started_at = float(started_at)
        self.at = float(at)
        self.done = _number(done)
        self.total = _number(total) if total else None
        numbers = (self.attempt, self.started_at, self.at)
        if not all(0 <= number <= LATEST for number in numbers):  # NaN, too
            raise ValueError("invalid row: a number is out of range")

    def seconds_left(self, now: float) -> float | None:
        """Estimate for how many seconds the attempt will still run, at the instant `now`.

        It assumes that the rest takes as long per unit as what was done by `at`. None if nothing
        was done by then, or if the total is unknown.
        """
        if not self.done or self.total is None:
            return None
        per_unit = max(self.at - self.started_at, 0.0) / self.done
        return max(per_unit * (self.total - self.done) - max(now - self.at, 0.0), 0.0)

    def is_of(self, row: Row) -> bool:
        """Return whether this is about the attempt of a job that is running now.

        The number of an attempt that was delayed, or began before a failed job was requeued, is
        used again. Such an attempt was started before the job became due.
        """
        state = row.state
        is_current = state.status == PROCESSING and self.attempt == state.attempts
        return is_current and self.started_at >= state.run_at

    def as_dict(self, now: float) -> Any:
        """Return what `Queue.progress` returns at the instant `now`."""
        return {
            "done": self.done,
            "total": self.total,
            "note": unescape(self.note),
            "at": self.at,
            "started_at": self.started_at,
            "seconds_left": self.seconds_left(now),
        }


def _number(text: str) -> float:
    """Return a number of 0 or more, an int if it is one. Raises ValueError for any other text."""
    number = int(text) if text.isdecimal() else float(text)
    if not 0 <= number <= LARGEST_AMOUNT:  # NaN, too
        raise ValueError("invalid row: a number is out of range")
    return number


def encode_row(
    job_id: str,
    attempt: int,
    started_at: float,
    at: float,
    done: float,
    total: float | None,
    note: str,
) -> str:
    """Return the line, with its end. `note` is escaped."""
    of = "" if total is None else total
    began = int(started_at * 1000) / 1000  # rounded down, as it is compared with `run_at`
    return f"{job_id}\t{attempt}\t{began:.3f}\t{at:.3f}\t{done}\t{of}\t{note}\n"


class ProgressWriter:
    """Writes how far the jobs of one pass are, also in processes that the pass has forked.

    Nothing is written while `may_write` returns False: see `history.HistoryWriter`.
    """

    def __init__(self, queue: str, lock: QueueLock, may_write: Callable[[], bool]) -> None:
        self.file = RotatedFile(_path(queue), HEADER, LARGEST_BYTES, lock)
        self._queue = queue
        self._may_write = may_write

    def note(
        self,
        job_id: str,
        attempt: int,
        started_at: float,
        at: float,
        done: float,
        total: float | None,
        note: str,
    ) -> None:
        """Append a row, unsynced; it is lost if that fails. `note` is escaped.

        Raises QueueError if this thread is inside a call of the same queue, and the file has to be
        created or rotated.
        """
        if self._may_write():
            row = encode_row(job_id, attempt, started_at, at, done, total, note)
            self.file.write(row.encode())

    def forget(self, row: Row, at: float) -> None:
        """End what an attempt has reported, if it has. `row` is the job as claimed."""
        try:
            if row.id not in read(self._queue, [row]):
                return
        except OSError:
            return  # nobody else can read it either
        self.note(row.id, 0, at, at, 0, None, "")

    def take_error(self) -> OSError | None:
        """Return why rows were lost, or None. Reported once, until a write has succeeded again."""
        return self.file.take_error()


def read(queue: str, rows: Iterable[Row]) -> dict[str, Progress]:
    """Return job id -> how far it is, for those of the jobs that are running and have reported.

    `queue` is the path of the queue file. Needs no lock. Raises NotAQueue if a file isn't a
    queue's, StoreError if it can't be read.
    """
    wanted = {row.id.encode(): row for row in rows if row.state.status == PROCESSING}
    found: dict[str, Progress] = {}
    if not wanted:
        return found
    for file in rotated.files(_path(queue)):
        for line in rotated.lines(file):
            row = wanted.get(line.partition(b"\t")[0])
            if row is not None:
                try:
                    progress = Progress(line.decode())
                except ValueError:
                    continue
                if progress.is_of(row):
                    found[row.id] = progress
                elif progress.attempt == 0:
                    found.pop(row.id, None)
    return found
