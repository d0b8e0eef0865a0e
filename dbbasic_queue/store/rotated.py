"""Files of rows that nothing depends on: `queue.tsv.history`, `.output` and `.progress`.

- Whole rows are appended by one write, unsynced, without the lock: they don't mix with the rows of
  other processes. The torn line of an interrupted write can't be cut off, because others may have
  appended since. The next writer ends it, and readers skip it.
- The queue's lock is held to start a file, and to rename a full one to `PATH.1`, so that two
  processes never do that at once. So the two files have at most about twice `largest_bytes`.
- You may delete the files at any time, and rows that can't be written are lost. No caller gets the
  error as an exception: a job must not fail because of these files.
"""

from __future__ import annotations

import errno
import os
import time

from dbbasic_queue.errors import store_error
from dbbasic_queue.store.disk.files import open_file, open_or_create, unstable_inodes
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbbasic_queue.store.disk.lock import QueueLock

LONGEST_ROW_BYTES = 1 << 20
"""A longer line isn't a row; this includes its end."""
_RETRY_SECONDS = 60.0  # after an error: a write that fails may take a while each time
_TRIES = 100


class RotatedFile:
    """Appends rows to the file at `path`, which begins with `header`.

    A file of `largest_bytes` or more is rotated before the next write. `prepare` is called under
    the lock before that, and before a file is created. None of the methods may be called under the
    queue's lock.
    """

    def __init__(
        self,
        path: str,
        header: bytes,
        largest_bytes: int,
        lock: QueueLock,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.largest_bytes = largest_bytes
        self._path = path
        self._header = header
        self._lock = lock
        self._prepare = prepare
        self._file: OpenFile | None = None
        self._next_try_at = 0.0  # on the monotonic clock
        self._failing = False
        """whether the last write failed"""
        self._error: OSError | None = None
        """why it failed, until `take_error` has returned that"""

    def write(self, rows: bytes) -> int | None:
        """Append rows; return the offset of the first one, or None if they are lost.

        After an error, rows are dropped for a minute without another try.
        """
        if time.monotonic() < self._next_try_at:
            return None
        try:
            offset = self._append(rows)
        except OSError as e:
            self._file = None
            self._next_try_at = time.monotonic() + _RETRY_SECONDS
            if not self._failing:
                self._failing, self._error = True, e
            return None
        self._failing = False
        return offset

    def take_error(self) -> OSError | None:
        """Return why rows were lost, or None. Reported once, until a write has succeeded again."""
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """Close the file. The next write opens it again."""
        self._file = None

    def _append(self, rows: bytes) -> int:
        file = self._current()
        size = os.fstat(file.fd).st_size
        is_torn = size and os.pread(file.fd, 1, size - 1) != b"\n"
        content = b"\n" + rows if is_torn else rows
        if os.write(file.fd, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        # Others may have appended before this write; it has moved the offset to its own end.
        return os.lseek(file.fd, 0, os.SEEK_CUR) - len(rows)

    def _current(self) -> OpenFile:
        """Return the file that is at the path: it has a header, and isn't full.

        If it has to be created or rotated for that, the lock is acquired.
        """
        file = self._file
        if file is None or not file.is_ours() or not file.is_at_path():
            file = self._file = open_file(self._path, os.O_RDWR | os.O_APPEND)
        if file is None or not len(self._header) <= os.fstat(file.fd).st_size < self.largest_bytes:
            file = self._file = self._lock.run(self._rotated)
        return file

    def _rotated(self) -> OpenFile:
        """Return a file that has a header and isn't full. Call it under the lock."""
        self._prepare()
        file = open_or_create(self._path, os.O_RDWR | os.O_APPEND)
        size = os.fstat(file.fd).st_size
        if size >= self.largest_bytes:  # otherwise another process has just rotated it
            # Raises NotAQueue if the file that would be replaced isn't ours.
            open_file(self._path + ".1", os.O_RDONLY)
            os.rename(self._path, self._path + ".1")
            file = open_or_create(self._path, os.O_RDWR | os.O_APPEND)
            size = 0
        if size < len(self._header):
            os.ftruncate(file.fd, 0)
            os.write(file.fd, self._header)
        return file


# -- reading: without the lock -----------------------------------------------------------------


def files(path: str, earlier: str | None = None) -> list[OpenFile]:
    """Return the rotated and the current file, without those that don't exist.

    `earlier` is the path that the current file had in an earlier version. Raises NotAQueue if a
    file isn't a queue's, StoreError if it can't be opened.
    """
    for _ in range(_TRIES):
        place = path
        current = open_file(path, os.O_RDONLY)
        if current is None and earlier is not None and os.path.lexists(earlier):
            place = earlier
            current = open_file(place, os.O_RDONLY)
            if current is None:
                continue  # a pass has just renamed it
        # The older file is renamed first, so it may be at its new path already.
        older = open_file(place + ".1", os.O_RDONLY) or open_file(path + ".1", os.O_RDONLY)
        if current is None or current.is_at_path():  # otherwise it was just rotated
            return [file for file in (older, current) if file is not None]
    raise unstable_inodes(path)


def lines(file: OpenFile) -> Iterator[bytes]:
    """Yield the complete lines, and the start of each line that is too long for a row.

    Empty lines are left out: a writer that sees the row of another one half written ends it, too.
    """
    with open(file.fd, "rb", closefd=False) as stream:
        is_inside_line = False
        while True:
            try:
                line = stream.readline(LONGEST_ROW_BYTES)
            except OSError as e:
                raise store_error(e, file.path, "nothing was changed") from e
            if not line:
                return
            is_complete = line.endswith(b"\n")
            is_row = is_complete or len(line) == LONGEST_ROW_BYTES
            if is_row and not is_inside_line and line != b"\n":
                yield line
            is_inside_line = not is_complete


def lines_beginning(file: OpenFile, beginning: bytes) -> Iterator[bytes]:
    """Yield those of the `lines` that begin so, which isn't empty.

    The bytes are searched for it, which is much quicker than to look at each line.
    """
    wanted = b"\n" + beginning
    content, end = b"\n", 0  # a line begins where the file does
    try:
        while piece := os.pread(file.fd, LONGEST_ROW_BYTES, end):
            content += piece
            end += len(piece)
            at = content.find(wanted)
            while at >= 0:
                line = content[at + 1 : content.find(b"\n", at + 1) + 1]
                if not line:  # its end wasn't read yet
                    start = end - len(content) + at + 1
                    line = os.pread(file.fd, LONGEST_ROW_BYTES, start)
                    line = line[: line.find(b"\n") + 1] or line
                line = line[:LONGEST_ROW_BYTES]
                if line.endswith(b"\n") or len(line) == LONGEST_ROW_BYTES:
                    yield line
                at = content.find(wanted, at + 1)
            content = content[-len(beginning) :]
    except OSError as e:
        raise store_error(e, file.path, "nothing was changed") from e
