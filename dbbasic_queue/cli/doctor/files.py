"""Checks of the queue's files: that they are files, what lies around, how large they are."""

from __future__ import annotations

import os
import shlex
import stat
import time

from dbbasic_queue.cli.doctor.access import check_access, check_directory
from dbbasic_queue.cli.doctor.findings import Finding
from dbbasic_queue.cli.doctor.lock import check_lock, locked
from dbbasic_queue.cli.doctor.names import files_of, listed, quoted
from dbbasic_queue.model.rows import is_header
from dbbasic_queue.monitoring.durations import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = r"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult"
_LEFTOVERS = (".fold", ".moved.new", ".paused.new", ".schedule.new", ".purged.new")
_LEFTOVER_SECONDS = 3600.0
_LARGE_BYTES = 100 << 20


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
    yield from check_directory(path, directory)
    if not os.path.lexists(path):
        yield Finding(
            "wrong",
            "no-queue",
            f"there is no {path}",
            "is this the right path? The first enqueue creates it",
        )
        return
    yield from _check_kind(path)
    yield from check_access(path, users)
    if not _is_queue(path):
        yield Finding(
            "wrong",
            "no-header",
            f"the first line of {path} isn't the header, so nothing touches the file",
            f"flock {shlex.quote(path)}.lock sed -i '1i {_HEADER}' {shlex.quote(path)}   "
            "(or restore a backup)",
        )
        return
    yield from check_lock(path)
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


def _check_leftovers(path: str) -> Iterator[Finding]:
    if not (old := _leftovers(path)):
        return

    def repair() -> str:
        with locked(path):
            removed = _leftovers(path)
            for name in removed:
                os.unlink(name)
        return f"removed {listed(removed)}"

    yield Finding(
        "warning",
        "leftovers",
        f"a crash has left {listed(old)}; the queue doesn't need it",
        f"flock {shlex.quote(path)}.lock rm {quoted(old)}",
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
