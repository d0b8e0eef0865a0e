"""How content and names get to the disk: written completely, and synced."""

from __future__ import annotations

import errno
import fcntl
import os
import sys

_PIECE_BYTES = 1 << 20


def sync(fd: int) -> None:
    """Wait until the file's content and size are on the disk.

    Without F_FULLFSYNC, macOS only hands them to the drive (its fsync(2) says so).
    """
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: str) -> None:
    """Wait until the names in the directory are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte, by several writes if the first is short.

    Raises OSError if that fails: then a part may have been written.
    """
    written = os.write(fd, content)
    while written < len(content):
        n = os.write(fd, content[written : written + _PIECE_BYTES])
        if n == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += n
