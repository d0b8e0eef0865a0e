r"""What jobs in processes of their own have printed: one row per attempt, in `queue.tsv.output`.

    id type attempt ended_at left_out output

`output` is the end of it, as escaped text on one line. Bytes that aren't UTF-8 are lone surrogates
in it (`surrogateescape`). `left_out` is how many bytes came before it. An attempt that has printed
nothing has no row. The history has the offset of each row; `rotated` describes the file.
"""

from __future__ import annotations

import os

from dbbasic_queue.model.escaping import escape, escape_lines
from dbbasic_queue.model.states import LATEST
from dbbasic_queue.store import history, rotated
from dbbasic_queue.store.rotated import RotatedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.lock import QueueLock
    from dbbasic_queue.store.disk.openfile import OpenFile

HEADER = b"id\ttype\tattempt\tended_at\tleft_out\toutput\n"
LARGEST_BYTES = 64 << 20
"""A larger file is rotated. With the one before it, up to twice as much is kept."""

_LONGEST_ROW_BYTES = 512 << 10
"""64 KiB, of which each byte may become six characters, and the other columns"""


def _path(queue: str) -> str:
    return queue + ".output"


class OutputWriter:
    """Writes what the jobs of one pass have printed. No method raises OSError.

    Nothing is written while `may_write` returns False: see `history.HistoryWriter`.
    """

    def __init__(self, queue: str, lock: QueueLock, may_write: Callable[[], bool]) -> None:
        self.file = RotatedFile(_path(queue), HEADER, LARGEST_BYTES, lock)
        self._may_write = may_write

    def keep(self, row: Row, ended_at: float, printed: bytes, left_out: int) -> int | None:
        """Append what an attempt has printed, unsynced; return the row's offset, None if it's lost.

        `row` is the job as claimed. `ended_at` is in Unix seconds. `left_out` is how many bytes
        came before `printed`. Call it after the attempt's outcome was recorded.
        """
        if not self._may_write():
            return None
        return self.file.write(encode_row(row, ended_at, printed, left_out).encode())

    def take_error(self) -> OSError | None:
        """Return why rows were lost, or None. Reported once, until a write has succeeded again."""
        return self.file.take_error()


def encode_row(row: Row, ended_at: float, printed: bytes, left_out: int) -> str:
    """Return the line, with its end."""
    if left_out:  # the first bytes may be the end of a character that was cut
        whole = printed.lstrip(_CONTINUATION_BYTES)
        if len(printed) - len(whole) <= _MOST_CONTINUATION_BYTES:
            left_out += len(printed) - len(whole)
            printed = whole
    text = escape_lines(printed.decode("utf-8", "surrogateescape"))
    at = f"{int(ended_at * 1000) / 1000:.3f}"  # as in the history
    return f"{row.id}\t{escape(row.type)}\t{row.state.attempts}\t{at}\t{left_out}\t{text}\n"


_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))
_MOST_CONTINUATION_BYTES = 3  # of one character in UTF-8


class Output:
    """One row; `text` is escaped as in the file."""

    __slots__ = ("attempt", "ended_at", "id", "left_out", "text", "type")

    def __init__(self, line: str) -> None:
        """Parse a line. Raises ValueError if it isn't a row, or has no end."""
        if "\0" in line or not line.endswith("\n"):
            raise ValueError("invalid row: has a NUL byte, or no line end")
        self.id, self.type, attempt, ended_at, left_out, self.text = line[:-1].split("\t")
        self.attempt = int(attempt)
        self.ended_at = float(ended_at)
        self.left_out = int(left_out)
        if not all(0 <= number <= LATEST for number in (self.attempt, self.ended_at)):  # NaN, too
            raise ValueError("invalid row: a number is out of range")


def read(queue: str, job_id: str, attempt: int | None = None) -> Output | None:
    """Return what a job's latest attempt, or this attempt, has printed; None if that isn't kept.

    Attempts that have printed nothing are skipped. `queue` is the path of the queue file. Needs
    no lock. Raises NotAQueue if a file isn't a queue's, StoreError if it can't be read.
    """
    known = [
        found
        for found in history.read(queue, job_id)
        if found.output_offset is not None and attempt in (None, found.attempt)
    ]
    if known:
        last = max(known, key=lambda found: found.ended_at)
        for file in reversed(rotated.files(_path(queue))):
            output = _at(file, last.output_offset or 0)
            if output and _names(output) == (last.id, last.attempt, last.ended_at):
                return output
    # Otherwise the history or the output was deleted, or rotated away.
    return max(_scan(queue, job_id, attempt), key=lambda found: found.ended_at, default=None)


def _names(output: Output) -> tuple[str, int, float]:
    return output.id, output.attempt, output.ended_at


def _at(file: OpenFile, offset: int) -> Output | None:
    """Return the row at this offset; None if no row begins there, as in a newer file."""
    content = os.pread(file.fd, _LONGEST_ROW_BYTES, max(offset - 1, 0))
    before, line = content[:1], content[1 : content.find(b"\n", 1) + 1]
    try:
        return Output(line.decode()) if before == b"\n" else None
    except ValueError:
        return None


def _scan(queue: str, job_id: str, attempt: int | None) -> Iterator[Output]:
    """Yield the rows of a job, or of one of its attempts, from both files."""
    prefix = job_id.encode() + b"\t"
    for file in rotated.files(_path(queue)):
        for line in rotated.lines(file):
            if line.startswith(prefix) and line != HEADER:
                try:
                    output = Output(line.decode())
                except ValueError:
                    continue
                if attempt in (None, output.attempt):
                    yield output
