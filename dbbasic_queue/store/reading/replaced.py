"""Finds what differs in the file that another process's fold has moved to the path.

The old file is still open. Most rows are the same, so both files are read and compared piece by
piece, and only rows that differ are parsed.
"""

from __future__ import annotations

import os

from dbbasic_queue.model.records import with_state
from dbbasic_queue.model.rows import HEADER, LONGEST_ROW_BYTES, parse_row
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.reading.index import Index
from dbbasic_queue.store.reading.offsets import Offsets, within
from dbbasic_queue.store.reading.tail import Rewritten, Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.model.states import State

_READ_BYTES = 1 << 16
_LONG_LINE_READ_BYTES = 1 << 20


class Changes:
    """What has to be changed to go on with the new file.

    `end`      where the last known row ends in it, after its line end
    `lengths`  number -> new length in bytes without the line end, for each row that may differ
    `states`   number -> new state, for each row whose state may not be the known one
    """

    __slots__ = ("end", "lengths", "states")

    def __init__(self, end: int, lengths: dict[int, int], states: dict[int, State]) -> None:
        self.end = end
        self.lengths = lengths
        self.states = states


def compare(known: Index, offsets: Offsets, rows: Tail, new: OpenFile) -> Changes:
    """Return how the rows that are known differ in the new file.

    `rows` is how far the old file was read, and `offsets` where the rows lie in it. Raises
    Rewritten unless the new file begins with the same jobs in the same order, and the end of the
    old one is as it was read.
    """
    # A row with a record is compared even if both files have the same line: the record may have
    # been cut off again before the fold, because its sync had failed.
    touched = sorted(n for n in map(known.index.get, known.records) if n is not None)
    end, differing = _differing_lines(offsets, rows, new, touched)
    states: dict[int, State] = {}
    for number, was, line in differing:
        job_id = line[: line.find(b"\t")]
        if known.index.get(job_id) != number:
            raise Rewritten
        record = known.records.get(job_id)
        if record is not None and _is_with_state(line, was, record):
            continue
        row = parse_row(line)
        if row is None:
            raise Rewritten
        states[number] = row.state
    return Changes(end, {number: len(line) for number, _, line in differing}, states)


def _is_with_state(line: bytes, was: bytes, record: bytes) -> bool:
    """Return whether a line is the old line with the record's state."""
    try:
        return line == with_state(was, record)
    except ValueError:  # the old file was overwritten in place
        raise Rewritten from None


def _differing_lines(
    offsets: Offsets, rows: Tail, new: OpenFile, touched: list[int]
) -> tuple[int, list[tuple[int, bytes, bytes]]]:
    """Return where the known rows end in the new file, and which of them differ or are `touched`.

    Each of these is (number, old line, new line), in the order of the numbers.
    """
    old = rows.file
    at = len(HEADER)
    if old is None or old.identity == new.identity or not rows.is_as_read():
        raise Rewritten
    if os.pread(new.fd, at, 0) != HEADER:
        raise Rewritten
    found: list[tuple[int, bytes, bytes]] = []
    for numbers, start, end in offsets.pieces(_READ_BYTES):
        if end - start > LONGEST_ROW_BYTES + 1:  # one line that is too long for a row
            _require_same(old, start, new, at, end - start)
            at += end - start
            continue
        before = os.pread(old.fd, end - start, start)
        after = os.pread(new.fd, end - start, at)
        touched_here = within(numbers, touched)
        if before == after and not touched_here:
            at += len(after)
            continue
        content, place, was_at = after, 0, 0
        for rows_here, size in offsets.blocks(numbers):
            was = before[was_at : was_at + size]
            was_at += size
            touched_rows = within(rows_here, touched_here)
            if not touched_rows and content.startswith(was, place):
                place += size
                continue
            content, lines = _read_lines(new, at, content, place, len(rows_here))
            place += sum(map(len, lines)) + len(lines)
            for number, old_line, line in zip(rows_here, was.split(b"\n"), lines, strict=False):
                if line != old_line or number in touched_rows:
                    found.append((number, old_line, line))
        at += place
    return at, found


def _require_same(old: OpenFile, old_at: int, new: OpenFile, new_at: int, size: int) -> None:
    """Raise Rewritten unless this many bytes are the same in both files."""
    for done in range(0, size, _LONG_LINE_READ_BYTES):
        count = min(_LONG_LINE_READ_BYTES, size - done)
        before = os.pread(old.fd, count, old_at + done)
        if len(before) < count or os.pread(new.fd, count, new_at + done) != before:
            raise Rewritten


def _read_lines(
    file: OpenFile, at: int, content: bytes, place: int, count: int
) -> tuple[bytes, list[bytes]]:
    """Return the `count` lines that begin at `place` in the content, without their ends.

    `content` is what was read at `at` so far; it is returned first, with what was added to it.
    Raises Rewritten if the file has fewer lines.
    """
    lines: list[bytes] = []
    while len(lines) < count:
        end = content.find(b"\n", place)
        if end >= 0:
            lines.append(content[place:end])
            place = end + 1
            continue
        more = os.pread(file.fd, _READ_BYTES, at + len(content))
        if not more:
            raise Rewritten
        content += more
    return content, lines
