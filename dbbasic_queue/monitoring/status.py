"""A queue at a glance: lines of fields separated by tabs; the first field names the line.

    queue       the file
    moved       only for a queue that was moved: the address that it was moved to, and how many jobs
                are pending in the old place: `dbbasic-queue move` moves them
    pending     how many jobs are pending; one such line for each of the five statuses
    due         how many pending jobs could run now, for how many seconds the first of them has been
                due, and its id
    paused      how many pending jobs are of a paused type; the paused types, `*` for all
    finished    how many finished jobs the file has, for how many seconds the first of them has been
                due
    pass        a live pass: process id, start time
    running     a job that a live pass has claimed: id, type, attempt, process id, start time, for
                how many seconds
    progress    how far the job in the line before it is, if it has reported that: id, done, total,
                estimated seconds that are left, all that as a bar, note
    lost        a job of a dead pass, which the next pass recovers: id, type, attempt
    error       one of the last five errors, the latest first: id, type, status, attempts, when the
                attempt ended, the error's text
    unreadable  how many lines aren't jobs, and the line numbers of the first ten
    warning     what in the settings of the queue's server could lose jobs

An empty field is `-`. The time at which an attempt ended is from the history; errors without such a
time come last, the latest `run_at` first. A job's start time is when its pass last claimed jobs: a
batch of quick jobs has one start time. A pass that runs coroutines claims jobs while others run, so
the start times of its jobs are unknown.
"""

from __future__ import annotations

import time
from heapq import nlargest

from dbbasic_queue.model.escaping import escape, printable
from dbbasic_queue.model.states import DELAYED, FAILED, FINISHED, PENDING
from dbbasic_queue.monitoring import progress_bar
from dbbasic_queue.monitoring.summary import Summary, waited_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.store.protocol import Store

_SHOWN_ERRORS = 5
_SHOWN_LINES = 10
_KEPT_ERRORS = 1000
"""how many rows are collected before all but the last errors are dropped"""
_WITH_ERRORS = ("failed", "retried", "died")
"""the outcomes of attempts that failed"""


def instant(seconds: float) -> str:
    """Return an instant in Unix seconds as text: in UTC, rounded down to a second.

    >>> instant(1_800_000_000)
    '2027-01-15T08:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def lines(store: Store, now: float) -> Iterator[str]:
    """Yield the lines, without line ends. Changes nothing.

    Acquires the lock for a moment, to find out which passes are alive. `now` is in Unix seconds.
    """
    ended_at = _ends_of_errors(store)
    errors = _LastErrors(ended_at)
    summary = Summary(store, now, errors.add)
    yield f"queue\t{printable(store.path)}"
    if address := store.moved_to():
        yield f"moved\t{printable(address)}\t{summary.counts[PENDING]}"
    for status, count in summary.counts.items():
        yield f"{status}\t{count}"
    first = summary.first_due
    waited = "-\t-" if first is None else f"{int(waited_seconds(first, int(now)))}\t{first.id}"
    yield f"due\t{summary.due}\t{waited}"
    paused = " ".join(map(printable, sorted(summary.paused_types)))
    yield f"paused\t{summary.paused}\t{paused or '-'}"
    finished = sum(summary.counts[status] for status in FINISHED)
    yield f"finished\t{finished}\t{int(summary.oldest) if finished else '-'}"
    yield from _running(store, now)
    for row in errors.latest():
        state = row.state
        ended = ended_at.get(row.id)
        when = "-" if ended is None else instant(ended)
        yield (
            f"error\t{row.id}\t{escape(row.type)}\t{state.status}\t{state.attempts}\t{when}"
            f"\t{printable(state.error)}"
        )
    numbers = " ".join(map(str, summary.unreadable[:_SHOWN_LINES]))
    yield f"unreadable\t{len(summary.unreadable)}\t{numbers or '-'}"
    for warning in store.warnings():
        yield f"warning\t{printable(warning)}"


class _LastErrors:
    """The jobs whose last attempt failed most recently. `ended_at` is job id -> Unix seconds."""

    def __init__(self, ended_at: dict[str, float]) -> None:
        self._ended_at = ended_at
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        state = row.state
        if not state.error or state.status not in (FAILED, PENDING):
            return
        if not state.error.startswith(DELAYED):
            self._rows.append(row)
        if len(self._rows) > _KEPT_ERRORS:
            self._rows = self.latest()

    def latest(self) -> list[Row]:
        return nlargest(_SHOWN_ERRORS, self._rows, key=self._when)

    def _when(self, row: Row) -> tuple[bool, float]:
        ended_at = self._ended_at.get(row.id)
        return ended_at is not None, ended_at or row.state.run_at


def _ends_of_errors(store: Store) -> dict[str, float]:
    """Return job id -> when its last failed attempt ended, as far back as the history goes."""
    try:
        found = store.history(only_errors=True)
        return {a.id: a.ended_at for a in found if a.outcome in _WITH_ERRORS}
    except OSError:  # the rest of the status is useful without the history
        return {}


def _running(store: Store, now: float) -> Iterator[str]:
    """Yield the lines `pass`, `running`, `progress` and `lost`."""
    passes, rows = store.running()
    progress = _progress(store, rows)
    for live in sorted(passes, key=lambda live: live.started_at):
        yield f"pass\t{live.pid}\t{instant(live.started_at)}"
    for row in rows:
        claim = (row.id, row.state.attempts)
        job = f"{row.id}\t{escape(row.type)}\t{row.state.attempts}"
        holder = next((live for live in passes if claim in live.claims), None)
        if holder is None:
            yield f"lost\t{job}"
            continue
        since = holder.listed_at
        started = f"{instant(since)}\t{max(int(now - since), 0)}"
        if holder.parallel > 1:
            started = "-\t-"
        yield f"running\t{job}\t{holder.pid}\t{started}"
        if row.id in progress:
            found = map(printable, progress_bar.fields(progress[row.id], now))
            yield "\t".join(("progress", row.id, *found))


def _progress(store: Store, rows: list[Row]) -> dict[str, Progress]:
    try:
        return store.progress(rows)
    except OSError:  # the rest of the status is useful without it
        return {}
