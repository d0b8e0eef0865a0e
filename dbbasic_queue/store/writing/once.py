"""Adds a job unless there is one already: with the same id, or a pending one with its payload.

- The look-up and the append are made under one hold of the lock, after everything new was read. So
  of several concurrent callers, one adds the job, and the others find it.
- A job that is found may have been added a moment ago by a process that is still syncing it. If
  that sync fails, that process cuts the row off, unless the journal has a record of the job. So a
  pending job that is found gets such a record, with the state that it has. And its row is synced
  before its id is returned: then it is as safe as one that was added.
"""

from __future__ import annotations

from dbbasic_queue.errors import DuplicateJob
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.store.disk.lock import even_if_moved
from dbbasic_queue.store.reading.unique import PendingPayloads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.openfile import OpenFile
    from dbbasic_queue.store.writing.queue_files import QueueFiles

    Place = tuple[OpenFile, int]
    """the file to sync, and the size that it had before a row was added"""

_MUCH_ROWS = 10_000
"""Reading that many payloads takes longer than other processes should wait for the lock."""

_UNLOCKED_READS = 3
"""How often to read payloads without the lock, if there are so many of them each time."""


class AddOnce:
    """Adds jobs to one queue unless they are there already."""

    def __init__(self, files: QueueFiles, append_if_free: Callable[[bytes, str], Place]) -> None:
        """`append_if_free` appends a row, or raises DuplicateJob if its id is taken."""
        self._files = files
        self._append_if_free = append_if_free
        self._pending = PendingPayloads(files.view)

    def add_with_id(self, row: str, own_id: str) -> None:
        """Add a job unless one has the id `own_id`; on the disk on return either way.

        Raises DuplicateJob if only an unreadable row has the id.
        """
        content = row.encode()
        found, place = self._files.lock.run(self._append_or_find_id, content, own_id)
        self._sync(found, place, content)

    def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
        """Add a job unless one of this type with the same payload is pending; return that one's id.

        Returns None if the job was added. On the disk on return either way.
        """
        content = row.encode()
        find = self._append_or_find_payload
        found, place = self._files.lock.run(find, content, job_type, payload)
        self._sync(found, place, content)
        return found.id if found else None

    @even_if_moved
    def _append_or_find_id(self, content: bytes, own_id: str) -> tuple[Row | None, Place]:
        try:
            return None, self._append_if_free(content, own_id)
        except DuplicateJob:
            found = self._files.view.find(own_id.encode())
            if found is None:
                raise
        self._keep(found)
        return found, self._files.rows.current()

    @even_if_moved
    def _append_or_find_payload(
        self, content: bytes, job_type: str, payload: str
    ) -> tuple[Row | None, Place]:
        rows = self._files.rows
        rows.to_append()  # creates the file if it is missing
        self._read_payloads()
        found = self._pending.find(job_type, payload)
        if found is None:
            return None, rows.append(content)
        self._keep(found)
        return found, rows.current()

    def _read_payloads(self) -> None:
        """Read everything new. If that is much, the lock is released in the meantime."""
        files = self._files
        for _ in range(_UNLOCKED_READS):
            files.read_new()
            if self._pending.unread() <= _MUCH_ROWS:
                break
            files.lock.release_early()
            self._pending.update()
            files.lock.reacquire()
        else:
            files.read_new()
        self._pending.update()

    def _keep(self, found: Row) -> None:
        """Give a pending job a record: then the process that is adding it won't cut it off."""
        files, key = self._files, found.id.encode()
        if found.state.status == PENDING and key not in files.view.records:
            files.journal.end_torn_line()
            files.journal.append_unsynced(key, encode_state(found.state))

    def _sync(self, found: Row | None, place: Place, content: bytes) -> None:
        file, size = place
        if not self._files.fsync:
            return
        if found is None:
            self._files.rows.sync_added(file, size, content)
        else:
            self._files.rows.sync_found(file)
