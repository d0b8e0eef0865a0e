"""Who may use the queue: the directory decides, not the umask.

So root's cron and the web server's user share one queue. If the group may write the directory, a
new file gets the directory's group and mode 0660, otherwise 0600. What root creates belongs to the
directory's owner.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from dbbasic_queue.errors import NotAQueue, store_error
from dbbasic_queue.store.disk.sync import sync_directory

_ACCESS_LIST = "system.posix_acl_access"
_OF_CONTENT = {"security.ima", "security.evm"}
"""extended attributes that are checksums of the file"""


def set_access(fd: int, directory: os.stat_result) -> None:
    shared = bool(directory.st_mode & stat.S_IWGRP) and _give(fd, -1, directory.st_gid)
    if os.geteuid() == 0 and directory.st_uid != 0:
        _give(fd, directory.st_uid, -1 if shared else directory.st_gid)
    os.fchmod(fd, 0o660 if shared else 0o600)


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
