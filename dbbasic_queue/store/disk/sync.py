"""Writing whole, and waiting until it is on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import sys


def sync(fd: int) -> None:
    """Return when the file's content and size are on the disk.

    macOS only hands them to the drive unless asked with F_FULLFSYNC (its fsync(2) says so).
    """
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: str) -> None:
    """Return when the names in the directory are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte; a short write is followed by the rest, or by the reason why not."""
    written = os.write(fd, content)
    while written < len(content):
        n = os.write(fd, content[written : written + (1 << 20)])
        if n == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += n
