"""Summarizes the jobs: counts, due and paused jobs, the oldest of each type.

A server or a store counts them. Otherwise the rows are read once.
"""

from __future__ import annotations

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.states import FAILED, FINISHED, PENDING, STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Overview, Store


class Summary:
    """The jobs as they were when the reading began; times are compared with `now`, in Unix seconds.

    `counts`        status -> how many jobs
    `paused_types`  the paused types; "*" means all
    `paused`        how many pending jobs are of a paused type
    `due`           how many other pending jobs are due
    `first_due`     the one of them that has been due for the longest time, or None
    `next_at`       when the first pending job becomes due, in Unix seconds; None if there is none,
                    or if one is due. Without jobs of paused types
    `waiting`       type -> for how many seconds its first pending job has been due, 0 if none is;
                    includes paused types
    `pending`       type -> how many of its pending jobs are due, and how many aren't; includes
                    paused types
    `oldest`        for how many seconds the first finished job has been due, 0 if there is none, or
                    if the server wasn't asked: that is only done with `each` or `with_oldest`
    `unreadable`    the numbers of the lines that aren't jobs
    """

    def __init__(
        self,
        store: Store,
        now: float,
        each: Callable[[Row], object] | None = None,
        *,
        with_oldest: bool = False,
        overview: Overview | None = None,
    ) -> None:
        """`each` is called with every open job that has an error, in the order of enqueueing.

        With `overview`, nothing but what is paused is read.
        """
        self.counts: dict[Any, int] = dict.fromkeys(STATUSES, 0)
        self.paused_types = store.paused()
        self.paused = self.due = 0
        self.oldest = 0.0
        self.first_due: Row | None = None
        self.next_at: int | None = None
        self.waiting: dict[str, float] = {}
        self.pending: dict[str, tuple[int, int]] = {}
        self.unreadable: list[int] = []
        if overview is None:
            overview = store.overview(now, each)
        if overview is None:
            self._read(store, now, each or (lambda _: None))
        else:
            self._take(overview, now)
            if with_oldest or each is not None:
                oldest = overview.oldest()
                self.oldest = 0.0 if oldest is None else max(now - oldest, 0.0)
        if self.due:
            self.next_at = None

    def _read(self, store: Store, now: float, each: Callable[[Row], object]) -> None:
        for row in store.rows(self.unreadable):
            self.counts[row.state.status] += 1
            if row.state.status == PENDING:
                self._add_pending(row, now)
            elif row.state.status in FINISHED:
                self.oldest = max(self.oldest, waited_seconds(row, now))
            if row.state.error and row.state.status in (PENDING, FAILED):
                each(row)

    def _take(self, overview: Overview, now: float) -> None:
        self.counts = overview.counts
        self.unreadable = list(overview.unreadable)
        for of_type in overview.types:
            first = of_type.first
            waited = waited_seconds(first, now) if first else 0.0
            self.waiting[of_type.type] = waited
            self.pending[of_type.type] = of_type.due, of_type.count - of_type.due
            if ALL in self.paused_types or of_type.type in self.paused_types:
                self.paused += of_type.count
                continue
            self.due += of_type.due
            if of_type.next_at is not None:
                self._add_next(of_type.next_at)
            if first is not None and (
                self.first_due is None or waited > waited_seconds(self.first_due, now)
            ):
                self.first_due = first

    def _add_pending(self, row: Row, now: float) -> None:
        waited = waited_seconds(row, now)
        self.waiting[row.type] = max(self.waiting.get(row.type, 0.0), waited)
        due, later = self.pending.get(row.type, (0, 0))
        is_due = row.state.run_at <= now
        self.pending[row.type] = due + is_due, later + (not is_due)
        if ALL in self.paused_types or row.type in self.paused_types:
            self.paused += 1
        elif row.state.run_at <= now:
            self.due += 1
            if self.first_due is None or waited > waited_seconds(self.first_due, now):
                self.first_due = row
        else:
            self._add_next(row.state.run_at)

    def _add_next(self, at: int) -> None:
        self.next_at = at if self.next_at is None else min(self.next_at, at)


def due_at(row: Row) -> int:
    """Return when a job became due, or becomes due: not before it was enqueued."""
    return max(row.state.run_at, row.state.created_at)


def waited_seconds(row: Row, now: float) -> float:
    """Return how many seconds ago a job became due or, if that is later, was enqueued.

    It is 0 for a job that isn't due yet.
    """
    return max(now - due_at(row), 0.0)
