"""Appends rows to the queue file and records to the journal.

- An append is made under the lock: all of it, or nothing.
- A call that returns has synced what it appended.
- What couldn't be synced is cut off again, if no other process has seen it and gone on from it.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import store_error
from dbbasic_queue.model.records import encode_record
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.store.disk.files import (
    append,
    end_last_line,
    open_file,
    open_or_create,
    replace_file,
    unstable_inodes,
)
from dbbasic_queue.store.disk.lock import even_if_moved
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.disk.sync import sync, sync_directory
from dbbasic_queue.store.reading.header import has_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.store.disk.lock import QueueLock
    from dbbasic_queue.store.reading.view import View

_TRIES = 100


def _sync_or_undo(file: OpenFile, undo: Callable[[], bool], undone: str, left: str) -> None:
    """Sync what was appended to a file; if that fails, undo the append and raise StoreError.

    The error says `undone` if `undo` returns True, otherwise what is `left`. After an error `undo`
    must forget the descriptor: it is never synced again, because the kernel may mark the lost
    pages as written (https://lwn.net/Articles/752063/).
    """
    try:
        sync(file.fd)
    except OSError as e:
        consequence = left
        try:
            if undo():
                consequence = undone
        except OSError:
            pass  # what was appended stays
        raise store_error(e, file.path, consequence) from e


class RowsFile:
    """The queue file, open for appending rows. Called under the lock, except `sync_added`."""

    def __init__(self, path: str, view: View, lock: QueueLock, *, fsync: bool) -> None:
        self.path = path
        self.fsync = fsync
        self.view = view
        self.lock = lock
        self.file: OpenFile | None = None
        self._ended_at = -1
        """the file's size when its last line was known to have an end"""

    @even_if_moved
    def append(self, content: bytes) -> tuple[OpenFile, int]:
        """Append whole lines, not synced; return the file and the size that it had before.

        Raises StoreError if the system refuses: then nothing was appended.
        """
        file, size = self.current()
        append(file, size, content)
        self._ended_at = size + len(content)
        return file, size

    def current(self) -> tuple[OpenFile, int]:
        """Return the file that is at the path now, its last line ended, and its size."""
        tries = 0
        while True:
            file = self.file
            try:
                status = os.lstat(self.path)
            except FileNotFoundError:
                self._open(create=True)
                continue
            if (
                file is None
                or file.identity != (status.st_dev, status.st_ino)
                or not file.is_ours()
            ):
                if (tries := tries + 1) > _TRIES:
                    raise unstable_inodes(self.path)
                self._open(create=False)
                continue
            size = status.st_size
            if not size:
                self._begin(file)
                continue
            if size != self._ended_at:
                self._ended_at = size = end_last_line(file, size)
            return file, size

    def _open(self, *, create: bool) -> None:
        """Open the file at the path, or create it, under the lock that is there."""
        if not self.lock.path_checked:
            self.lock.reacquire()
        elif create:
            replace_file(self.path, HEADER, "nothing was added", ending=".fold", fsync=self.fsync)
        elif file := open_file(self.path, os.O_RDWR | os.O_APPEND):
            self._begin(file)
            self.file = file

    def _begin(self, file: OpenFile) -> None:
        """Check the header, and write it if the file is empty. Then sync the directory.

        The process that created the file may have died before it could sync the directory.
        """
        if not has_header(file):
            os.ftruncate(file.fd, 0)
            append(file, 0, HEADER)
        if self.fsync:
            sync_directory(os.path.dirname(self.path))
        self._ended_at = -1

    def replaced(self, file: OpenFile, end: int) -> None:
        """Go on with the file that a fold of ours has moved to the path; its lines end at `end`."""
        self.file = file
        self._ended_at = end

    def close(self) -> None:
        """Close the file, if nobody else uses it; the next call opens it again."""
        self.file = None

    def sync_added(self, file: OpenFile, size: int, content: bytes) -> None:
        """Sync what `append` has appended. Called after the unlock.

        So enqueues of several processes wait for the disk together. A fold that copies the rows in
        the meantime syncs them itself. Raises StoreError if the system refuses; the error says
        whether the rows could be cut off again.
        """
        _sync_or_undo(
            file,
            lambda: self._cut_off(file, size, content),
            "nothing was added",
            "the jobs were added and may run, but may not survive a power cut",
        )

    def _cut_off(self, file: OpenFile, size: int, content: bytes) -> bool:
        self.file = None
        return self.lock.run(self._cut_off_locked, file, size, content)

    def _cut_off_locked(self, file: OpenFile, size: int, content: bytes) -> bool:
        """Cut the rows off, if they still are the last ones and no job of them was started."""
        if not file.is_ours() or not file.is_at_path():
            return False
        if os.fstat(file.fd).st_size != size + len(content):
            return False
        view = self.view
        view.refresh()
        first = len(view.when) - content.count(b"\n")
        if any(view.index.get(job_id, -1) >= first for job_id in view.records):
            return False
        view.whole = False  # it has the rows
        os.ftruncate(file.fd, size)
        return True


class JournalFile:
    """The journal, open for appending records. Called under the lock, when all of it was read."""

    def __init__(self, path: str, view: View, lock: QueueLock, *, fsync: bool) -> None:
        self.path = path
        self.fsync = fsync
        self.view = view
        self.lock = lock
        self._file: OpenFile | None = None

    def append(self, changes: list[tuple[bytes, bytes]], *, last: bool = False) -> None:
        """Append the new states of jobs, pairs of id and state; on the disk on return.

        The caller knows the changes to be legal. If they are the `last` thing that it does under
        the lock, the lock is released before the sync, so that others needn't wait for the disk.
        Raises StoreError if the system refuses; the error says whether nothing was changed.
        """
        if len(changes) == 1:
            content = encode_record(*changes[0])
        else:
            content = b"".join([encode_record(job_id, state) for job_id, state in changes])
        file = self.current()
        start = self.view.journal.end
        append(file, start, content)
        self.view.wrote(content, changes)
        if self.fsync:
            if last:
                self.lock.release_early()
            _sync_or_undo(
                file,
                lambda: self._cut_off(file, start, content, unlocked=last),
                "nothing was changed",
                "the change was made, but may not survive a power cut",
            )

    def current(self) -> OpenFile:
        """Return the journal, which is created if there is none.

        From now on it is also read through this descriptor. So one that was just read from needn't
        be checked again before it is written.
        """
        file, seen = self._file, self.view.journal.file
        if file is None or file is not seen:
            if file is None or not seen or file.identity != seen.identity or not file.is_ours():
                file = self._file = open_or_create(self.path, os.O_RDWR | os.O_APPEND)
                if self.fsync:
                    sync_directory(os.path.dirname(self.path))
            self.view.journal.file = file
        return file

    def end_torn_line(self) -> None:
        """End a last line without a line end, so that it is skipped."""
        journal = self.view.journal
        if journal.size() > journal.end:
            append(self.current(), journal.size(), b"\n")
            self.view.refresh()

    def sync_cut(self) -> None:
        """Sync the journal after a fold has cut it: no power cut brings the records back."""
        if self.fsync and self.view.journal.file:
            try:
                sync(self.current().fd)
            except OSError:
                self._file = None  # never synced again: see `_sync_or_undo`
                raise

    def close(self) -> None:
        """Close the file, if nobody else uses it; the next call opens it again."""
        self._file = None

    def _cut_off(self, file: OpenFile, start: int, content: bytes, *, unlocked: bool) -> bool:
        """Cut the records off, if they still are the last ones, and no fold has copied them."""
        rows = self.view.rows.file
        self._file = None
        self.view.close()
        if unlocked:
            self.lock.reacquire()
        if rows is not None and not rows.is_at_path():
            return False
        if not file.is_ours() or os.pread(file.fd, len(content) + 1, start) != content:
            return False
        os.ftruncate(file.fd, start)
        return True
