"""When passes last removed the old jobs of each type: the file `queue.tsv.purged`.

It has one line per type, the type and Unix seconds separated by a tab. It is replaced by a rename,
under the queue's lock, so that only one of several passes removes the jobs. It isn't synced, and
nothing depends on it: without it, a pass removes old jobs once more.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import store_error
from dbbasic_queue.store.disk.files import open_file, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def read(queue: str) -> dict[str, float]:
    """Return type -> when its old jobs were last removed, in Unix seconds. Needs no lock.

    `queue` is the path of the queue file. Raises StoreError if the file can't be read, NotAQueue if
    it isn't a file.
    """
    path = queue + ".purged"
    file = open_file(path, os.O_RDONLY)
    if file is None:
        return {}
    try:
        content = os.pread(file.fd, os.fstat(file.fd).st_size, 0).decode("utf-8", "replace")
    except OSError as e:
        raise store_error(e, path, "nothing was done") from e
    lines = [line.partition("\t") for line in content.split("\n")]
    return {name: int(when) for name, _, when in lines if when.isascii() and when.isdigit()}


def is_turn(purged: Mapping[str, float], types: Collection[str], now: float, pause: float) -> bool:
    """Return whether a pass should remove old jobs of these types now.

    That is so if it was `pause` seconds ago or longer for one of them, or never, or in the future
    because the clock was set back.

    >>> is_turn({"a": 100, "b": 90}, ["a", "b"], 105, 10), is_turn({"a": 100}, ["a"], 105, 10)
    (True, False)
    """
    return any(name not in purged or not 0 <= now - purged[name] < pause for name in types)


def take_turn(queue: str, types: Collection[str], now: float, pause: float) -> bool:
    """Return the same as `is_turn`; if it is True, record `now` for these types.

    Call it under the lock. Raises StoreError if the system refuses: then nothing was recorded.
    """
    purged = read(queue)
    if not is_turn(purged, types, now, pause):
        return False
    purged |= dict.fromkeys(types, int(now))
    content = "".join(f"{name}\t{int(when)}\n" for name, when in sorted(purged.items())).encode()
    replace_file(queue + ".purged", content, "nothing was done", ending=".new", fsync=False)
    return True
