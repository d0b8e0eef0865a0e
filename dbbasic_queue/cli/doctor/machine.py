"""Checks of the machine: disk space, the file system, the clock."""

from __future__ import annotations

import os
import re
import time

from dbbasic_queue.cli.doctor.findings import Finding
from dbbasic_queue.monitoring.durations import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_BYTES = 64 << 20
_LEAST_SHARE = 0.03
_ENOUGH_BYTES = 1 << 30
_LEAST_INODES = 1000
_NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"),
)
_VOLATILE = ("tmpfs", "ramfs", "overlay", "aufs")
_CLOCK_SECONDS = 60.0
_EARLIEST = 1_700_000_000
"""November 2023: a clock that shows an earlier time is wrong"""


def check_machine(path: str) -> Iterator[Finding]:
    """Check the disk that the queue at a path is on, and the clock."""
    directory = os.path.dirname(path)
    yield from _check_space(directory)
    yield from _check_file_system(directory)
    yield from _check_clock(path)


def _check_space(directory: str) -> Iterator[Finding]:
    space = os.statvfs(directory)
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    if free < _LEAST_BYTES or free < min(total * _LEAST_SHARE, _ENOUGH_BYTES):
        yield Finding(
            "wrong" if free < _LEAST_BYTES else "warning",
            "disk-space",
            f"the disk of {directory} has {_size(free)} left, of {_size(total)}",
            "dbbasic-queue purge --older-than 30d --archive /OTHER/DISK/archive.tsv",
        )
    else:
        yield Finding("ok", "disk-space", f"{_size(free)} are free")
    if space.f_files and space.f_favail < _LEAST_INODES:
        yield Finding(
            "wrong",
            "inodes",
            f"the disk of {directory} has {space.f_favail} inodes left: no file can be created",
            "find the directory with many files: du --inodes -x / | sort -n | tail",
        )


def _size(count: int) -> str:
    """Return a number of bytes for a person to read.

    >>> _size(900 << 20), _size(58390 << 20)
    ('900 MiB', '57 GiB')
    """
    return f"{count >> 30} GiB" if count >= 10 << 30 else f"{count >> 20} MiB"


def _check_file_system(directory: str) -> Iterator[Finding]:
    kind = file_system(directory)
    if kind in _NETWORK:
        yield Finding(
            "wrong",
            "network-file-system",
            f"{directory} is on a network file system ({kind}): locks may not work "
            "between machines",
            "move the queue to a local disk (docs/deployment.md, File systems)",
        )
    elif kind in _VOLATILE:
        where = "memory" if kind in ("tmpfs", "ramfs") else "a container's own layer"
        yield Finding(
            "warning",
            "volatile-file-system",
            f"{directory} is in {where} ({kind}): its jobs are gone when that ends",
            "put the queue on a disk or a volume",
        )
    elif kind:
        yield Finding("ok", "file-system", f"the file system is {kind}")


def file_system(directory: str) -> str:
    """Return the kind of file system that a directory is on; "" if that is unknown."""
    wanted = os.fsencode(os.path.realpath(directory))
    best, kind = b"", ""
    try:
        with open("/proc/self/mounts", "rb") as mounts:
            for line in mounts:
                fields = line.split(b" ")
                point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields[1])
                inside = wanted == point or wanted.startswith(point.rstrip(b"/") + b"/")
                if inside and len(point) >= len(best):
                    best, kind = point, fields[2].decode()
    except (OSError, IndexError):
        return ""
    return kind


def _check_clock(path: str) -> Iterator[Finding]:
    now = time.time()
    names = (path, f"{path}.journal", f"{path}.history", f"{path}.passes")
    newest = max((os.stat(name).st_mtime for name in names if os.path.exists(name)), default=0.0)
    if now < _EARLIEST:
        yield Finding(
            "wrong", "clock", "the clock shows a time long ago", "timedatectl; is NTP on?"
        )
    elif newest > now + _CLOCK_SECONDS:
        yield Finding(
            "wrong",
            "clock",
            f"the queue was changed {duration(newest - now)} in the future: the clock was ahead, "
            "or is behind now",
            "timedatectl; is NTP on?",
        )
