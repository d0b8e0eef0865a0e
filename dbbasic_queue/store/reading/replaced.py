"""A file that was put into the place of another, compared with it: most rows are the same."""

from __future__ import annotations

import os

from dbbasic_queue.model.rows import HEADER, LONGEST_ROW
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.reading.offsets import Offsets, within
from dbbasic_queue.store.reading.tail import Rewritten, Tail

_PIECE = 1 << 16
_LARGE_PIECE = 1 << 20


def changed_rows(
    known: Tail, new: OpenFile, places: Offsets, touched: list[int]
) -> tuple[int, list[tuple[int, bytes, bytes]]]:
    """Return where the rows that are known end in the new file, and which of them differ there.

    These are (number, old line, new line), in order; `touched` rows, by their numbers in order, are
    among them.
    Raises Rewritten where the new file has not so many lines, or the old one is not as it was.
    """
    old = known.file
    at = len(HEADER)
    if old is None or old.identity == new.identity or not known.is_as_read():
        raise Rewritten
    if os.pread(new.fd, at, 0) != HEADER:
        raise Rewritten
    found: list[tuple[int, bytes, bytes]] = []
    for rows, start, end in places.pieces(_PIECE):
        if end - start > LONGEST_ROW + 1:  # no row
            _require_same(old, start, new, at, end - start)
            at += end - start
            continue
        before = os.pread(old.fd, end - start, start)
        after = os.pread(new.fd, end - start, at)
        touched_here = within(rows, touched)
        if before == after and not touched_here:
            at += len(after)
            continue
        lines = _lines(new, at, after, len(rows))
        at += sum(map(len, lines)) + len(lines)
        for number, was, line in zip(rows, before.split(b"\n"), lines, strict=False):
            if line != was or number in touched_here:
                found.append((number, was, line))
    return at, found


def _require_same(old: OpenFile, old_at: int, new: OpenFile, new_at: int, size: int) -> None:
    """Raise Rewritten unless this many bytes are the same in both files."""
    for done in range(0, size, _LARGE_PIECE):
        count = min(_LARGE_PIECE, size - done)
        before = os.pread(old.fd, count, old_at + done)
        if len(before) < count or os.pread(new.fd, count, new_at + done) != before:
            raise Rewritten


def _lines(file: OpenFile, at: int, content: bytes, count: int) -> list[bytes]:
    """Return so many lines, without their ends; `content` is what was read of them."""
    while content.count(b"\n") < count:
        more = os.pread(file.fd, _PIECE, at + len(content))
        if not more:
            raise Rewritten
        content += more
    return content.split(b"\n", count)[:count]
