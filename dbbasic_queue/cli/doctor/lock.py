"""Checks the queue's lock, and holds it while something is repaired."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager

from dbbasic_queue.cli.doctor.access import may_only_read
from dbbasic_queue.cli.doctor.findings import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
_LOCK_SECONDS = 2.0


def check_lock(path: str) -> Iterator[Finding]:
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
