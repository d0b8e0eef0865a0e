"""Checks that a file begins with the header: another program's file must never be changed."""

from __future__ import annotations

import errno
import os

from dbbasic_queue.errors import NotAQueue, QueueDamaged
from dbbasic_queue.model.rows import HEADER, is_header, parse_row
from dbbasic_queue.store.disk.openfile import OpenFile


def require_header(line: bytes, path: str) -> None:
    """Raise NotAQueue unless `line`, a file's first line without its end, is the header.

    If it is a job, or has a NUL, the header was lost: then this raises QueueDamaged, a NotAQueue.
    """
    if not is_header(line):
        if b"\0" in line or parse_row(line) is not None:
            raise QueueDamaged(
                errno.EINVAL,
                "the header is lost: the first line is a job, or has NUL bytes (the file was left "
                "untouched; restore the header, nine column names, as its first line)",
                path,
            )
        raise NotAQueue(
            errno.EINVAL,
            "the first line is not the header of a queue (the file was left untouched; "
            "check the path)",
            path,
        )


def has_header(file: OpenFile) -> bool:
    """Return whether a file has its header: False if it is empty, or the header is torn.

    Raises NotAQueue if the file begins with anything else.
    """
    start = os.pread(file.fd, len(HEADER) + 4, 0)
    if len(start) < len(HEADER) and HEADER.startswith(start):
        return False
    require_header(start.split(b"\n")[0], file.path)
    return True


def require_partial_header(file: OpenFile) -> None:
    """Raise NotAQueue unless the file, which has no complete line, is empty or a torn header."""
    start = os.pread(file.fd, len(HEADER), 0)
    if not HEADER.startswith(start):
        require_header(start, file.path)
