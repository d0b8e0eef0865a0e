"""The queue file and its journal, for one process: read what is new, change jobs, fold.

A writer acquires the lock, reads what is new, checks that its change is still legal, appends, and
syncs before the caller gets an answer. New rows go to the queue file, changes to the journal.
"""

from __future__ import annotations

import errno
import os
import time
import weakref

from dbbasic_queue import forks
from dbbasic_queue.errors import StoreError, store_error
from dbbasic_queue.store import moved
from dbbasic_queue.store.disk.files import open_file, refuse_mount_point
from dbbasic_queue.store.disk.lock import QueueLock
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.reading.header import has_header
from dbbasic_queue.store.reading.view import View
from dbbasic_queue.store.writing import fold
from dbbasic_queue.store.writing.appends import JournalFile, RowsFile
from dbbasic_queue.store.writing.fold_costs import FoldCosts
from dbbasic_queue.store.writing.rescue import LateRows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MUCH_BYTES = 1 << 20
"""Reading this much takes longer than other processes should wait for the lock."""

_UNLOCKED_READS = 3
"""How often to read without the lock, if there is much to read again each time."""


class QueueFiles:
    """The files of one queue. Call its methods under the lock, unless they say otherwise.

    `change`    `JournalFile.append`
    `rescue`    `LateRows.rescue`, which acquires the lock itself
    `rejected`  how many lines folds have moved to `queue.tsv.rejected` since `take_skipped` last
                reported them
    """

    def __init__(self, path: str, *, fsync: bool, even_if_moved: bool = False) -> None:
        self.path = path
        self.fsync = fsync
        self.even_if_moved = even_if_moved
        """whether calls are made although the queue was moved to another address"""
        self.view = view = View(path)
        self.lock = QueueLock(
            path + ".lock",
            lambda known: _check(path, known or view.was_seen or view.rows.file is not None),
        )
        self.rows = RowsFile(path, view, self.lock, fsync=fsync, even_if_moved=even_if_moved)
        self.journal = JournalFile(path + ".journal", view, self.lock, fsync=fsync)
        self.late_rows = LateRows(self.rows, self.lock)
        self.costs = FoldCosts()
        self.rejected = 0
        # Not methods of this class, to save a call per claim and outcome.
        self.change = self.journal.append
        self.rescue = self.late_rows.rescue
        _all_files.add(self)

    def exists(self) -> bool:
        """Return whether there is something at the queue's path. Needs no lock.

        Raises StoreError if the system refuses.
        """
        try:
            os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as e:
            raise store_error(e, self.path, "nothing was done") from e
        return True

    def require_here(self) -> None:
        """Raise QueueMoved if the queue was moved, as of when `view` has opened its file.

        Needs no lock. If it is held, no other process can move the queue before the release.
        """
        if self.view.moved_to and not self.even_if_moved:
            moved.require_not(self.path)
            self.view.moved_to = ""  # it was moved back

    def close(self) -> None:
        """Close every file. Needs no lock, but other threads must be kept out: see `lock.read`."""
        self.view.was_seen = False
        self.view.close()
        self.rows.close()
        self.journal.close()
        self.late_rows.close()
        self.lock.close()

    def after_fork(self) -> None:
        """In a forked child: forget the parent's files; `disk.openfile` closes the locked ones."""
        self.lock.after_fork()
        self.close()

    # -- reading --

    def catch_up(self) -> None:
        """Read what others have changed in known jobs; new rows may stay unread.

        If there is nothing new in the journal, this costs one read. If the queue's directory was
        moved, the open files are read, wherever they are now.
        """
        view = self.view
        if (view.whole and view.journal.is_current()) or view.follow_journal():
            return
        self.lock.check_path()
        if self.lock.moved:
            view.follow_moved()
        else:
            self.read_new()

    def read_new(self) -> None:
        """Read everything that others have written, even if the file was replaced by hand.

        If that is much, the lock is released in the meantime: decide nothing before this call. Also
        ends torn last lines: each is a row or a record then, or an invalid line.
        """
        self.read_much_unlocked()
        self.late_rows.append()
        self.view.refresh()
        if self.view.has_torn_row():
            self.rows.current()  # ends it
            self.view.refresh()
        self.journal.end_torn_line()

    def read_much_unlocked(self) -> None:
        """If there is much to read, such as a replaced file, release the lock while reading it.

        The lock is held again on return, but others may have changed everything.
        """
        for _ in range(_UNLOCKED_READS):
            if self.view.unread() < _MUCH_BYTES:
                return
            self.lock.release_early()
            self.view.refresh()
            self.lock.reacquire()

    # -- folding --

    def is_fold_cheap(self, seconds: float, share: float = 0.0) -> bool:
        """Return whether a fold takes under `seconds`, or under `share` of the time since the last.

        For the share, the time that this process last needed to re-read after another one's fold is
        added, because a fold makes all other passes re-read. Needs no lock.
        """
        cost = self.costs.expect(self.view.rows.end)
        seconds_since = abs(time.time() - self.lock.folded_at())
        return cost < seconds or cost + self.view.reread_seconds < share * seconds_since

    def fold_if_cheap(self, seconds: float) -> None:
        """Fold if that takes under `seconds`. If it fails, nothing is raised: a later fold does it.

        The lock may be released and acquired again before the fold.
        """
        if self.is_fold_cheap(seconds):
            self.try_fold()

    def try_fold(self) -> OSError | None:
        """Fold; return the error if that fails: nothing is lost, and a later fold does it.

        The lock may be released and acquired again before the fold.
        """
        try:
            self.read_much_unlocked()
            self.fold()
        except OSError as e:
            return e
        return None

    def fold(self) -> None:
        """Merge the journal into the queue file, even if that takes long.

        Doesn't rewrite the file if the journal is empty and no line has to be rejected. Raises
        StoreError if the system refuses.
        """
        if not self.exists():
            return  # removed by hand: only a new job creates it again
        self.late_rows.append()
        self.rows.current()  # ends a torn last line
        self.view.refresh()
        if not self.view.journal.size() and not self.view.binary:
            return
        started = time.perf_counter()
        changes = len(self.view.records)
        journal = self.journal.current() if self.view.journal.file else None
        self.rejected += self.replace(journal)
        self.costs.remember(time.perf_counter() - started, changes, self.view.rows.end)

    def fold_and_sync_cut(self) -> None:
        """Fold so that the journal is empty even after a power cut."""
        self.fold()
        self.journal.sync_cut()

    def replace(
        self,
        journal: OpenFile | None,
        without: frozenset[int] = frozenset(),
        *,
        keep: bool = False,
        payloads: Mapping[int, bytes] | None = None,
    ) -> int:
        """Write a new queue file by `fold.fold`, and go on with it.

        `journal` is cut after the rename; None if there is nothing to cut. The other arguments are
        those of `fold.fold`. Returns how many lines were rejected, not counting those in `without`.
        """
        self.lock.closing += (self.view.rows.file, self.rows.file)
        added = self.view.rows.copy()
        try:
            file, rejected = fold.fold(
                self.view,
                journal,
                added,
                fsync=self.fsync,
                without=without,
                keep=keep,
                payloads=payloads,
            )
            self.rows.replaced(file, self.view.rows.end)
            self.lock.record_fold()
        finally:
            self.late_rows.watch(added)
        return rejected


def _check(path: str, known: bool) -> None:
    """Raise NotAQueue for another program's file, before any file is created next to it.

    Also for a queue file that is mounted by itself: each container would have another lock and
    journal for it. Raise StoreError if the directory is gone although it is `known` to have been
    there: it isn't created again silently.
    """
    directory = os.path.dirname(path)
    if known:
        try:
            os.stat(directory)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise StoreError(
                errno.ENOENT,
                "the queue's directory was moved or removed: nothing was added, and no job is "
                "started (move it back, or restart the program for a new queue)",
                directory,
            ) from e
    file = open_file(path, os.O_RDONLY) if os.path.lexists(path) else None
    if file is not None:
        has_header(file)
        refuse_mount_point(file)


_all_files: weakref.WeakSet[QueueFiles] = weakref.WeakSet()


def _after_fork() -> None:
    for files in list(_all_files):
        files.after_fork()


forks.in_child(_after_fork)
