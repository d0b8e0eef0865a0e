"""What moving a queue's jobs to another one, or from there, does to the files.

A job that is moved is withdrawn by a record that is on the disk before the other queue gets the
job. Records of several jobs are appended at once: if that append is torn, some of the jobs are
withdrawn, which is as good as a move that was interrupted.
"""

from __future__ import annotations

from dbbasic_queue.model.records import encode_state
from dbbasic_queue.store import moved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.writing.queue_files import QueueFiles


def exchange(files: QueueFiles, changes: Sequence[tuple[Row, State]]) -> list[Row | None]:
    """Give each job its new state if it still has that of the row; return it as it was, or None.

    On the disk on return. Call it under the lock.
    """
    files.read_new()
    files.require_here()
    found: list[Row | None] = []
    records = []
    for row, state in changes:
        key = row.id.encode()
        present = files.view.find(key)
        if present is None or encode_state(present.state) != encode_state(row.state):
            found.append(None)
        else:
            found.append(present)
            records.append((key, encode_state(state)))
    if records:
        files.change(records)
    return found


def add_missing(files: QueueFiles, rows: Sequence[Row]) -> list[str]:
    """Add the jobs whose ids no row has; return the other ids. Call it under the lock.

    On the disk on return, and so are the rows with the other ids: the process that has added them
    may have been killed before its sync.
    """
    files.rows.to_append()  # creates the file if it is missing
    files.read_new()
    view = files.view
    there = [row.id for row in rows if row.id.encode() in view.index]
    new = [row for row in rows if row.id.encode() not in view.index]
    if any(row.id.encode() in view.records for row in new):
        # Rows that were removed by hand: their records must not apply to the new jobs.
        files.fold_and_sync_cut()
        for row in new:
            view.records.pop(row.id.encode(), None)
    content = b"".join(map(_line, new))
    if content:
        file, size = files.rows.append(content)
    else:
        file, size = files.rows.current()
    files.rows.sync_locked(file, size, content)
    return there


def _line(row: Row) -> bytes:
    return f"{row.id}\t{row.type}\t{row.payload}\t".encode() + encode_state(row.state) + b"\n"


def set_moved(files: QueueFiles, address: str) -> None:
    """Record that the queue was moved to an address; "" if it wasn't. Call it under the lock.

    The queue file is rewritten after that: other processes notice that it is another file.
    """
    files.read_new()
    moved.write(files.path, address, fsync=files.fsync)
    if address and files.exists():
        files.rows.current()  # ends a torn last line
        files.view.refresh()
        journal = files.journal.current() if files.view.journal.file else None
        files.rejected += files.replace(journal)
