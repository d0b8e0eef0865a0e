"""A move to another queue that has started and isn't finished: what shows that in the old queue.

`moving` withdraws jobs in the old queue (`Moving to ADDRESS`), marks them once they are in the
other one (`Moved to ADDRESS`), and removes them when all of them were found there. So the old queue
has such a job from the first step of a move to its last one. Nothing shows whether the program that
moves them is still running, and nothing in the other queue shows where its jobs came from.
"""

from __future__ import annotations

import os

from dbbasic_queue.model import states
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.states import CANCELLED
from dbbasic_queue.monitoring.durations import number_of
from dbbasic_queue.store.disk.files import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbbasic_queue.store.protocol import Store

_MOST = 10_000
"""how many cancelled jobs of a server are looked at: each is sent through the network"""
_READ_BYTES = 1 << 20
_SEARCHED = b"\tMov"
"""with what both of `states.MOVE_MARKS` begin, in a row: so one search finds either"""


class Move:
    """A move that isn't finished.

    `address`     the path or URL of the other queue
    `on_the_way`  how many jobs were withdrawn here: no pass runs them until the move goes on
    `arrived`     how many jobs are in the other queue, and are to be removed here
    """

    __slots__ = ("address", "arrived", "on_the_way")

    def __init__(self, address: str) -> None:
        self.address = address
        self.on_the_way = self.arrived = 0

    def as_dict(self) -> dict[str, str | int]:
        """Return the attributes."""
        return {"to": self.address, "on_the_way": self.on_the_way, "arrived": self.arrived}

    def text(self) -> str:
        """Return that as a sentence."""
        jobs = ""
        if self.on_the_way:
            jobs = number_of(self.on_the_way, "job is on its way", "jobs are on their way")
            jobs = f": {jobs}, and not run until it is"
        return (
            f"a move to {self.address} isn't finished{jobs} (if it was interrupted, run it again)"
        )


class Moves:
    """Finds the move of a queue. Without one, it looks again if the number of jobs has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._without = 0
        """how many jobs were cancelled when there was no move"""

    def unfinished(self, cancelled: int) -> Move | None:
        """Return the move if there is one; `cancelled` is how many jobs are cancelled."""
        if cancelled == self._without:
            return None
        found = _find(self._store, cancelled) if self._store.is_shared else None
        self._without = 0 if found else cancelled
        return found


def _find(store: Store, cancelled: int) -> Move | None:
    if os.path.isabs(store.path):
        if not (_has_mark(store.path + ".journal") or _has_mark(store.path)):
            return None
    elif cancelled > _MOST:
        return None
    rows = store.rows(statuses=(CANCELLED,))
    return move_of(row.state.error for row in rows if row.state.status == CANCELLED)


def move_of(errors: Iterable[str]) -> Move | None:
    """Return the move that the errors of cancelled jobs show; None if they show none."""
    found = None
    for error in errors:
        if address := states.move_address(error):
            found = found or Move(unescape(address))
            is_there = error.startswith(states.MOVED)
            found.arrived += is_there
            found.on_the_way += not is_there
    return found


def _has_mark(path: str) -> bool:
    """Return whether a file may have the error of a job that is moved.

    That is quicker than to read its rows. The journal is to be read first: its records are removed
    when they are in the queue file.
    """
    file = open_file(path, os.O_RDONLY)
    if file is None:
        return False
    at, before = 0, b""
    try:
        while content := os.pread(file.fd, _READ_BYTES, at):
            at += len(content)
            content = before + content
            if _SEARCHED in content:
                return True
            before = content[1 - len(_SEARCHED) :]
    finally:
        file.close()
    return False
