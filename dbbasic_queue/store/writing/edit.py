"""Replaces the payload of a pending job by one rewrite of the queue file.

A payload is in the job's row only, so the journal can't change it. The rewrite is a fold that also
writes the new payload: a crash leaves the old file and the journal, or the new file and a journal
whose replay changes no payload.

A pass that has chosen the job without the lock compares its payload under the lock, before it
claims it, because every rewrite changes the view's `generation`.
"""

from __future__ import annotations

from dbbasic_queue.model.states import PENDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.writing.queue_files import QueueFiles


def edit(files: QueueFiles, key: bytes, payload: bytes, before: str | None = None) -> bool:
    """Give the job with the id `key` this payload, if it is pending; return whether it was.

    With `before`, it must also still have that payload. On the disk on return. Call it under the
    lock. Raises StoreError if the system refuses; the error says whether the change was made.
    """
    files.read_new()
    files.require_here()
    view = files.view
    row = view.find(key)
    if row is None or row.state.status != PENDING:
        return False
    if before is not None and row.payload != before:
        return False
    number = view.index[key]
    journal = files.journal.current() if view.journal.file else None
    files.rejected += files.replace(journal, payloads={number: payload})
    view.note_pending(number)
    return True
