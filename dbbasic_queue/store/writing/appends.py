"""Appends rows to the queue file and records to the journal.

- An append is made under the lock: all of it, or nothing.
- With `fsync`, records are on the disk when `JournalFile.append` returns, rows when
  `RowsFile.sync_added` does.
- If the sync fails, they are cut off again, unless another process may already depend on them: it
  has written after them, has folded, or has changed one of the new jobs.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import store_error
from dbbasic_queue.model.records import encode_record
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.store import moved
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

    The error says `undone` if `undo` returns True, otherwise `left`. `undo` must forget the
    descriptor, which must never be synced again: a second sync may succeed although the content is
    lost, because the kernel may have marked it as written (https://lwn.net/Articles/752063/).
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
    """The queue file, open for appending rows.

    Its methods are called under the lock, except `sync_added` and `close`.
    """

    def __init__(
        self, path: str, view: View, lock: QueueLock, *, fsync: bool, even_if_moved: bool
    ) -> None:
        self.path = path
        self.fsync = fsync
        self.view = view
        self.lock = lock
        self.even_if_moved = even_if_moved
        """whether rows are added although the queue was moved"""
        self._is_moved = False
        """whether it was moved, as of when the file was opened"""
        self.file: OpenFile | None = None
        self._ended_at = -1
        """the size at which the file's last line is known to have an end; -1 if unknown"""

    @even_if_moved
    def append(self, content: bytes) -> tuple[OpenFile, int]:
        """Append whole lines, unsynced; return the file and the size that it had before.

        If `fsync` is wanted, call `sync_added` with these after the unlock. Raises StoreError if
        the system refuses: then nothing was appended, unless the error says otherwise. Raises
        QueueMoved, with nothing appended, if the queue was moved.
        """
        file, size = self.current()
        if self._is_moved:
            self._require_here()
        append(file, size, content)
        self._ended_at = size + len(content)
        return file, size

    def append_late(self, content: bytes) -> None:
        """Append lines that another program has added to a replaced file, even if it was moved."""
        file, size = self.current()
        append(file, size, content)
        self._ended_at = size + len(content)

    def to_append(self) -> tuple[OpenFile, int]:
        """Return the same as `current`. Raises QueueMoved if the queue was moved."""
        found = self.current()
        if self._is_moved:
            self._require_here()
        return found

    def _require_here(self) -> None:
        if not self.even_if_moved:
            moved.require_not(self.path)
            self._is_moved = False  # it was moved back

    def current(self) -> tuple[OpenFile, int]:
        """Return the file that is at the path now, and its size.

        Creates the file if it is missing, and ends a torn last line.
        """
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
        """Open the file at the path, or create it; the caller then tries again.

        If the lock's path wasn't checked yet, only acquire the lock that is at the path now.
        """
        if not self.lock.path_checked:
            self.lock.reacquire()
        elif create:
            if not self.even_if_moved:
                moved.require_not(self.path)
            replace_file(self.path, HEADER, "nothing was added", ending=".fold", fsync=self.fsync)
        elif file := open_file(self.path, os.O_RDWR | os.O_APPEND):
            self._begin(file)
            self.file = file
            self._is_moved = moved.read(self.path) != ""

    def _begin(self, file: OpenFile) -> None:
        """Check the header, and write it if it is missing or torn. Then sync the directory.

        The process that created the file may have died before it could sync the directory. Raises
        NotAQueue if the file begins with anything else.
        """
        if not has_header(file):
            os.ftruncate(file.fd, 0)
            append(file, 0, HEADER)
        if self.fsync:
            sync_directory(os.path.dirname(self.path))
        self._ended_at = -1

    def replaced(self, file: OpenFile, end: int) -> None:
        """Switch to the file that a fold of this process has moved to the path.

        `end` is how many bytes of it are known to be complete lines.
        """
        self.file = file
        self._ended_at = end

    def close(self) -> None:
        """Close the file, if nothing else in this process uses it; the next call opens it again."""
        self.file = None

    def sync_added(self, file: OpenFile, size: int, content: bytes) -> None:
        """Sync the rows that `append` was given as `content`; `file` and `size` are its result.

        Called after the unlock, so that several processes can wait for the disk at the same time.
        If a fold copies the rows in the meantime, it syncs the copy itself. Raises StoreError if
        the system refuses; the error says whether the rows were cut off again or may run.
        """
        _sync_or_undo(
            file,
            lambda: self._cut_off(file, size, content),
            "nothing was added",
            "the jobs were added and may run, but may not survive a power cut",
        )

    def sync_found(self, file: OpenFile) -> None:
        """Sync rows that another call may have added, and not synced yet.

        Called after the unlock. Raises StoreError if the system refuses.
        """
        _sync_or_undo(
            file,
            self._forget_file,
            "",
            "such a job is in the queue and may run, but may not survive a power cut",
        )

    def _forget_file(self) -> bool:
        self.file = None
        return False

    def sync_locked(self, file: OpenFile, size: int, content: bytes) -> None:
        """Do the same as `sync_added` while the lock is held.

        With b"" as `content`, sync what others have appended.
        """

        def undo() -> bool:
            self.file = None
            return content != b"" and self._cut_off_locked(file, size, content)

        if self.fsync:
            left = "the jobs were added and may run, but may not survive a power cut"
            _sync_or_undo(file, undo, "nothing was added", left if content else "nothing was added")

    def _cut_off(self, file: OpenFile, size: int, content: bytes) -> bool:
        self.file = None
        return self.lock.run(self._cut_off_locked, file, size, content)

    def _cut_off_locked(self, file: OpenFile, size: int, content: bytes) -> bool:
        """Cut the rows off if they are still the last ones, and no record is about their jobs.

        Returns False, and changes nothing, if they must stay.
        """
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
    """The journal, open for appending records.

    Its methods are called under the lock, except `close`. `append` is called only after `view` has
    read all of the journal.
    """

    def __init__(self, path: str, view: View, lock: QueueLock, *, fsync: bool) -> None:
        self.path = path
        self.fsync = fsync
        self.view = view
        self.lock = lock
        self._file: OpenFile | None = None

    def append(self, changes: list[tuple[bytes, bytes]], *, last: bool = False) -> None:
        """Append new states of jobs, (id, state); with `fsync`, they are on the disk on return.

        The caller has checked that the changes are legal. With `last`, the lock is released before
        the sync, so that other processes needn't wait for the disk: the caller must not do anything
        else that needs the lock. Raises StoreError if the system refuses; the error says whether
        the change was made.
        """
        if len(changes) == 1:
            content = encode_record(*changes[0])
        else:
            content = b"".join([encode_record(job_id, state) for job_id, state in changes])
        file = self.current()
        start = self.view.journal.end
        append(file, start, content, "nothing was changed")
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

    def append_unsynced(self, job_id: bytes, state: bytes) -> None:
        """Append a record that changes nothing, so it needn't survive a power cut."""
        content = encode_record(job_id, state)
        file = self.current()
        append(file, self.view.journal.end, content, "nothing was changed")
        self.view.wrote(content, [(job_id, state)])

    def current(self) -> OpenFile:
        """Return the journal, open for writing; create it if there is none.

        From now on, `view` reads through the same descriptor. So if it has just been read from, it
        needn't be checked again before it is written.
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
        """End a torn last line, so that the next record starts on a line of its own.

        Readers skip the torn one, unless only its line end was missing.
        """
        journal = self.view.journal
        if journal.size() > journal.end:
            append(self.current(), journal.size(), b"\n", "nothing was changed")
            self.view.refresh()

    def sync_cut(self) -> None:
        """Sync the journal after a fold has cut it, so that no power cut brings the records back.

        Raises OSError if the system refuses.
        """
        if self.fsync and self.view.journal.file:
            try:
                sync(self.current().fd)
            except OSError:
                self._file = None  # never synced again: see `_sync_or_undo`
                raise

    def close(self) -> None:
        """Close the file, if nothing else in this process uses it; the next call opens it again."""
        self._file = None

    def _cut_off(self, file: OpenFile, start: int, content: bytes, *, unlocked: bool) -> bool:
        """Cut the records off if they are still the last ones, and no fold has copied them.

        Returns False if they must stay. If the lock is `unlocked`, it is acquired again.
        """
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
