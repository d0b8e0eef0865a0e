"""Which jobs a command means: those with an id, or its beginning, and those that filters choose."""

from __future__ import annotations

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.monitoring.summary import due_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Collection, Iterable, Iterator
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Store

LEAST_PREFIX = 6
"""how much of an id a command needs that changes the job"""
_SHOWN = 5


def find_id(store: Store, text: str, least: int = 1) -> str:
    """Return the id that `text` is, or is the only one to begin with.

    Returns `text` if no id begins with it: the caller then says that there is no such job. An exact
    id wins. Raises InvalidArgument if several ids begin with `text`, or if it has fewer than
    `least` characters.
    """
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
    """The jobs that the options of `arguments.add_filters` choose.

    `statuses` restricts them further, to those that a command can change.
    """

    def __init__(self, arguments: Namespace, statuses: Collection[str] = STATUSES) -> None:
        chosen = getattr(arguments, "status", None)
        self.statuses = tuple(s for s in STATUSES if s in (chosen or statuses) and s in statuses)
        options = (arguments.type, arguments.error, arguments.text, arguments.since)
        self.is_open = not chosen and all(given is None for given in (*options, arguments.until))
        """whether no option was given"""
        self._types = arguments.type
        self._error = arguments.error
        self._text = arguments.text
        self._since = arguments.since
        self._until = arguments.until

    def matches(self, row: Row) -> bool:
        """Return whether a job is among them."""
        state = row.state
        return (
            state.status in self.statuses
            and (self._types is None or row.type in self._types)
            and (self._since is None or due_at(row) >= self._since)
            and (self._until is None or due_at(row) < self._until)
            and (self._error is None or bool(self._error.search(unescape(state.error))))
            and (self._text is None or self._has_text(row))
        )

    def _has_text(self, row: Row) -> bool:
        state = row.state
        return self._text in row.id or any(
            self._text in text for text in (row.payload, unescape(state.error), state.result)
        )

    def rows(self, store: Store) -> Iterator[Row]:
        """Yield the jobs, in the order of enqueueing."""
        job_type = self._types[0] if self._types and len(self._types) == 1 else None
        found = store.rows(
            statuses=self.statuses, job_type=job_type, only_errors=self._error is not None
        )
        return filter(self.matches, found)


_KEYS: dict[str, Callable[[Row], Any]] = {
    "created": lambda row: row.state.created_at,
    "due": due_at,
    "type": lambda row: row.type,
    "status": lambda row: STATUSES.index(row.state.status),
    "attempts": lambda row: row.state.attempts,
    "id": lambda row: row.id,
}


def ordered(
    arguments: Namespace, rows: Iterable[Row], key: Callable[[Row], Any] | None = None
) -> Iterable[Row]:
    """Return jobs in the order that --sort, --reverse and --limit ask for.

    Without --sort, they are in the order of `key` or, if it is None, as they are.
    """
    limit = arguments.limit
    if arguments.sort is not None:
        key = _KEYS[arguments.sort]
    if key is not None:
        from heapq import nlargest, nsmallest

        if limit is not None:
            return (nlargest if arguments.reverse else nsmallest)(limit, rows, key)
        return sorted(rows, key=key, reverse=arguments.reverse)
    if arguments.reverse:
        from collections import deque

        return reversed(deque(rows, limit))
    if limit is not None:
        from itertools import islice

        return islice(rows, limit)
    return rows


def count_types(rows: Iterable[Row]) -> dict[str, int]:
    """Return type -> how many of the jobs are of it, the most frequent first."""
    from collections import Counter

    return dict(Counter(row.type for row in rows).most_common())
