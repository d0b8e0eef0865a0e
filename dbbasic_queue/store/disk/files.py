"""How the queue's files are opened, created, replaced and appended to.

- A new file gets its access from its directory: see `access`.
- A link, FIFO, device or directory that is found instead of a file is refused and left untouched.
- A file is replaced by a rename: readers see the old one or the new one, each of them whole.
- An append is whole, or nothing is appended.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from dbbasic_queue.errors import NotAQueue, StoreError, store_error
from dbbasic_queue.store.disk.access import set_access
from dbbasic_queue.store.disk.openfile import TELLING_OFFSET, OpenFile, open_descriptor
from dbbasic_queue.store.disk.sync import sync_directory, write_all

_TRIES = 100
_NEW_FILE_SECONDS = (0.002, 0.02, 0.2)
"""how long to wait, after each refusal, for the process that is creating a file to set its mode"""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""the errors of a full disk and of a quota that is used up"""


def unstable_inodes(path: str) -> StoreError:
    """Return the error for a path that led to a different file at each check."""
    return StoreError(
        errno.ESTALE,
        f"the path had a different inode number at each of {_TRIES} checks: nothing was done (does "
        "this file system, such as NFS, FUSE or overlay, have stable inode numbers? Put the queue "
        "on a local one)",
        path,
    )


# -- opening ---------------------------------------------------------------------------------------


def open_file(path: str, flags: int, *, to_lock: bool = False) -> OpenFile | None:
    """Open an existing file of the queue; return None if it doesn't exist.

    Pass `to_lock` for a file that will be locked: then a forked child closes its copy. If access is
    denied, this tries again for 0.2 s: the file's creator may not have set the mode yet. Raises
    NotAQueue for anything but a regular file, and for a hard link to another user's file;
    StoreError if the system refuses.
    """
    for seconds in (*_NEW_FILE_SECONDS, 0):
        try:
            file = open_descriptor(path, flags | os.O_NONBLOCK, to_lock=to_lock)
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                raise _not_a_file(path) from e
            if e.errno == errno.EACCES and seconds:
                time.sleep(seconds)
                continue
            raise store_error(e, path, "nothing was done") from e
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise _not_a_file(path)
        if status.st_nlink > 1 and _may_be_planted(status, path):
            file.close()
            raise NotAQueue(
                errno.EINVAL,
                "this is a hard link to another user's file, not a file of the queue "
                "(it was left untouched; move it away)",
                path,
            )
        return file
    raise AssertionError("unreachable")


def _may_be_planted(status: os.stat_result, path: str) -> bool:
    """Return whether another name of a file may come from a user who can't write the file.

    A backup by `cp -al` gives every file another name. But a user who can write the directory
    could also link another user's file into it, and the queue would write to that.
    """
    directory = os.stat(os.path.dirname(path))
    if directory.st_mode & stat.S_IWGRP:
        return status.st_gid != directory.st_gid or not status.st_mode & stat.S_IWGRP
    return status.st_uid != directory.st_uid


def _not_a_file(path: str) -> NotAQueue:
    return NotAQueue(
        errno.EINVAL,
        "this is a link, FIFO, device or directory, not a file of the queue "
        "(it was left untouched; move it away)",
        path,
    )


def refuse_mount_point(file: OpenFile) -> None:
    """Raise NotAQueue if a file is mounted by itself, as by `docker run -v ./queue.tsv:...`.

    Only Linux shows that, in /proc: without it, this does nothing.
    """
    directory = os.open(os.path.dirname(file.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        is_mounted = _mount_id(file.fd) != _mount_id(directory)
    finally:
        os.close(directory)
    if is_mounted:
        raise NotAQueue(
            errno.EBUSY,
            "this file is mounted by itself, so each container has a lock and a journal of its "
            "own, and would run every job (nothing was done; mount the file's directory instead)",
            file.path,
        )


def _mount_id(fd: int) -> bytes:
    """Return the number of the mount that an open file is on; b"" without /proc.

    Device numbers wouldn't do: they are the same for a file that is mounted from the same file
    system, and differ within one directory of a container's image.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as facts:
            return facts.read().partition(b"mnt_id:")[2].split(b"\n")[0]
    except OSError:
        return b""


# -- creating and replacing ------------------------------------------------------------------------


def open_or_create(path: str, flags: int, *, to_lock: bool = False) -> OpenFile:
    """Open a file of the queue, and create it if it doesn't exist; otherwise like `open_file`.

    The name of a new file isn't synced.
    """
    while True:
        file = open_file(path, flags, to_lock=to_lock)
        if file is not None:
            status = os.fstat(file.fd)
            if not status.st_size and os.geteuid() in (0, status.st_uid):
                # The process that created it may have been killed before it could set the mode.
                set_access(file.fd, _directory_of(path))
            return file
        file = create_file(path, flags, to_lock=to_lock)
        if file is not None:
            return file


def create_file(path: str, flags: int, *, to_lock: bool = False) -> OpenFile | None:
    """Create a file with the access that its directory implies; return None if it exists already.

    Raises StoreError if the system refuses.
    """
    directory = _directory_of(path)
    try:
        file = open_descriptor(path, flags | os.O_CREAT | os.O_EXCL, to_lock=to_lock)
    except FileExistsError:
        return None
    except OSError as e:
        raise store_error(e, path, "nothing was done") from e
    set_access(file.fd, directory)
    return file


def _directory_of(path: str) -> os.stat_result:
    try:
        return os.stat(os.path.dirname(path))
    except OSError as e:  # it was removed, or made unreachable, in this moment
        raise store_error(e, path, "nothing was done") from e


def create_fresh(path: str) -> OpenFile:
    """Create a file that is to be renamed; delete one that a crash has left at the path.

    Call it under a lock, or with a path that no other process uses.
    """
    while True:
        file = create_file(path, os.O_RDWR | os.O_APPEND)
        if file is not None:
            return file
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def replace_file(
    path: str,
    content: bytes,
    consequence: str,
    *,
    ending: str,
    fsync: bool,
    mode: int | None = None,
) -> None:
    """Write a new file next to the path, named with `ending`, and rename it to the path.

    Call it under a lock, or with an ending that no other process uses. With `fsync`, the content
    and the rename are on the disk on return. Without `mode`, the directory implies the mode. Raises
    StoreError, with the `consequence` in its message, if the system refuses. If only the sync of
    the rename has failed, the file was replaced nevertheless.
    """
    try:
        new = create_fresh(path + ending)
        try:
            write_all(new.fd, content)
            if mode is not None:
                os.fchmod(new.fd, mode)
            if fsync:
                os.fsync(new.fd)
            os.rename(new.path, path)
        except BaseException:
            try:
                os.unlink(new.path)
            except OSError:
                pass  # the next call deletes it
            raise
        if fsync:
            sync_directory(os.path.dirname(path))
    except OSError as e:
        system = e.__cause__ if isinstance(e.__cause__, OSError) else e
        raise store_error(system, path, consequence) from e


# -- appending -------------------------------------------------------------------------------------


def append(
    file: OpenFile, size: int, content: bytes, consequence: str = "nothing was added"
) -> None:
    """Append whole lines to a file of `size` bytes: all of them, or none. They aren't synced.

    Call it under the lock, with a file that was opened with O_APPEND. Whatever interrupts the
    append, the file is cut back to `size`. If even that fails, the next writer ends the torn line.
    Raises StoreError if the system refuses; the error has the `consequence`, or says that a part
    may have stayed.
    """
    try:
        written = os.write(file.fd, content)
        if written < len(content):
            write_all(file.fd, content[written:])
    except BaseException as e:
        try:
            os.ftruncate(file.fd, size)
        except OSError:
            consequence = "a part may have been added, and could not be cut off again"
        if isinstance(e, OSError):
            raise store_error(e, file.path, consequence) from e
        raise
    # The write has moved the offset: without this, the next `is_ours` would be slow.
    if (end := size + len(content)) >= TELLING_OFFSET:
        file.offset = end
    else:
        file.set_mark()


def end_last_line(file: OpenFile, size: int) -> int:
    """End the last line of a file of `size` bytes if it is torn; return the file's new size.

    Call it under the lock. Otherwise the next line would be appended to the torn one.
    """
    if not size or os.pread(file.fd, 1, size - 1) == b"\n":
        return size
    append(file, size, b"\n")
    return size + 1
