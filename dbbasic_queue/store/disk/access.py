"""Who may use the queue: the directory decides, not the umask.

So root's cron and the web server's user can share one queue.

- If the directory is group-writable, a new file gets the directory's group and mode 0660. If it
  isn't, or if this process may not set that group, the file gets mode 0600.
- A file that root creates belongs to the directory's owner.
- A world-writable directory is refused.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from dbbasic_queue.errors import NotAQueue, store_error
from dbbasic_queue.store.disk.sync import sync_directory

_ACCESS_LIST = "system.posix_acl_access"
_CHECKSUMS = {"security.ima", "security.evm"}
"""extended attributes that depend on the file's content"""


def set_access(fd: int, directory: os.stat_result) -> None:
    """Give a new file the mode and, as far as allowed, the group and owner described above.

    `directory` is the status of the file's directory.
    """
    shared = bool(directory.st_mode & stat.S_IWGRP) and _change_owner(fd, -1, directory.st_gid)
    if os.geteuid() == 0 and directory.st_uid != 0:
        _change_owner(fd, directory.st_uid, -1 if shared else directory.st_gid)
    os.fchmod(fd, 0o660 if shared else 0o600)


def copy_access(fd: int, old_fd: int) -> None:
    """Give a new file the access of the old one that it will replace.

    That is the owner and group, as far as allowed, and the mode; on Linux also the access list
    (ACL) and, as far as allowed, the other extended attributes. Raises OSError if the mode or the
    access list can't be set: then the old file has to stay.
    """
    old, new = os.fstat(old_fd), os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) and not _change_owner(
        fd, old.st_uid, old.st_gid
    ):
        _change_owner(fd, -1, old.st_gid)
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
        if name in _CHECKSUMS:
            continue
        try:
            os.setxattr(new, name, os.getxattr(old, name))
        except OSError:
            if name == _ACCESS_LIST:
                raise


def _change_owner(fd: int, uid: int, gid: int) -> bool:
    """Set the owner and group, -1 for no change; return False if that isn't allowed."""
    try:
        os.fchown(fd, uid, gid)
    except PermissionError:
        return False
    return True


def prepare_directory(path: str) -> None:
    """Create the directory and its parents, if they don't exist.

    On return, new ones are on the disk. If root creates one, it belongs to its parent's owner. If
    the parent is group-writable and not sticky, the new directory gets the parent's group and mode
    2770, otherwise mode 0755. Raises NotAQueue if the directory is world-writable or something else
    is at the path, StoreError if it can't be created.
    """
    if not os.path.isdir(path):
        _create_directory(path)
    if is_world_writable(path):
        raise NotAQueue(
            errno.EPERM,
            "this directory is world-writable, so anyone could add jobs (chmod o-w it, or move "
            "the queue to its own directory)",
            path,
        )


def is_world_writable(path: str) -> bool:
    """Return whether any user of the machine may change a file, or the names in a directory."""
    return bool(os.stat(path).st_mode & stat.S_IWOTH)


def _create_directory(path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _create_directory(parent)
    try:
        _make_directory(path, os.stat(parent))
    except OSError as e:
        if os.path.isdir(path):
            return  # another process has created it
        if os.path.lexists(path):
            raise NotAQueue(errno.ENOTDIR, "not a directory (move it away)", path) from e
        raise store_error(e, path, "the directory was not created") from e


def _make_directory(path: str, parent: os.stat_result) -> None:
    """Create a directory under another name, set its access, and rename it.

    Otherwise a kill before the access is set would leave it closed to the group.
    """
    new = path + ".new"
    try:
        os.mkdir(new, 0o700)
    except FileExistsError:
        pass  # a kill left it, or another process is creating it now
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0 and parent.st_uid != 0:
            os.fchown(fd, parent.st_uid, parent.st_gid)
        shared = bool(parent.st_mode & stat.S_IWGRP) and not parent.st_mode & stat.S_ISVTX
        shared = shared and _change_owner(fd, -1, parent.st_gid)
        os.fchmod(fd, 0o2770 if shared else 0o755)
    finally:
        os.close(fd)
    sync_directory(os.path.dirname(path))  # so that the new directory survives the rename
    try:
        os.rename(new, path)
    except OSError:
        try:
            os.rmdir(new)
        except OSError:
            pass
        raise
    sync_directory(os.path.dirname(path))
