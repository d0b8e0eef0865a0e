"""Finds one job by searching the files' bytes for its id: one look-up isn't worth an index."""

from __future__ import annotations

import os

from dbbasic_queue.model.records import decode_record, decode_state
from dbbasic_queue.model.rows import Row, has_json, parse_row
from dbbasic_queue.store.disk.files import open_file, unstable_inodes
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.reading.header import require_header, require_partial_header
from dbbasic_queue.store.reading.tail import Rewritten, Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIES = 100


def search(path: str, job_id: bytes) -> Row | None:
    """Return the job with this id in the queue at `path`, in its current state, or None.

    Needs no lock: like a `View`, it reads the journal first and the file second. Raises NotAQueue
    if another program's file is there, StoreError if the system refuses a read.
    """
    for _ in range(_TRIES):
        file = open_file(path, os.O_RDONLY)
        if file is None:
            return None
        try:
            state = _last_record(path + ".journal", job_id)
            row = _first_row(file, job_id)
        except Rewritten:
            continue
        if file.is_at_path():  # so the journal was not cut in the meantime
            break
    else:
        raise unstable_inodes(path)
    if row is not None and state is not None:
        row.state = decode_state(state)
    return row if row and has_json(row) else None


def _last_record(path: str, job_id: bytes) -> bytes | None:
    """Return the last state that the journal has for the job, encoded, or None."""
    state = None
    for content in Tail(open_file(path, os.O_RDONLY)).new():
        if job_id in content:
            for line in content.split(b"\n"):
                if line.startswith(job_id + b"\t") and (record := decode_record(line)):
                    state = record[1]
    return state


def _first_row(file: OpenFile, job_id: bytes) -> Row | None:
    """Return the first row with the id as it is in the file, or None. Its payload isn't checked."""
    rows = Tail(file)
    for content in rows.new():
        if rows.end == len(content):
            require_header(content[: content.index(b"\n")], file.path)
        for start in _lines_with(job_id, content):
            row = parse_row(content[start : content.index(b"\n", start)])
            if row is not None:
                return row
    if not rows.end:
        require_partial_header(file)
    return None


def _lines_with(job_id: bytes, content: bytes) -> Iterator[int]:
    r"""Yield the start of each line whose first column is the id.

    >>> list(_lines_with(b"b", b"a\tx\nb\ty\nbb\tz\n"))
    [4]
    """
    if content.startswith(job_id + b"\t"):
        yield 0
    head = b"\n" + job_id + b"\t"
    at = content.find(head)
    while at >= 0:
        yield at + 1
        at = content.find(head, at + 1)
