"""Finds a pending job by its type and payload, whatever the queue's length.

- The first search reads the payloads of all pending jobs. Later ones read only new rows, and jobs
  that have become pending again since then.
- What is remembered is a hash of type and payload, and only a hint. A job is found only if its row
  says so now. An entry whose job isn't pending any more, or has another payload, is dropped when a
  search meets it.
- If rows may have got other numbers, everything is read again.
"""

from __future__ import annotations

from dbbasic_queue.model.states import PENDING
from dbbasic_queue.model.strict_json import canonical_json
from dbbasic_queue.store.reading.bulk import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.reading.view import View

_READ_AHEAD_BYTES = 1 << 16
_FEW_ROWS = 16
"""up to that many rows are read one by one"""


class PendingPayloads:
    """The pending jobs of a view by type and payload.

    Call its methods while the view is up to date, and this process's other threads are kept out.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._numbers: dict[int, list[int]] = {}
        """hash of type and payload -> numbers of rows that had them while they were pending"""
        self._numbering = -1
        """that of the view when these rows were read"""
        self._read_to = 0
        """all rows before this number have been read"""
        self._pending_count = 0
        """that of the view at that time"""

    def unread(self) -> int:
        """Return how many rows `update` would have to look at."""
        again = self._again()
        rows = len(self._view.when)
        return rows if again is None else rows - self._read_to + len(again)

    def _again(self) -> list[int] | None:
        """Return the rows that became pending again; None if all rows must be read again."""
        if self._numbering != self._view.numbering:
            return None
        return self._view.pending_since(self._pending_count)

    def update(self) -> None:
        """Read the rows that are new, and those that have become pending again.

        If an exception ends this, the next call reads them.
        """
        view = self._view
        again, count = self._again(), view.pending_count
        if again is None:
            self._numbers = {}
            self._read_to = 0
            self._numbering = view.numbering
        self._add([number for number in again or () if number < self._read_to])
        self._add(range(self._read_to, len(view.when)))
        self._read_to = len(view.when)
        self._pending_count = count

    def _add(self, numbers: list[int] | range) -> None:
        view = self._view
        ahead = _READ_AHEAD_BYTES if len(numbers) > _FEW_ROWS else 0
        for number in numbers:
            if view.when[number] == NEVER:
                continue
            _, job_type, payload, _ = view.line(number, ahead).split(b"\t", 3)
            key = _hash(job_type.decode(), payload.decode())
            if key is not None:
                self._numbers.setdefault(key, []).append(number)

    def find(self, job_type: str, payload: str) -> Row | None:
        """Return a pending job of this type with the same payload, given as JSON text, or None.

        Call it after `update`.
        """
        wanted = canonical_json(payload)
        key = _hash(job_type, payload)
        numbers = self._numbers.get(key, []) if key is not None else []
        for place in reversed(range(len(numbers))):
            row = self._pending_row(numbers[place])
            if row is None or _hash(row.type, row.payload) != key:
                del numbers[place]
            elif row.type == job_type and canonical_json(row.payload or "{}") == wanted:
                return row
        return None

    def _pending_row(self, number: int) -> Row | None:
        row = self._view.row(number) if self._view.when[number] != NEVER else None
        return row if row is not None and row.state.status == PENDING else None


def _hash(job_type: str, payload: str) -> int | None:
    """Return the same number for the same type and payload; None if the payload isn't JSON."""
    try:
        return hash((job_type, canonical_json(payload or "{}")))
    except ValueError:
        return None
