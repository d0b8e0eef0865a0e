"""An open file that can tell whether its descriptor number still belongs to it.

Programs close descriptors that they didn't open (`os.closerange` in a daemon library), and then
open files of their own under the same numbers. So `is_ours` is called before a descriptor that was
kept open is locked, written or cut.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from itertools import count

from dbbasic_queue import forks
from dbbasic_queue.errors import StoreError

TELLING_OFFSET = 1 << 12
"""From here on, a file's end is as good as a mark: no other descriptor is likely to be there."""

_FIRST_FD = 3
"""Lower ones are standard input, output and error: the program prints there."""

_NAMES = slice(1, 4)
"""the part of a stat result that says which file it is, and how many names it has"""

_SEEK_SET, _SEEK_CUR = os.SEEK_SET, os.SEEK_CUR
_marks = count(1 << 30 | int.from_bytes(os.urandom(3), "big"))

_last_mark: dict[int, int] = {}
"""descriptor number -> the mark of the last file of ours that got this number"""

_to_close_after_fork: weakref.WeakSet[OpenFile] = weakref.WeakSet()
"""Files that are, or will be, locked: a forked child closes them. The lock belongs to the open
file, which parent and child share: the child must neither keep it nor, by an unlock, free it."""


class OpenFile:
    """A descriptor that is closed when nothing uses the object any more.

    A file that is kept open also keeps its inode number: no new file can get the same one.

    Each object has a **mark**, a large number that no other object of the process has. The mark is
    kept where only the right descriptor can have it: as its file offset, which O_APPEND and pread
    don't use. So `is_ours` is mostly one `lseek` that must return the mark. After a write the
    offset is the end of the file instead: from 4 KiB on, that is compared; otherwise the mark is
    set again. If the offset is another one, an `fstat` decides, which takes five times as long.

    `fd`           the descriptor; -1 once it is closed
    `path`         where it was opened, or renamed to
    `offset`       where the descriptor's offset must be: the mark, or the end of the last write
    `identity`     device and inode number
    `needs_mark`   True for a file that is never written: then only the mark counts, because
                   another descriptor of the same file would have another lock
    """

    __slots__ = (
        "__weakref__",
        "_ctime_ns",
        "_mark",
        "_names",
        "fd",
        "identity",
        "needs_mark",
        "offset",
        "path",
    )

    def __init__(self, fd: int, path: str) -> None:
        """Take over a descriptor; it may get another number."""
        if fd < _FIRST_FD:
            low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
            os.close(low)
        status = os.fstat(fd)
        self.fd = fd
        self.path = path
        self.identity = (status.st_dev, status.st_ino)
        self._names, self._ctime_ns = status[_NAMES], status.st_ctime_ns
        self.offset = self._mark = _last_mark[fd] = next(_marks)
        self.needs_mark = False

    def close(self) -> None:
        """Close the descriptor, if it still is this file's; a second call does nothing."""
        if self.fd >= 0 and self.is_ours():
            fd, self.fd = self.fd, -1
            os.close(fd)
        self.fd = -1

    def __del__(self) -> None:
        # At the interpreter's end, modules lose their globals before the last objects go.
        if _SEEK_CUR is not None:
            self.close()

    def is_ours(self) -> bool:
        """Return whether the descriptor still is the file that was opened."""
        try:
            if os.lseek(self.fd, 0, _SEEK_CUR) == self.offset:
                return True
            status = os.fstat(self.fd)
            if self.needs_mark or (status.st_dev, status.st_ino) != self.identity:
                return False
            self.set_mark()
        except OSError:
            return False
        return True

    def set_mark(self) -> bool:
        """Set the offset to the mark; return False if the file system doesn't allow that."""
        try:
            self.offset = os.lseek(self.fd, self._mark, _SEEK_SET)
        except OSError:
            return False
        return True

    def require(self, consequence: str) -> None:
        """Raise StoreError, with the `consequence` in its message, if the descriptor isn't ours."""
        if not self.is_ours():
            raise StoreError(
                errno.EBADF,
                f"the program has closed this file's descriptor: {consequence} (it must not close "
                "descriptors that it didn't open)",
                self.path,
            )

    def remember_names(self) -> None:
        """Remember how many names the file has, and its ctime, for `is_untouched`."""
        status = os.fstat(self.fd)
        self._names, self._ctime_ns = status[_NAMES], status.st_ctime_ns

    def is_untouched(self) -> bool:
        """Return whether the descriptor is ours, and the file untouched since `remember_names`.

        A name that is added or removed touches it, and so does anything else that sets the ctime,
        such as a chmod. Quicker than `is_at_path`, but a directory that was moved isn't noticed.
        """
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (
            status[_NAMES] == self._names
            and status.st_ctime_ns == self._ctime_ns
            and _last_mark[self.fd] == self._mark
        )

    def is_at_path(self) -> bool:
        """Return whether the path still leads to this file."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


def open_descriptor(path: str, flags: int, *, to_lock: bool) -> OpenFile:
    """Open a file, or create it if the flags allow that; a symbolic link isn't followed.

    Pass `to_lock` for a file that will be locked: then a forked child closes its copy. Raises the
    system's OSError. A new file has mode 0600.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if not to_lock:
        return OpenFile(os.open(path, flags, 0o600), path)
    return forks.while_opening(_open_and_register, path, flags)


def _open_and_register(path: str, flags: int) -> OpenFile:
    file = OpenFile(os.open(path, flags, 0o600), path)
    _to_close_after_fork.add(file)
    return file


def _after_fork() -> None:
    for file in list(_to_close_after_fork):
        file.close()


forks.in_child(_after_fork)
