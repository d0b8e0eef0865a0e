"""How the queue's files and their directory are opened, created and synced.

The directory decides who gets in, not the umask, so that root's cron and the web server's user
share one queue: a new file takes mode 0660 and the directory's group where the group may write
the directory, else 0600; and root gives what it creates to the directory's owner. A link, FIFO,
device or directory in the place of a file is refused and left untouched, and so is a directory
that everybody may write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
import weakref
from itertools import count

from dbbasic_queue import forks
from dbbasic_queue.errors import NotAQueue, StoreError

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EACCES: "this user may not: give it the directory's group, or run as its owner",
    errno.EPERM: "this user may not: give it the directory's group, or run as its owner",
    errno.EBUSY: "is the file mounted by itself, as into a container? mount its directory",
    errno.EROFS: "the file system is mounted read-only: remount it",
    errno.EIO: "the disk reports an error: look at dmesg, and at the disk's health",
    errno.EMFILE: "this process has too many open files: see ulimit -n",
    errno.ENFILE: "the machine has too many open files: see fs.file-max",
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        "does this file system, such as NFS or FUSE, support flock? Put the queue on a local one",
    ),
}
_TRIES = 100
_ACCESS_LIST = "system.posix_acl_access"
_OF_CONTENT = {"security.ima", "security.evm"}
"""extended attributes that are checksums of the file"""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def store_error(e: OSError, path: str, consequence: str) -> StoreError:
    """Return the system's error with the file's name, what became of the change, what to do."""
    advice = _ADVICE.get(e.errno or 0, "see the system's message")
    text = f"{e.strerror or e} ({consequence}; {advice})"
    return StoreError(e.errno, text, path)


def unstable_inodes(path: str) -> StoreError:
    """Return the error for a path that leads to another file each time one looks."""
    return StoreError(
        errno.ESTALE,
        f"another inode number at each of {_TRIES} looks: nothing was done (does this file system, "
        "such as NFS, FUSE or overlay, have stable inode numbers? Put the queue on a local one)",
        path,
    )


class OpenFile:
    """A descriptor that is closed when the last user lets go of it.

    One that is cached stays open, so that its inode number cannot come back as another file.

    Programs close descriptors that they didn't open, and open files of their own under the same
    numbers. So `is_ours` is asked before a cached descriptor is locked, written or cut. The answer
    is mostly one lseek: the file's offset, which neither O_APPEND nor pread uses, is a number that
    no other descriptor has, or the end of a long file. Otherwise it is an fstat, which takes five
    times as long.

    `unique` is set for a file that is never written: then another descriptor of the same file,
    which has another lock, isn't ours either.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_names",
        "_own",
        "fd",
        "identity",
        "offset",
        "path",
        "unique",
    )

    def __init__(self, fd: int, path: str) -> None:
        """Take over a descriptor; it may become another number."""
        if fd < _FIRST:  # standard input, output and error: the program prints there
            low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST)
            os.close(low)
        status = os.fstat(fd)
        self.fd = fd
        self.path = path
        self.identity = (status.st_dev, status.st_ino)
        self._names, self._changed = status[_NAMES], status.st_ctime_ns
        self.offset = self._own = _newest[fd] = next(_marks)
        self.unique = False

    def close(self) -> None:
        """Close the descriptor, if it still is this file's; a second time does nothing."""
        if self.fd >= 0 and self.is_ours():
            fd, self.fd = self.fd, -1
            os.close(fd)
        self.fd = -1

    def is_ours(self) -> bool:
        """Tell whether the descriptor still is the file that was opened."""
        try:
            if os.lseek(self.fd, 0, _SEEK_CUR) == self.offset:
                return True
            status = os.fstat(self.fd)
            if self.unique or (status.st_dev, status.st_ino) != self.identity:
                return False
            self.mark()
        except OSError:
            return False
        return True

    def mark(self) -> bool:
        """Set the offset to the file's own number; False on a file system of small files."""
        try:
            self.offset = os.lseek(self.fd, self._own, _SEEK_SET)
        except OSError:
            return False
        return True

    def require(self, consequence: str) -> None:
        """Raise StoreError if the program has closed the descriptor."""
        if not self.is_ours():
            raise StoreError(
                errno.EBADF,
                f"the program has closed this file's descriptor: {consequence} (it must not close "
                "descriptors that it didn't open)",
                self.path,
            )

    def __del__(self) -> None:
        self.close()

    def remember_names(self) -> None:
        """Note how many names the file has, and when that changed, for `is_untouched`."""
        status = os.fstat(self.fd)
        self._names, self._changed = status[_NAMES], status.st_ctime_ns

    def is_untouched(self) -> bool:
        """Tell whether the descriptor still is this file's, and no name of the file was changed.

        That its directory was moved isn't noticed. `is_at_path` takes longer.
        """
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (
            status[_NAMES] == self._names
            and status.st_ctime_ns == self._changed
            and _newest[self.fd] == self._own
        )

    def is_at_path(self) -> bool:
        """Tell whether the path still leads to this very file."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


_FIRST = 3
_NAMES = slice(1, 4)
"""the part of a stat result that says which file it is, and how many names it has"""
_newest: dict[int, int] = {}
"""which file of ours a descriptor's number was given to last"""
_RARE = 1 << 12
_SEEK_SET, _SEEK_CUR = os.SEEK_SET, os.SEEK_CUR
_marks = count(1 << 30 | int.from_bytes(os.urandom(3), "big"))

_to_close_after_fork: weakref.WeakSet[OpenFile] = weakref.WeakSet()
"""Files that are, or will be, locked: a forked child closes them. The lock belongs to the open
file, which parent and child share: the child must neither keep it nor, by an unlock, free it."""


def _after_fork() -> None:
    for file in list(_to_close_after_fork):
        file.close()


forks.in_child(_after_fork)


def _open(path: str, flags: int, to_lock: bool) -> OpenFile:
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if not to_lock:
        return OpenFile(os.open(path, flags, 0o600), path)
    return forks.while_opening(_open_and_register, path, flags)


def _open_and_register(path: str, flags: int) -> OpenFile:
    file = OpenFile(os.open(path, flags, 0o600), path)
    _to_close_after_fork.add(file)
    return file


def open_file(path: str, flags: int, *, to_lock: bool = False) -> OpenFile | None:
    """Open an existing file of the queue, or return None where there is none.

    A forked child closes one that is opened `to_lock` it. Raises NotAQueue for anything but a
    regular file, and for a hard link to another user's; StoreError if refused.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for patience in (0.002, 0.02, 0.2, 0):
        try:
            if to_lock:
                file = forks.while_opening(_open_and_register, path, flags)
            else:
                file = OpenFile(os.open(path, flags), path)
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                raise _not_ours(path) from e
            if e.errno == errno.EACCES and patience:  # its creator has yet to set the mode
                time.sleep(patience)
                continue
            raise store_error(e, path, "nothing was done") from e
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise _not_ours(path)
        if status.st_nlink > 1 and _may_be_planted(status, path):
            file.close()
            raise NotAQueue(
                errno.EINVAL,
                "a hard link to another user's file stands where a file of the queue belongs "
                "(it was left untouched; move it away)",
                path,
            )
        return file
    raise AssertionError("unreachable")


def _may_be_planted(status: os.stat_result, path: str) -> bool:
    """Tell whether a file's other name may have been given to it by somebody who can't write it.

    A backup by `cp -al` gives every file another name. Somebody who may write the directory could
    link another user's file into it, and have the queue write to that.
    """
    directory = os.stat(os.path.dirname(path))
    if directory.st_mode & stat.S_IWGRP:
        return status.st_gid != directory.st_gid or not status.st_mode & stat.S_IWGRP
    return status.st_uid != directory.st_uid


def _not_ours(path: str) -> NotAQueue:
    return NotAQueue(
        errno.EINVAL,
        "a link, FIFO, device or directory stands where a file of the queue belongs "
        "(it was left untouched; move it away)",
        path,
    )


def refuse_mount_point(file: OpenFile) -> None:
    """Raise NotAQueue if a file is mounted by itself, as by `docker run -v ./queue.tsv:...`.

    Only Linux tells, in /proc.
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
    """Return the number of the mount that an open file is on; nothing without /proc.

    Devices wouldn't do: they are the same for a file that is mounted from the same file system, and
    differ within one directory of a container's image.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as facts:
            return facts.read().partition(b"mnt_id:")[2].split(b"\n")[0]
    except OSError:
        return b""


def create_file(path: str, flags: int, *, to_lock: bool = False) -> OpenFile | None:
    """Create a file with the access that its directory suggests; None if there is one already."""
    directory = os.stat(os.path.dirname(path))
    try:
        file = _open(path, flags | os.O_CREAT | os.O_EXCL, to_lock)
    except FileExistsError:
        return None
    except OSError as e:
        raise store_error(e, path, "nothing was done") from e
    _set_access(file.fd, directory)
    return file


def create_fresh(path: str) -> OpenFile:
    """Create a file; replace one that a crash has left: it was never in use."""
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
    """Write a new file, named with `ending`, and rename it to the path: readers see old or new.

    With `fsync` it is on the disk on return. Raises StoreError, which says the `consequence`, if
    the system refuses.
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
                pass  # it is worth nothing, and the next one replaces it
            raise
        if fsync:
            sync_directory(os.path.dirname(path))
    except OSError as e:
        raise store_error(e, path, consequence) from e


def _set_access(fd: int, directory: os.stat_result) -> None:
    shared = bool(directory.st_mode & stat.S_IWGRP) and _give(fd, -1, directory.st_gid)
    if os.geteuid() == 0 and directory.st_uid != 0:
        _give(fd, directory.st_uid, -1 if shared else directory.st_gid)
    os.fchmod(fd, 0o660 if shared else 0o600)


def open_or_create(path: str, flags: int, *, to_lock: bool = False) -> OpenFile:
    """Open a file of the queue, creating it where there is none."""
    while True:
        file = open_file(path, flags, to_lock=to_lock)
        if file is not None:
            status = os.fstat(file.fd)
            if not status.st_size and os.geteuid() in (0, status.st_uid):
                # Its creator may have been killed before it could set the mode.
                _set_access(file.fd, os.stat(os.path.dirname(path)))
            return file
        file = create_file(path, flags, to_lock=to_lock)
        if file is not None:
            return file


def replace_like(fd: int, old_fd: int) -> None:
    """Give a rewritten file the old one's owner, if that is allowed, its group, mode, access list
    and extended attributes.

    Raises OSError if the access list can't be set: then the old file has to stay.
    """
    old, new = os.fstat(old_fd), os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) and not _give(
        fd, old.st_uid, old.st_gid
    ):
        _give(fd, -1, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))
    if sys.platform == "linux":
        _copy_attributes(old_fd, fd)


def _copy_attributes(old: int, new: int) -> None:
    try:
        names, inherited = os.listxattr(old), os.listxattr(new)
    except OSError:
        return  # this file system has none
    if _ACCESS_LIST in inherited and _ACCESS_LIST not in names:
        os.removexattr(new, _ACCESS_LIST)
    for name in names:
        if name in _OF_CONTENT:
            continue
        try:
            os.setxattr(new, name, os.getxattr(old, name))
        except OSError:
            if name == _ACCESS_LIST:
                raise


def _give(fd: int, uid: int, gid: int) -> bool:
    try:
        os.fchown(fd, uid, gid)
    except PermissionError:
        return False
    return True


def prepare_directory(path: str) -> None:
    """Create the directory, and its parents, where there is none; refuse one that all may write.

    A new one is for its parent's owner when root makes it, and for the parent's group where the
    group may write the parent.
    """
    if not os.path.isdir(path):
        _create_directory(path)
    if os.stat(path).st_mode & stat.S_IWOTH:
        raise NotAQueue(
            errno.EPERM,
            "everybody may write this directory, and so plant jobs (chmod o-w it, or put the "
            "queue into a directory of its own)",
            path,
        )


def _create_directory(path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _create_directory(parent)
    try:
        _make_directory(path, os.stat(parent))
    except OSError as e:
        if os.path.isdir(path):
            return  # another process was first
        if os.path.lexists(path):
            raise NotAQueue(errno.ENOTDIR, "not a directory (move it away)", path) from e
        raise store_error(e, path, "the directory was not created") from e


def _make_directory(path: str, parent: os.stat_result) -> None:
    """Create a directory with its access set, under another name until then.

    A kill in between would leave it closed to the group for ever.
    """
    new = path + ".new"
    try:
        os.mkdir(new, 0o700)
    except FileExistsError:
        pass  # left by a kill, or another process is at it
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0 and parent.st_uid != 0:
            os.fchown(fd, parent.st_uid, parent.st_gid)
        shared = bool(parent.st_mode & stat.S_IWGRP) and not parent.st_mode & stat.S_ISVTX
        shared = shared and _give(fd, -1, parent.st_gid)
        os.fchmod(fd, 0o2770 if shared else 0o755)
    finally:
        os.close(fd)
    sync_directory(os.path.dirname(path))  # what is renamed is there
    try:
        os.rename(new, path)
    except OSError:
        try:
            os.rmdir(new)
        except OSError:
            pass
        raise
    sync_directory(os.path.dirname(path))


# -- the disk ----------------------------------------------------------------------------------


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


def append(file: OpenFile, size: int, content: bytes) -> None:
    """Append whole lines to a file of `size` bytes under the lock: all of them, or none.

    Whatever interrupts it, the file is cut back to `size`. Where even that is refused, the next
    writer ends the torn line.
    """
    try:
        written = os.write(file.fd, content)
        if written < len(content):
            write_all(file.fd, content[written:])
    except BaseException as e:
        consequence = "nothing was added"
        try:
            os.ftruncate(file.fd, size)
        except OSError:
            consequence = "a part may have been added, and could not be taken back"
        if isinstance(e, OSError):
            raise store_error(e, file.path, consequence) from e
        raise
    # The write has moved the offset; note it, or set it, so that the next `is_ours` is quick.
    if (end := size + len(content)) >= _RARE:
        file.offset = end
    else:
        file.mark()


def end_last_line(file: OpenFile, size: int) -> int:
    """End a torn last line of a file of `size` bytes, so that it tears no other; return its size.

    Under the lock.
    """
    if not size or os.pread(file.fd, 1, size - 1) == b"\n":
        return size
    append(file, size, b"\n")
    return size + 1
