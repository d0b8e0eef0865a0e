"""A queue at a glance: lines of words that tabs separate, the first one saying what the line tells.

    queue       the file
    pending     how many jobs are so; the same for the other four statuses
    due         of the pending: how many could run now, for how many seconds the first one has
                been due, and its id
    paused      of the pending: how many are of a paused type; the paused types, `*` for all
    pass        a pass that is alive: its process id, since when
    running     a job in its hands: id, type, attempt, process id, since when, for how many seconds
    lost        a job whose pass is dead, for the next pass to recover: id, type, attempt
    error       one of the last errors, the latest first: id, type, status, attempts, when the
                attempt ended, what it says
    unreadable  how many lines are no jobs, and the numbers of the first of them

What is empty stands as `-`. When an attempt ended is what the history says: errors that it doesn't
have, or not yet, come after the others, first those of the jobs that were due last. Since when a
job runs is when its pass has claimed it, with others if they are quick; a pass that runs coroutines
claims while others run, and so cannot tell.
"""

from __future__ import annotations

import time
from heapq import nlargest

from dbbasic_queue.job import DELAYED, FAILED, PENDING, STATUSES
from dbbasic_queue.store import attempts, slots
from dbbasic_queue.store.paused import ALL
from dbbasic_queue.text import escape, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbbasic_queue.rows import Row
    from dbbasic_queue.store.store import Store

_ERRORS = 5
_LINES = 10
_WITH_ERRORS = ("failed", "retried", "died")


def instant(seconds: float) -> str:
    """Return Unix seconds as UTC, for a person.

    >>> instant(1_800_000_000)
    '2027-01-15T08:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def lines(store: Store, now: float) -> Iterator[str]:
    """Yield the lines; changes nothing, and takes the lock to ask which passes are alive."""
    look = _Look(store, now)
    yield f"queue\t{printable(store.path)}"
    for status, count in look.counts.items():
        yield f"{status}\t{count}"
    first = look.first
    waited = "-\t-" if first is None else f"{_waited(first, now)}\t{first.id}"
    yield f"due\t{look.due}\t{waited}"
    yield f"paused\t{look.held}\t{' '.join(map(printable, sorted(look.paused))) or '-'}"
    yield from _running(store, now)
    for row in look.errors:
        state = row.state
        ended_at = look.ended_at.get(row.id)
        when = "-" if ended_at is None else instant(ended_at)
        yield (
            f"error\t{row.id}\t{escape(row.type)}\t{state.status}\t{state.attempts}\t{when}"
            f"\t{printable(state.error)}"
        )
    numbers = " ".join(map(str, look.unreadable[:_LINES]))
    yield f"unreadable\t{len(look.unreadable)}\t{numbers or '-'}"


class _Look:
    """What one reading of the rows tells."""

    def __init__(self, store: Store, now: float) -> None:
        self.counts = dict.fromkeys(STATUSES, 0)
        self.paused = store.paused()
        self.held = self.due = 0
        self.ended_at = _ends_of_errors(store)
        self.first: Row | None = None
        errors: list[Row] = []
        self.unreadable: list[int] = []
        for row in store.rows(self.unreadable):
            state = row.state
            self.counts[state.status] += 1
            if state.status == PENDING:
                self._note_pending(row, now)
            if state.error and state.status in (FAILED, PENDING):
                if not state.error.startswith(DELAYED):
                    errors.append(row)
                if len(errors) > 1000:
                    errors = self._latest(errors)
        self.errors = self._latest(errors)

    def _note_pending(self, row: Row, now: float) -> None:
        if ALL in self.paused or row.type in self.paused:
            self.held += 1
        elif row.state.run_at <= now:
            self.due += 1
            if self.first is None or _waited(row, now) > _waited(self.first, now):
                self.first = row

    def _latest(self, rows: list[Row]) -> list[Row]:
        def when(row: Row) -> tuple[bool, float]:
            ended_at = self.ended_at.get(row.id)
            return ended_at is not None, ended_at or row.state.run_at

        return nlargest(_ERRORS, rows, key=when)


def _ends_of_errors(store: Store) -> dict[str, float]:
    """Return when the last attempt of each job that has raised ended, as the history has it."""
    try:
        found = attempts.read(store.path, only_errors=True)
        return {a.id: a.ended_at for a in found if a.outcome in _WITH_ERRORS}
    except OSError:  # the history cannot be read, and a person needs the rest all the more
        return {}


def _waited(row: Row, now: float) -> int:
    return max(int(now) - max(row.state.run_at, row.state.created_at), 0)


def _at_work(store: Store) -> tuple[list[slots.Living], list[Row]]:
    store.view.refresh()
    numbers = sorted(store.view.processing)
    return slots.living(store.path), [row for n in numbers if (row := store.view.row(n))]


def _running(store: Store, now: float) -> Iterator[str]:
    # Under the lock: the jobs and the lists of the passes, as they are at one instant.
    passes, rows = store.lock.run(_at_work, store)
    for living in sorted(passes, key=lambda living: living.begun_at):
        yield f"pass\t{living.pid}\t{instant(living.begun_at)}"
    for row in rows:
        claim = (row.id, row.state.attempts)
        job = f"{row.id}\t{escape(row.type)}\t{row.state.attempts}"
        holder = next((living for living in passes if claim in living.claims), None)
        if holder is None:
            yield f"lost\t{job}"
            continue
        since = holder.listed_at
        told = f"{instant(since)}\t{max(int(now - since), 0)}"
        if holder.parallel > 1:
            told = "-\t-"
        yield f"running\t{job}\t{holder.pid}\t{told}"
