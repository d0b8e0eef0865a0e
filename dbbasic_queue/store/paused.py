"""Which job types are paused: the file `queue.tsv.paused`, one line per type, `*` for all.

It is replaced by a rename, under the queue's lock; without the file, nothing is paused. Passes read
it under the lock before each claim, so a paused type is never claimed. You may edit or delete it by
hand.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import store_error
from dbbasic_queue.store.disk.files import open_file, replace_file
from dbbasic_queue.store.disk.sync import sync_directory


def read(queue: str) -> frozenset[str]:
    """Return the paused types; `ALL` among them means all types. Needs no lock.

    `queue` is the path of the queue file. Raises StoreError if the list can't be read, NotAQueue if
    it isn't a file.
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
    """Replace the list; with `fsync`, it is on the disk on return. Call it under the lock.

    Without any types, the file is deleted. Raises StoreError if the system refuses: then the old or
    the new list is in the file.
    """
    path = queue + ".paused"
    consequence = "the pauses may be unchanged: check the file"
    if types:
        content = "".join(f"{name}\n" for name in sorted(types)).encode()
        return replace_file(path, content, consequence, ending=".new", fsync=fsync)
    try:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        if fsync:
            sync_directory(os.path.dirname(path))
    except OSError as e:
        raise store_error(e, path, consequence) from e
    return None
