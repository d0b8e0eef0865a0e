"""Rows that other programs append to a queue file that a fold has replaced.

Programs that append without the lock (dbbasic-queue 1.0.0, or `>>` in a shell) don't notice the
rename if they opened the file before. So the replaced file stays open. Its end is checked right
after the rename, and once more by this process's next `read_new`, fold, look for due jobs or
`close`. New rows in it are appended to the queue file.
"""

from __future__ import annotations

from dbbasic_queue.store.reading.tail import Rewritten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.disk.lock import QueueLock
    from dbbasic_queue.store.reading.tail import Tail
    from dbbasic_queue.store.writing.appends import RowsFile


class LateRows:
    """Rows that other programs append to the file that this process has replaced most recently."""

    def __init__(self, rows: RowsFile, lock: QueueLock) -> None:
        self._rows = rows
        self._lock = lock
        self._replaced: Tail | None = None
        """that file, and where its known rows end; None if it isn't watched"""

    def rescue(self) -> None:
        """Append late rows to the queue file, and close the replaced file.

        Acquires the lock if there are any, so don't call it under the lock.
        """
        if self._replaced is not None and self._lock.read(self._has_any):
            self._lock.run(self.append)

    def watch(self, replaced: Tail) -> None:
        """Append rows that are late already, and keep the replaced file open for later ones.

        `replaced` is at the end of the rows that the fold has copied. Call it under the lock, after
        a fold, even a failed one. Raises no OSError, which would hide the fold's own.
        """
        try:
            if replaced.file is None or replaced.file.is_at_path():
                return
        except OSError:
            return
        self._replaced = replaced
        self.append(keep_open=True)

    def _has_any(self) -> bool:
        """Return whether there are late rows; if not, close the replaced file."""
        replaced = self._replaced
        if replaced is None or replaced.size() <= replaced.end:
            self._replaced = None
            return False
        return True

    def append(self, *, keep_open: bool = False) -> None:
        """Append late rows to the queue file, and close the replaced file unless `keep_open`.

        Call it under the lock. The rows aren't synced: the programs that wrote them didn't sync
        them either. Raises no OSError: if the system refuses, the next call tries again.
        """
        replaced = self._replaced
        if replaced is None:
            return
        try:
            if replaced.size() > replaced.end:
                found = replaced.copy()
                for lines in found.new():
                    self._rows.append_late(lines)
                    replaced.go_on_from(found)
        except Rewritten:
            pass  # it was edited in place: nobody can tell which of its rows are new
        except OSError:
            return
        if not keep_open:
            self._lock.closing.append(replaced.file)
            self._replaced = None

    def close(self) -> None:
        """Close the replaced file."""
        self._replaced = None
