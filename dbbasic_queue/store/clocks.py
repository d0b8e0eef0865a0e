"""Jobs whose times were set by a clock that was ahead are pulled in: they become due earlier.

Each function takes a view that is up to date, and returns changes, (id, new state), for the caller
to record. It writes nothing.
"""

from __future__ import annotations

from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.states import CLOCK_TOLERANCE_SECONDS, clamp, later, pull_in
from dbbasic_queue.store.reading.bulk import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.store.reading.view import View

_READ_AHEAD_BYTES = 1 << 16


def retries_ahead(
    view: View, now: float, longest_wait: Callable[[str, int], float]
) -> list[tuple[bytes, bytes]]:
    """Return the changes that pull in retries that lie further ahead than their backoff allows.

    `longest_wait` returns the longest backoff in seconds, given a job type and an attempt's number.
    """
    changes = []
    for number in view.retrying:
        if view.when[number] > now and (row := view.row(number)):
            latest = later(now, longest_wait(row.type, row.state.attempts))
            state = clamp(row.state, latest)
            if state is not None:
                changes.append((row.id.encode(), encode_state(state)))
    return changes


def enqueued_ahead(view: View, now: float) -> list[tuple[bytes, bytes]]:
    """Return the changes for jobs that were enqueued to run at once, but by a clock ahead.

    Their times are over a minute in the future; the changes make them due now. If there are none,
    `view.latest_created` is lowered, so that the next call needn't search all rows.
    """
    if view.latest_created <= now + CLOCK_TOLERANCE_SECONDS:
        return []
    changes = []
    for number, run_at in enumerate(view.when):
        if now < run_at < NEVER and (row := view.row(number, ahead=_READ_AHEAD_BYTES)):
            state = pull_in(row.state, now)
            if state is not None:
                changes.append((row.id.encode(), encode_state(state)))
    if not changes:
        view.latest_created = int(now) + CLOCK_TOLERANCE_SECONDS
    return changes
