"""The archive of a purge: a plain TSV file with the rows that have left the queue.

- Several queues may share an archive, so a lock file of its own, `NAME.lock`, is held while rows
  are appended.
- The header is on the disk before any row, so a file that begins differently isn't an archive.
- A torn last line, which a crash has left, is cut off: its row is still in the queue.
"""

from __future__ import annotations

import errno
import os
import time

from dbbasic_queue.errors import InvalidArgument, NotAQueue, QueueBusy, QueueError, store_error
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.store.disk.files import append, open_file, open_or_create
from dbbasic_queue.store.disk.openfile import OpenFile
from dbbasic_queue.store.disk.sync import sync_directory

PATIENCE_SECONDS = 60.0
"""How long to wait for another purge into the same archive."""

_POLL_SECONDS = 0.01
_READ_BYTES = 1 << 16


def path_of(archive: str | os.PathLike[str], queue: str) -> str:
    """Return the path of an archive of the queue with the path `queue`.

    Raises InvalidArgument for a name that it can't have.
    """
    name = os.fspath(archive)
    path = os.path.abspath(name)
    if path.endswith(".gz"):
        raise InvalidArgument(
            f"invalid archive {name!r}: archives are plain TSV files now (choose a name that "
            "doesn't end in .gz; logrotate can compress it, and zcat still reads old archives)"
        )
    if f"{os.path.realpath(path)}.".startswith(os.path.realpath(queue) + "."):
        raise InvalidArgument(
            f"invalid archive {name!r}: this is a file of the queue (choose another name)"
        )
    return path


def append_rows(path: str, lines: list[bytes]) -> None:
    """Append rows to an archive, with a header if it is new; they are on the disk on return.

    `lines` are without their line ends. Needs no lock of the queue. Raises NotAQueue if the file at
    `path` isn't an archive: then no file was created. Raises QueueBusy if another purge has held
    the archive's lock for a minute, StoreError if the system refuses. Then nothing was appended,
    unless the error says otherwise; if the archive was being rotated, the rotated file may have the
    rows.
    """
    try:
        check(path)
        lock = _lock(path)
        try:
            while not _append(path, lines):
                pass  # logrotate has renamed it, and may have compressed it too early
        finally:
            _unlock(lock)
    except OSError as e:
        if isinstance(e, QueueError):
            raise
        raise store_error(e, e.filename or path, "nothing was archived") from e


def check(path: str) -> None:
    """Raise NotAQueue if the file at `path` isn't an archive, or `NAME.lock` isn't a lock file.

    Either may be missing. Nothing is created.
    """
    file = open_file(path, os.O_RDONLY)
    if file is not None:
        _require_archive(file)
    if os.path.lexists(path + ".journal"):
        raise _not_an_archive(path, "a queue, not an archive")
    lock = open_file(path + ".lock", os.O_RDONLY)
    if lock is not None and os.fstat(lock.fd).st_size:
        raise _not_an_archive(lock.path, "the lock file of an archive is empty, this file isn't")


def _require_archive(file: OpenFile) -> None:
    if not _has_header(file) and not _is_header_torn(file):
        raise _not_an_archive(file.path, "not an archive: the first line isn't a queue's header")


def _not_an_archive(path: str, why: str) -> NotAQueue:
    return NotAQueue(
        errno.EINVAL, f"{why} (it was left untouched; give the archive another name)", path
    )


def _has_header(file: OpenFile) -> bool:
    return os.pread(file.fd, len(HEADER), 0) == HEADER


def _is_header_torn(file: OpenFile) -> bool:
    """Return whether the file is empty, or has only a header that a crash has left incomplete.

    It may have been cut short, and after a power cut some of its bytes may be NUL.
    """
    start = os.pread(file.fd, len(HEADER) + 1, 0)
    return len(start) <= len(HEADER) and all(
        byte in (0, whole) for byte, whole in zip(start, HEADER, strict=False)
    )


def _lock(path: str) -> OpenFile:
    # Imported here: filelock adds hooks to every program that imports it.
    from filelock import lock_descriptor

    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        lock = open_or_create(path + ".lock", os.O_RDWR, to_lock=True)
        while not lock_descriptor(lock.fd, blocking=False):
            if time.monotonic() >= end:
                raise QueueBusy(
                    errno.EAGAIN,
                    f"another purge has been writing this archive for {PATIENCE_SECONDS:.0f} "
                    f"seconds; nothing was done (fuser -v {path}.lock shows which)",
                    path,
                )
            time.sleep(_POLL_SECONDS)
        if lock.is_at_path():
            return lock


def _unlock(lock: OpenFile) -> None:
    from filelock import unlock_descriptor

    unlock_descriptor(lock.fd)
    lock.close()


def _append(path: str, lines: list[bytes]) -> bool:
    """Append and sync the rows, all or none; return whether the file is still at its path."""
    file = open_or_create(path, os.O_RDWR | os.O_APPEND)
    _require_archive(file)
    if _has_header(file):
        size = _cut_torn_line(file)
    else:
        os.ftruncate(file.fd, 0)
        append(file, 0, HEADER)
        os.fsync(file.fd)
        size = len(HEADER)
    append(file, size, b"\n".join(lines) + b"\n")
    try:
        os.fsync(file.fd)
        sync_directory(os.path.dirname(path))
    except BaseException:
        os.ftruncate(file.fd, size)
        raise
    return file.is_at_path()


def _cut_torn_line(file: OpenFile) -> int:
    """Cut off a last line without a line end, which a crash has left; return the size."""
    size = end = os.fstat(file.fd).st_size
    cut = 0
    while end and not cut:
        start = max(end - _READ_BYTES, 0)
        piece = os.pread(file.fd, end - start, start)
        cut = start + piece.rfind(b"\n") + 1 if b"\n" in piece else 0
        end = start
    if cut < size:
        os.ftruncate(file.fd, cut)
    return cut
