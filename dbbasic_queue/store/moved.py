"""Whether a queue was moved to another address: the file `queue.tsv.moved`, one line with that.

- It is written, and on the disk, before the queue file is rewritten. So a process that finds
  another file at the queue's path, or opens it for the first time, looks for this file then, and
  needn't look for it at each call. From then on, it adds and claims nothing.
- A process that knows that the queue was moved looks again at each call: the queue may have been
  moved back, and then the file is gone.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import queue_moved, store_error
from dbbasic_queue.store.disk.files import open_file, replace_file
from dbbasic_queue.store.disk.sync import sync_directory

_ENDING = ".moved"


def read(queue: str) -> str:
    """Return the address that a queue was moved to, "" if it wasn't. Needs no lock.

    `queue` is the path of the queue file. Raises StoreError if the system refuses, NotAQueue if
    there is something else than a file.
    """
    path = queue + _ENDING
    if not os.path.lexists(path):  # quicker than to try to open it
        return ""
    file = open_file(path, os.O_RDONLY)
    if file is None:
        return ""
    try:
        content = os.pread(file.fd, os.fstat(file.fd).st_size, 0).decode("utf-8", "replace")
    except OSError as e:
        raise store_error(e, path, "nothing was done") from e
    return content.partition("\n")[0].strip() or "an unknown address"


def require_not(queue: str) -> None:
    """Raise QueueMoved if a queue was moved. Needs no lock."""
    address = read(queue)
    if address:
        raise queue_moved(queue, address)


def write(queue: str, address: str, *, fsync: bool) -> None:
    """Record that a queue was moved, or that it wasn't if the address is "".

    With `fsync`, that is on the disk on return. Call it under the lock. Raises StoreError if the
    system refuses.
    """
    path = queue + _ENDING
    if address:
        content = f"{address}\n".encode()
        replace_file(path, content, "nothing was done", ending=".new", fsync=fsync)
        return
    try:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        if fsync:
            sync_directory(os.path.dirname(path))
    except OSError as e:
        raise store_error(e, path, "check whether this file is gone") from e
