"""Checks of the queue's files: that they are files, who may use them, what lies around."""

from __future__ import annotations

import errno
import fcntl
import glob
import grp
import os
import pwd
import re
import shlex
import stat
import time
from contextlib import contextmanager

from dbbasic_queue.cli.doctor.findings import Finding
from dbbasic_queue.model.rows import is_header
from dbbasic_queue.monitoring.durations import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = r"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult"
_LEFTOVERS = (".fold", ".moved.new", ".paused.new", ".schedule.new", ".purged.new")
_LEFTOVER_SECONDS = 3600.0
_LOCK_SECONDS = 2.0
_SHOWN = 3
_LARGE_BYTES = 100 << 20
_OURS = re.compile(
    r"\.(lock|journal|pass\.\d+|(history|output|passes)(\.1)?|progress|paused|schedule|moved|purged|"
    r"rejected)"
)
"""the endings of the queue's own files; others may be anybody's, such as a backup"""


def check_files(path: str, users: list[str]) -> Iterator[Finding]:
    """Check the files of the queue at a path. `users` must be able to use them, besides this."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        yield Finding(
            "wrong",
            "no-directory",
            f"there is no directory {directory}",
            "is this the right path? The first enqueue creates it",
        )
        return
    yield from _check_directory(path, directory)
    if not os.path.lexists(path):
        yield Finding(
            "wrong",
            "no-queue",
            f"there is no {path}",
            "is this the right path? The first enqueue creates it",
        )
        return
    yield from _check_kind(path)
    yield from _check_access(path, users)
    if not _is_queue(path):
        yield Finding(
            "wrong",
            "no-header",
            f"the first line of {path} isn't the header, so nothing touches the file",
            f"flock {shlex.quote(path)}.lock sed -i '1i {_HEADER}' {shlex.quote(path)}   "
            "(or restore a backup)",
        )
        return
    yield from _check_lock(path)
    yield from _check_leftovers(path)
    yield from _check_size(path)


def _is_queue(path: str) -> bool:
    """Return whether the file begins with a queue's header, as far as this user may read it."""
    try:
        with open(path, "rb") as file:
            first = file.readline(1000)
    except OSError:
        return True  # access was checked
    return not first or is_header(first.removesuffix(b"\n"))


def _check_directory(path: str, directory: str) -> Iterator[Finding]:
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


def _check_kind(path: str) -> Iterator[Finding]:
    for name in files_of(path):
        status = os.lstat(name)
        if stat.S_ISLNK(status.st_mode):
            yield Finding(
                "wrong",
                "link",
                f"{name} is a link: the queue refuses it",
                f"name the file itself: --file {shlex.quote(os.path.realpath(path))}",
            )
        elif not stat.S_ISREG(status.st_mode):
            quoted = shlex.quote(name)
            yield Finding(
                "wrong", "no-file", f"{name} isn't a regular file", f"mv {quoted} {quoted}.away"
            )
    if _is_mounted(path):
        yield Finding(
            "wrong",
            "mounted-file",
            f"{path} is mounted by itself: it can't be replaced, and other containers don't see "
            "its lock",
            "mount the directory instead, as docker run -v ./data:/srv/app/data",
        )


def _is_mounted(path: str) -> bool:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
            return any(line.split(" ")[4] == path for line in mounts)
    except (OSError, IndexError):
        return False


def files_of(path: str) -> list[str]:
    """Return the files of a queue that exist, its own first."""
    others = sorted(glob.glob(glob.escape(path) + ".*"))
    return [path, *(name for name in others if _OURS.fullmatch(name.removeprefix(path)))]


# -- who may use them --------------------------------------------------------------------------


def _check_access(path: str, users: list[str]) -> Iterator[Finding]:
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
        yield Finding(
            "wrong",
            "file-access",
            f"this user can't read and write {_list(closed)} ({_mode(status)})",
            f"sudo chown --reference={shlex.quote(os.path.dirname(path))} {_quoted(closed)}",
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
        return f"{_list(closed)} belongs to {owner} now"

    yield Finding(
        "wrong",
        "file-owner",
        f"{owner}, to whom the directory belongs, can't use {_list(closed)} "
        f"({_mode(os.stat(closed[0]))})",
        f"sudo chown --reference={shlex.quote(os.path.dirname(path))} {_quoted(closed)}",
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
        return f"{_list(wrong)} can be used by the group {group} now"

    group = _group(directory.st_gid)
    is_ours = all(os.stat(name).st_uid == os.geteuid() for name in wrong)
    can = os.geteuid() == 0 or (is_ours and directory.st_gid in (*os.getgroups(), os.getegid()))
    yield Finding(
        "wrong",
        "file-group",
        f"the directory is shared by the group {group}, but not {_list(wrong)}",
        f"sudo chgrp {group} {_quoted(wrong)} && sudo chmod 660 {_quoted(wrong)}",
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


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _quoted(names: list[str]) -> str:
    return " ".join(map(shlex.quote, names))


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


def _check_lock(path: str) -> Iterator[Finding]:
    """Check that the lock can be acquired, and that it keeps others out."""
    lock = f"{path}.lock"
    access = os.O_RDONLY if may_only_read(path) else os.O_RDWR
    try:
        descriptor = os.open(lock, access | os.O_CLOEXEC | os.O_NOFOLLOW)
        other = os.open(lock, access | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # the next call creates it
    except OSError as e:
        yield Finding("wrong", "lock-access", f"the lock can't be opened: {e}", f"ls -l {lock}")
        return
    broken = Finding(
        "wrong",
        "lock-broken",
        f"locks don't work in {os.path.dirname(path)}: two processes can hold one at once",
        "move the queue to a local disk (docs/deployment.md, File systems)",
    )
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > end:
                holder = _holder(lock)
                yield Finding(
                    "wrong",
                    "lock-held",
                    f"{holder or 'another process'} has held the queue's lock for "
                    f"{_LOCK_SECONDS:.0f} seconds: every call waits for it",
                    f"fuser -v {lock}   (then end or continue that process)",
                )
                return
            time.sleep(0.01)
        if _try_lock(other):
            yield broken
        else:
            yield Finding("ok", "lock", "the lock works")
    except OSError as e:
        broken.text = f"locks don't work in {os.path.dirname(path)}: {e.strerror}"
        yield broken
    finally:
        os.close(other)
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of the queue at a path. Raises OSError if others hold it for too long."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, "another process holds the lock", f"{path}.lock")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _holder(lock: str) -> str:
    """Return the process that holds a lock, as far as /proc/locks shows it."""
    try:
        inode = os.stat(lock).st_ino
        with open("/proc/locks", encoding="utf-8") as locks:
            for line in locks:
                fields = line.split()
                if "->" not in fields and fields[5].rpartition(":")[2] == str(inode):
                    with open(f"/proc/{fields[4]}/comm", encoding="utf-8") as name:
                        return f"process {fields[4]} ({name.read().strip()})"
    except (OSError, IndexError):
        pass
    return ""


def _check_leftovers(path: str) -> Iterator[Finding]:
    if not (old := _leftovers(path)):
        return

    def repair() -> str:
        with locked(path):
            removed = _leftovers(path)
            for name in removed:
                os.unlink(name)
        return f"removed {_list(removed)}"

    yield Finding(
        "warning",
        "leftovers",
        f"a crash has left {_list(old)}; the queue doesn't need it",
        f"flock {shlex.quote(path)}.lock rm {_quoted(old)}",
        repair,
    )


def _leftovers(path: str) -> list[str]:
    """Return the files that a change has left which was killed long ago."""
    found = []
    for ending in _LEFTOVERS:
        try:
            status = os.lstat(path + ending)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _LEFTOVER_SECONDS:
            found.append(path + ending)
    return found


def _check_size(path: str) -> Iterator[Finding]:
    journal = f"{path}.journal"
    size = os.path.getsize(path)
    if os.path.isfile(journal) and os.path.getsize(journal) > max(size, 1 << 20):
        age = time.time() - os.stat(path).st_mtime
        yield Finding(
            "warning",
            "unmerged",
            f"the journal is larger than the queue's file, which was written {duration(age)} ago: "
            "cat shows old states",
            "dbbasic-queue unreadable --remove   (merges them; a pass does that, too)",
        )
    if size > _LARGE_BYTES:
        yield Finding(
            "warning",
            "large",
            f"{path} has {size >> 20} MiB",
            "dbbasic-queue purge --older-than 30d --archive archive.tsv",
        )
