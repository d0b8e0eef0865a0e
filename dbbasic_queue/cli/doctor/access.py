"""Checks who may use the queue's directory and files."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
from contextlib import contextmanager

from dbbasic_queue.cli.doctor.findings import Finding
from dbbasic_queue.cli.doctor.names import files_of, listed, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def check_directory(path: str, directory: str) -> Iterator[Finding]:
    """Check that only those write to the directory who should, and that this user can."""
    status = os.stat(directory)
    if status.st_mode & stat.S_IWOTH:

        def repair() -> str:
            os.chmod(directory, stat.S_IMODE(status.st_mode) & ~stat.S_IWOTH)
            return f"chmod o-w {directory}"

        yield Finding(
            "wrong",
            "world-writable",
            f"everyone can write to {directory}, and so add jobs: the queue refuses to work there",
            f"chmod o-w {shlex.quote(directory)}",
            repair if status.st_uid == os.geteuid() or os.geteuid() == 0 else None,
        )
    if not os.access(directory, os.W_OK | os.X_OK) and not may_only_read(path):
        yield Finding(
            "wrong",
            "directory-access",
            f"this user can't write to {directory}, which belongs to {_name(status.st_uid)}",
            f"run the command as {_name(status.st_uid)}, or: sudo chgrp GROUP {directory} && sudo "
            f"chmod g+ws {directory}",
        )


def check_access(path: str, users: list[str]) -> Iterator[Finding]:
    """Check that this user, the directory's owner and the others can use every file."""
    names = [n for n in files_of(path) if stat.S_ISREG(os.lstat(n).st_mode)]
    directory = os.stat(os.path.dirname(path))
    yield from _check_own_access(path, names)
    yield from _check_owner(path, names, directory)
    for user in dict.fromkeys(users):
        yield from _check_user(user, path, names)
    if directory.st_mode & stat.S_IWGRP:
        yield from _check_group(path, names, directory)


def may_only_read(path: str) -> bool:
    """Return whether this user can read every file of a queue, and change none of them."""
    places = [os.path.dirname(path), *files_of(path)]
    return not any(os.access(place, os.W_OK) for place in places) and all(
        os.access(place, os.R_OK) for place in places
    )


def _check_own_access(path: str, names: list[str]) -> Iterator[Finding]:
    if may_only_read(path):
        owner = _name(os.stat(path).st_uid)
        yield Finding(
            "warning",
            "read-only",
            "this user can look at the queue, but can't add, run or change jobs",
            f"if that isn't intended, run the command as {owner} (docs/deployment.md, Permissions)",
        )
        return
    closed = [name for name in names if not os.access(name, os.R_OK | os.W_OK)]
    if closed:
        status = os.stat(closed[0])
        directory = os.path.dirname(path)
        uid = os.stat(directory).st_uid
        yield Finding(
            "wrong",
            "file-access",
            f"this user can't read and write {listed(closed)} ({_mode(status)})",
            f"run the command as {_name(uid)}"
            if all(os.stat(name).st_uid == uid for name in closed)
            else f"sudo chown --reference={shlex.quote(directory)} {quoted(closed)}",
        )


def _check_owner(path: str, names: list[str], directory: os.stat_result) -> Iterator[Finding]:
    """Check that the owner of the directory can use the files.

    What root creates belongs to it, but not what was copied there, or restored, by root.
    """
    foreign = [n for n in names if os.stat(n).st_uid != directory.st_uid]
    owner = _name(directory.st_uid)
    closed = [n for n in foreign if not _may(directory.st_uid, owner, n, os.R_OK | os.W_OK)]
    if not closed or directory.st_uid == 0:
        return

    def repair() -> str:
        for name in closed:
            with _opened(name) as descriptor:
                os.fchown(descriptor, directory.st_uid, directory.st_gid)
        return f"{listed(closed)} belongs to {owner} now"

    yield Finding(
        "wrong",
        "file-owner",
        f"{owner}, to whom the directory belongs, can't use {listed(closed)} "
        f"({_mode(os.stat(closed[0]))})",
        f"sudo chown --reference={shlex.quote(os.path.dirname(path))} {quoted(closed)}",
        repair if os.geteuid() == 0 else None,
    )


def _check_group(path: str, names: list[str], directory: os.stat_result) -> Iterator[Finding]:
    """Check that the members of the group that shares the directory can use the files."""
    wrong = [
        name
        for name in names
        for status in [os.stat(name)]
        if not (status.st_mode & stat.S_IWGRP and status.st_gid == directory.st_gid)
        and not _has_access_list(name)
    ]
    if not wrong:
        return

    def repair() -> str:
        for name in wrong:
            with _opened(name) as descriptor:
                os.fchown(descriptor, -1, directory.st_gid)
                os.fchmod(descriptor, 0o660)
        return f"{listed(wrong)} can be used by the group {group} now"

    group = _group(directory.st_gid)
    is_ours = all(os.stat(name).st_uid == os.geteuid() for name in wrong)
    can = os.geteuid() == 0 or (is_ours and directory.st_gid in (*os.getgroups(), os.getegid()))
    yield Finding(
        "wrong",
        "file-group",
        f"the directory is shared by the group {group}, but not {listed(wrong)}",
        f"sudo chgrp {group} {quoted(wrong)} && sudo chmod 660 {quoted(wrong)}",
        repair if can else None,
    )


def _check_user(user: str, path: str, names: list[str]) -> Iterator[Finding]:
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        yield Finding(
            "wrong",
            "no-user",
            f"there is no user {user}",
            "correct the name, in --user or in the crontab line",
        )
        return
    directory = os.path.dirname(path)
    wanted = [(parent, os.X_OK) for parent in _parents(directory)]
    wanted.append((directory, os.R_OK | os.W_OK | os.X_OK))
    wanted += [(name, os.R_OK | os.W_OK) for name in names]
    for name, access in wanted:
        if not _may(uid, user, name, access):
            status = os.stat(name)
            needed = "g+x" if access == os.X_OK else "g+rwX"
            yield Finding(
                "wrong",
                "user-access",
                f"{user} can't use {name} ({_mode(status)})",
                f"sudo usermod -aG {_group(status.st_gid)} {user}; sudo chmod {needed} "
                f"{shlex.quote(name)}",
            )
            return
    yield Finding("ok", "user-access", f"{user} can use the queue")


def _parents(directory: str) -> list[str]:
    found = []
    while (directory := os.path.dirname(directory)) != "/":
        found.append(directory)
    return found[::-1]


def _may(uid: int, user: str, name: str, access: int) -> bool:
    """Return whether a user may access a file; True if that can't be known."""
    if uid == os.geteuid():
        return os.access(name, access)
    status = os.stat(name)
    try:
        primary = pwd.getpwuid(uid).pw_gid
        groups = os.getgrouplist(user, primary)
    except KeyError:
        primary, groups = status.st_gid if uid == status.st_uid else -1, []
    if os.geteuid() == 0 and primary != -1:
        return _may_really(uid, primary, groups, name, access)
    if uid == 0 or _has_access_list(name):
        return True
    if uid == status.st_uid:
        bits = status.st_mode >> 6
    elif status.st_gid in groups:
        bits = status.st_mode >> 3
    else:
        bits = status.st_mode
    return bits & access == access


def _may_really(uid: int, primary: int, groups: list[int], name: str, access: int) -> bool:
    """Ask the system, as root, in a process that becomes the user."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setgroups(groups)
            os.setgid(primary)
            os.setuid(uid)
            code = int(not os.access(name, access))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 1


def _has_access_list(name: str) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(name)
    except (OSError, AttributeError):
        return False


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """Open a file to change its access. Raises OSError if it isn't the queue's own any more."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(errno.EINVAL, "not a regular file with one name: nothing was done", name)
        yield descriptor
    finally:
        os.close(descriptor)


def _mode(status: os.stat_result) -> str:
    return f"{stat.filemode(status.st_mode)} {_name(status.st_uid)} {_group(status.st_gid)}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
