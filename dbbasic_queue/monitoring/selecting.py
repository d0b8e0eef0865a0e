"""Which jobs are meant: the one whose id is given, or begins like that, and those of a filter."""

from __future__ import annotations

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.monitoring.summary import due_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from re import Pattern

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Store

LEAST_PREFIX = 6
"""how much of an id a command needs that changes the job"""
_SHOWN = 5


def find_id(store: Store, text: str, least: int = 1) -> str:
    """Return the id that `text` is, or is the only one to begin with.

    Returns `text` if no id begins with it: the caller then says that there is no such job. An exact
    id wins. Raises InvalidArgument for an empty text, if several ids begin with `text`, or if it
    has fewer than `least` characters.
    """
    if not text:
        raise InvalidArgument(
            "invalid id '': must be a job's id, or its beginning (`dbbasic-queue list` shows them)"
        )
    if not is_id(text) or store.find(text) is not None:
        return text
    found: list[str] = []
    for row in store.rows(beginning=text):
        if row.id.startswith(text):
            found.append(row.id)
            if len(found) > _SHOWN:
                break
    if not found:
        return text
    if len(text) < least:
        raise InvalidArgument(
            f"invalid id {text!r}: to change a job, write at least {least} characters of its id"
        )
    if len(found) > 1:
        more = ", ..." if len(found) > _SHOWN else ""
        raise InvalidArgument(
            f"ambiguous id {text!r}: several begin with it ({', '.join(found[:_SHOWN])}{more}): "
            "write more of it"
        )
    return found[0]


class Filter:
    """Jobs with all of these properties; what isn't given doesn't restrict them.

    `statuses`  one of these, in the order in which a job gets them
    `types`     one of these
    `error`     found in the last error
    `text`      in the id, the payload, the last error or the result
    `since`     due, or due since, at this instant or later, in Unix seconds
    `until`     before this instant
    """

    def __init__(
        self,
        statuses: Collection[str] = STATUSES,
        types: Collection[str] | None = None,
        *,
        error: Pattern[str] | None = None,
        text: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> None:
        self.statuses = tuple(status for status in STATUSES if status in statuses)
        self._types = types
        self._error = error
        self._text = text
        self._since = since
        self._until = until

    def matches(self, row: Row) -> bool:
        """Return whether a job is among them."""
        state = row.state
        return (
            state.status in self.statuses
            and (self._types is None or row.type in self._types)
            and (self._since is None or due_at(row) >= self._since)
            and (self._until is None or due_at(row) < self._until)
            and (self._error is None or bool(self._error.search(unescape(state.error))))
            and (self._text is None or _has_text(row, self._text))
        )

    def rows(self, store: Store) -> Iterator[Row]:
        """Yield the jobs, in the order of enqueueing."""
        types = self._types or ()
        job_type = next(iter(types)) if len(types) == 1 else None
        found = store.rows(
            statuses=self.statuses, job_type=job_type, only_errors=self._error is not None
        )
        return filter(self.matches, found)


def _has_text(row: Row, text: str) -> bool:
    state = row.state
    return any(text in part for part in (row.id, row.payload, unescape(state.error), state.result))
