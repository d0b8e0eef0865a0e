"""What the screen Now shows, read once for all who look at it.

It is read when someone asks, under a lock, and at most every two seconds. While nobody looks,
nothing is read. A long queue is read for the first time by a thread; see `first_reading`.
"""

from __future__ import annotations

import os
import threading
import time

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.monitoring.live import Live
from dbbasic_queue.monitoring.status import DAY_SECONDS
from dbbasic_queue.store.history import FAILED_OUTCOMES
from dbbasic_queue.web.first_reading import FirstReading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.protocol import Store

HOUR = 3600.0
_KEPT_SECONDS = 2.0
LONG_BYTES = 8 << 20
"""A thread reads a longer queue for the first time: shorter ones take less than half a second."""
_BARS = {HOUR: 60, DAY_SECONDS: 96}


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

    def __init__(self, live: Live, store: Store, now: float) -> None:
        self.now = now
        self.status = live.status(now)
        self.hour = live.figures(now, HOUR, _BARS[HOUR])
        self.day = live.figures(now, DAY_SECONDS, _BARS[DAY_SECONDS])
        self.types = self._types(live.metrics(now, HOUR))
        self.done = sum(found.done for found in self.types)
        self.failed = sum(found.failed for found in self.types)
        self.last = _last(store)
        self.warnings = store.warnings()

    def _types(self, figures: dict[str, Any]) -> list[TypeNow]:
        summary = self.status.summary
        found: dict[str, TypeNow] = {}

        def of(name: str) -> TypeNow:
            return found.setdefault(name, TypeNow(name))

        for name, numbers in figures["types"].items():
            _add_figures(of(name), numbers)
        for name, (due, later) in summary.pending.items():
            of_type = of(printable(name))
            of_type.due, of_type.later = due, later
            of_type.waited = summary.waiting[name] if due else None
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
    of_type.failed = sum(outcomes.get(name, 0) for name in FAILED_OUTCOMES)
    waiting, running = numbers["waiting"], numbers["running"]
    if running["count"]:
        of_type.waits = waiting["p50"], waiting["p95"]
        of_type.took = running["p50"], running["p95"]


def _last(store: Store) -> Attempt | None:
    latest = store.latest(1)
    return latest[-1] if latest else None


class Shared:
    """The last reading of a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.count = 0
        """how many readings there were, after the first one of a long queue"""
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._live = Live(self._queue.store)
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._read_at = 0.0
        self._index = FirstReading(self._live.read_index)
        self._everything = FirstReading(self._read)

    def _notice_fork(self) -> None:
        """In a forked child, start again: it has the locks of the parent's thread, but not that."""
        if self._process != os.getpid():
            self._start()

    def _read(self) -> Reading:
        return Reading(self._live, self._queue.store, self._queue.now())

    def reading(self) -> Reading:
        """Return the queue as it was at most two seconds ago. Raises StillReading."""
        self._notice_fork()
        if not self._everything.is_done and self.size() >= LONG_BYTES:
            self._everything.wait()
        with self._lock:
            age = time.monotonic() - self._read_at
            if self._reading is None or age >= _KEPT_SECONDS:
                self._reading = None
                self._reading = self._read()
                self._read_at = time.monotonic()
                self.count += 1
            return self._reading

    def wait_for_index(self) -> None:
        """Read the jobs' index, if it wasn't read yet. Raises StillReading if that takes long."""
        self._notice_fork()
        if not self._index.is_done and self.size() >= LONG_BYTES:
            self._index.wait()

    def wait_while_indexing(self) -> None:
        """Wait for the index if it is being read: until then, the queue answers no call."""
        self._notice_fork()
        if self._index.is_running() or self._everything.is_running():
            self.wait_for_index()

    def size(self) -> int:
        """Return how many bytes the first reading reads; 0 if a server counts."""
        return self._live.size()

    def forget(self) -> None:
        """Read again when someone asks the next time: something was changed here."""
        with self._lock:
            self._reading = None
