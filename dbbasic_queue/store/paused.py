"""Which job types are paused: the file `queue.tsv.paused`, a line a type, `*` for all.

It is replaced whole, by a rename, under the queue's lock; no file means that nothing is paused.
Passes read it under the lock before each claim, so from a pause on nothing of the type is claimed.
A person may write it, and delete it, by hand.
"""

from __future__ import annotations

import os

from dbbasic_queue.store.files import create_file, open_file, store_error, sync_directory, write_all

ALL = "*"


def read(queue: str) -> frozenset[str]:
    """Return the paused types, and `ALL` where that is said.

    Raises StoreError if the system refuses to read the file.
    """
    path = queue + ".paused"
    file = open_file(path, os.O_RDONLY)
    if file is None:
        return frozenset()
    try:
        content = os.pread(file.fd, os.fstat(file.fd).st_size, 0).decode("utf-8", "replace")
    except OSError as e:
        raise store_error(e, path, "nothing was done") from e
    return frozenset(content.split())


def write(queue: str, types: frozenset[str], *, fsync: bool) -> None:
    """Replace the list; on the disk on return. Under the lock."""
    path = queue + ".paused"
    try:
        if types:
            file = None
            while file is None:
                _unlink(path + ".new")  # left by a crash
                file = create_file(path + ".new", os.O_WRONLY)
            write_all(file.fd, "".join(f"{name}\n" for name in sorted(types)).encode())
            if fsync:
                os.fsync(file.fd)
            os.rename(path + ".new", path)
        else:
            _unlink(path)
        if fsync:
            sync_directory(os.path.dirname(path))
    except OSError as e:
        try:
            os.unlink(path + ".new")
        except OSError:
            pass  # it's worth nothing, and the next pause removes it
        raise store_error(e, path, "what is paused may be as it was: look at the file") from e


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
