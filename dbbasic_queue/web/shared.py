"""What the screen Now shows, read once for all who look at it.

It is read when someone asks, under a lock, and at most every two seconds. While nobody looks,
nothing is read.
"""

from __future__ import annotations

import threading
import time

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import PENDING
from dbbasic_queue.monitoring.figures import Figures
from dbbasic_queue.monitoring.metrics import measure
from dbbasic_queue.monitoring.status import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.protocol import Store

HOUR = 3600.0
DAY = 86400.0
_KEPT_SECONDS = 2.0
_BARS = {HOUR: 60, DAY: 96}
_FAILED = ("failed", "retried", "died")


class TypeNow:
    """What the page says about one type of job. Seconds are None if nothing is known.

    `due`      how many jobs could run now; `waited` for how long the first of them has been due
    `later`    how many are due at a later time
    `running`  how many are running
    `done`     how many attempts have succeeded in the last hour, `failed` how many haven't
    `waits`    p50 and p95 of how long they had been due when they started
    `took`     p50 and p95 of how long they ran
    `paused`   whether no more of them are started
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.due = self.later = self.running = self.done = self.failed = 0
        self.waited: float | None = None
        self.waits: tuple[float, float] | None = None
        self.took: tuple[float, float] | None = None
        self.paused = False


class Reading:
    """The queue at one instant.

    `status`   all at a glance
    `types`    what there is to say about each type, by name
    `hour`     the figures of the last hour, `day` of the last day
    `done`     how many attempts have succeeded in the last hour, `failed` how many haven't
    `last`     the attempt that ended last, or None
    """

    def __init__(self, queue: Queue) -> None:
        store, now = queue.store, queue.now()
        self.now = now
        self.status = Status(store, now)
        self.hour = Figures(store, now, HOUR, _BARS[HOUR])
        self.day = Figures(store, now, DAY, _BARS[DAY])
        self.types = self._read_types(store)
        self.done = sum(found.done for found in self.types)
        self.failed = sum(found.failed for found in self.types)
        self.last = _last(store)
        self.warnings = store.warnings()

    def _read_types(self, store: Store) -> list[TypeNow]:
        now, summary = self.now, self.status.summary
        found: dict[str, TypeNow] = {}

        def of(name: str) -> TypeNow:
            return found.setdefault(name, TypeNow(name))

        figures = measure(summary, store.history(since=now - HOUR), now, HOUR)
        for name, numbers in figures["types"].items():
            _add_figures(of(name), numbers)
        _count_pending(store, now, of)
        for name, waited in summary.waiting.items():
            of(printable(name)).waited = waited if of(printable(name)).due else None
        for row in self.status.running:
            of(printable(row.type)).running += 1
        paused = summary.paused_types
        for name in paused - {ALL}:
            of(printable(name))
        for of_type in found.values():
            of_type.paused = ALL in paused or of_type.name in paused
        return sorted(found.values(), key=lambda of_type: of_type.name)


def _add_figures(of_type: TypeNow, numbers: dict[str, Any]) -> None:
    outcomes = numbers["attempts"]
    of_type.done = outcomes.get("completed", 0)
    of_type.failed = sum(outcomes.get(name, 0) for name in _FAILED)
    waiting, running = numbers["waiting"], numbers["running"]
    if running["count"]:
        of_type.waits = waiting["p50"], waiting["p95"]
        of_type.took = running["p50"], running["p95"]


def _count_pending(store: Store, now: float, of: Any) -> None:
    """Count the due and the later jobs of each type."""
    overview = store.overview(now)
    if overview is None:
        for row in store.rows(statuses=(PENDING,)):
            if row.state.status == PENDING:
                of_type = of(printable(row.type))
                if row.state.run_at <= now:
                    of_type.due += 1
                else:
                    of_type.later += 1
        return
    for waiting in overview.types:
        of_type = of(printable(waiting.type))
        of_type.due = waiting.due
        of_type.later = waiting.count - waiting.due


def _last(store: Store) -> Attempt | None:
    latest = store.latest(1)
    return latest[-1] if latest else None


class Shared:
    """The last reading of a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._read_at = 0.0
        self.count = 0
        """how many readings there were"""

    def reading(self) -> Reading:
        """Return the queue as it was at most two seconds ago."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if self._reading is None or age >= _KEPT_SECONDS:
                self._reading = None
                self._reading = Reading(self._queue)
                self._read_at = time.monotonic()
                self.count += 1
            return self._reading

    def forget(self) -> None:
        """Read again when someone asks the next time: something was changed here."""
        with self._lock:
            self._reading = None
