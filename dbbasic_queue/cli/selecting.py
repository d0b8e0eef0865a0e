"""Which jobs the options of a command choose, and in which order."""

from __future__ import annotations

from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.monitoring.selecting import Filter
from dbbasic_queue.monitoring.summary import due_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from dbbasic_queue.model.rows import Row


def has_options(arguments: Namespace) -> bool:
    """Return whether one of the options of `arguments.add_filters` was given."""
    names = ("status", "type", "error", "text", "since", "until")
    return any(getattr(arguments, name, None) is not None for name in names)


def filter_of(arguments: Namespace, statuses: Collection[str] = STATUSES) -> Filter:
    """Return the filter that the options of `arguments.add_filters` describe.

    `statuses` restricts it further, to jobs that the command can change.
    """
    chosen = getattr(arguments, "status", None)
    return Filter(
        [status for status in statuses if chosen is None or status in chosen],
        arguments.type,
        error=arguments.error,
        text=arguments.text,
        since=arguments.since,
        until=arguments.until,
    )


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
