"""Which jobs the screen Jobs shows: a filter from the address, and one page of its jobs.

The newest job comes first. A page begins after a cursor, which names a job by the instant at which
it was enqueued and its id: jobs that are added or removed in the meantime move no page.
"""

from __future__ import annotations

from collections import deque
from itertools import dropwhile, islice

from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.monitoring.selecting import Filter
from dbbasic_queue.web.requests import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Store
    from dbbasic_queue.web.hiding import Hiding

PAGE_ROWS = 50


class Shown(Filter):
    """The jobs that the screen shows: of a status, of a type, with a text; "" for all.

    The text is looked for in the id, the error, and what is shown of payload and result.
    """

    def __init__(self, fields: Mapping[str, str], hiding: Hiding) -> None:
        self.status = fields.get("status", "")
        self.type = fields.get("type", "").strip()
        self.text = fields.get("text", "").strip()
        self._hiding = hiding
        if self.status and self.status not in STATUSES:
            raise Refused(400, f"There is no such status. It must be one of {', '.join(STATUSES)}.")
        statuses = (self.status,) if self.status else STATUSES
        super().__init__(statuses, {self.type} if self.type else None)

    def fields(self) -> dict[str, str]:
        """Return the fields of the address."""
        found = {"status": self.status, "type": self.type, "text": self.text}
        return {name: text for name, text in found.items() if text}

    def matches(self, row: Row) -> bool:
        """Return whether a job is among them."""
        return super().matches(row) and (not self.text or self._has_text(row))

    def _has_text(self, row: Row) -> bool:
        state = row.state
        return (
            self.text in row.id
            or self.text in unescape(state.error)
            or self._hiding.has(row.payload, self.text)
            or bool(state.result and self._hiding.has(state.result, self.text))
        )

    def only(self, statuses: tuple[str, ...]) -> Shown:
        """Return the same filter for those of its jobs that have one of these statuses."""
        found = Shown(self.fields(), self._hiding)
        found.statuses = tuple(status for status in self.statuses if status in statuses)
        return found


class Cursor:
    """A place in the list of jobs: just before a job, in the order of enqueueing."""

    def __init__(self, created_at: int, job_id: str) -> None:
        self.created_at = created_at
        self.job_id = job_id

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """Return the cursor that a text is, None for "". Raises Refused for other texts."""
        if not text:
            return None
        at, _, job_id = text.partition(".")
        if not (at.isascii() and at.isdecimal() and len(at) <= 12 and 0 < len(job_id) <= 64):
            raise Refused(400, "The page in the address isn't valid.")
        return cls(int(at), job_id)

    def __str__(self) -> str:
        return f"{self.created_at}.{self.job_id}"


class Listing:
    """One page of the jobs of a filter, the newest first. `following` is the next page's cursor."""

    def __init__(self, store: Store, chosen: Shown, cursor: Cursor | None) -> None:
        newest = store.newest(chosen.statuses)
        if newest is None:
            rows = _last(chosen.rows(store), cursor)
        else:
            rows = _first(filter(chosen.matches, newest), cursor, _is_there(store, chosen, cursor))
        self.rows = rows[:PAGE_ROWS]
        self.following: Cursor | None = None
        if len(rows) > PAGE_ROWS:
            last = self.rows[-1]
            self.following = Cursor(last.state.created_at, last.id)


def _is_there(store: Store, chosen: Shown, cursor: Cursor | None) -> bool:
    """Return whether a cursor's job is among those of the filter."""
    row = store.find(cursor.job_id) if cursor is not None and is_id(cursor.job_id) else None
    return row is not None and chosen.matches(row)


def _first(rows: Iterable[Row], cursor: Cursor | None, is_there: bool) -> list[Row]:
    """Return a page, and one job more, of the jobs from the newest to the oldest.

    If the cursor's job isn't there any more: of those that were enqueued no later.
    """
    if cursor is not None and is_there:
        rows = islice(dropwhile(lambda row: row.id != cursor.job_id, rows), 1, None)
    elif cursor is not None:
        rows = (row for row in rows if row.state.created_at <= cursor.created_at)
    return list(islice(rows, PAGE_ROWS + 1))


def _last(rows: Iterable[Row], cursor: Cursor | None) -> list[Row]:
    """Return the same, given the jobs from the oldest to the newest: all are read."""
    found: deque[Row] = deque(maxlen=PAGE_ROWS + 1)
    older: deque[Row] = deque(maxlen=PAGE_ROWS + 1)
    for row in rows:
        if cursor is not None and row.id == cursor.job_id:
            return list(found)[::-1]
        found.append(row)
        if cursor is None or row.state.created_at <= cursor.created_at:
            older.append(row)
    return list(older)[::-1]


def count_types(rows: Iterable[Row]) -> dict[str, int]:
    """Return type -> how many of the jobs have it, the most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.type] = counts.get(row.type, 0) + 1
    return dict(sorted(counts.items(), key=lambda found: (-found[1], found[0])))
