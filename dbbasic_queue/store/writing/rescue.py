"""Rows that other programs append to a queue file that a fold has replaced.

Programs that append without the lock (dbbasic-queue 1.0.0, or `>>` in a shell) don't notice the
rename if they opened the file before. So the replaced file stays open: its end is checked right
after the rename, at the next change or look, at the next pass, and at `close`. New rows in it are
appended to the queue file.
"""

from __future__ import annotations

from dbbasic_queue.store.reading.tail import Rewritten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.disk.lock import QueueLock
    from dbbasic_queue.store.reading.tail import Tail
    from dbbasic_queue.store.writing.appends import RowsFile


class LateRows:
    """The rows that are appended to the file that this process has replaced last."""

    def __init__(self, rows: RowsFile, lock: QueueLock) -> None:
        self._rows = rows
        self._lock = lock
        self._replaced: Tail | None = None

    def rescue(self) -> None:
        """Append late rows to the queue file, and close the replaced file. Acquires the lock."""
        if self._replaced is not None and self._lock.read(self._has_any):
            self._lock.run(self.append)

    def watch(self, replaced: Tail) -> None:
        """Append the rows that are late already, and keep the replaced file open for others.

        Under the lock, after a fold. An error here must not hide the fold's own.
        """
        try:
            if replaced.file is None or replaced.file.is_at_path():
                return
        except OSError:
            return
        self._replaced = replaced
        self.append(keep_open=True)

    def _has_any(self) -> bool:
        replaced = self._replaced
        if replaced is None or replaced.size() <= replaced.end:
            self._replaced = None
            return False
        return True

    def append(self, *, keep_open: bool = False) -> None:
        """Append late rows to the queue file. Under the lock.

        They aren't synced: the programs that wrote them didn't sync them either. If the disk is
        full, the next call tries again.
        """
        replaced = self._replaced
        if replaced is None:
            return
        try:
            if replaced.size() > replaced.end:
                found = replaced.copy()
                for lines in found.new():
                    self._rows.append(lines)
                    replaced.go_on_from(found)
        except Rewritten:
            pass  # nobody can tell which of its rows are new
        except OSError:
            return
        if not keep_open:
            self._lock.closing.append(replaced.file)
            self._replaced = None

    def close(self) -> None:
        """Close the replaced file."""
        self._replaced = None
