"""A queue that a process looks at again and again, such as the web page and `watch`.

`Live` gives what `Status`, `Figures` and `Queue.metrics` give. For a queue in a text file, the
first look reads everything; each later one costs what has changed since then, whatever the queue's
length. That takes memory: about 0.4 KB per job. In other stores a server counts, or the jobs are in
memory: there it is the same as to read again.
"""

from __future__ import annotations

import threading
from bisect import bisect_right

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.monitoring import figures, metrics, status
from dbbasic_queue.monitoring.figures import Figures
from dbbasic_queue.monitoring.moves import Moves, move_of
from dbbasic_queue.monitoring.status import DAY_SECONDS, SHOWN_ERRORS, Failures, Status, in_order
from dbbasic_queue.monitoring.summary import Summary
from dbbasic_queue.store.attempts import Columns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.moves import Move
    from dbbasic_queue.store.followed import Followed
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.protocol import Store


class Live:
    """A queue in view. Use one for all viewers, and call it when somebody looks.

    Any thread may call it: one call after the other is made. `now` is in Unix seconds; it may go
    back. Each call raises what `Status` raises: StoreError, NotAQueue, QueueMoved.
    """

    def __init__(self, store: Store) -> None:
        from dbbasic_queue.store.textfile import TextFileStore

        self.store = store
        self._lock = threading.RLock()
        self._moves = Moves(store)
        self._followed = store.followed() if isinstance(store, TextFileStore) else None

    def size(self) -> int:
        """Return how many bytes the first look reads; 0 in other stores than a text file."""
        return 0 if self._followed is None else self._followed.size()

    def read_index(self) -> None:
        """Read the part that the store's own calls need, too, if it wasn't read yet.

        Unlike the other calls, it may be made while another thread is inside one: then it returns
        when that has read this part.
        """
        if self._followed is not None:
            self._followed.read_index()

    def status(self, now: float) -> Status:
        """Return everything at a glance, with the last errors."""
        with self._lock:
            if self._followed is None:
                source = status.Source(self.store, self._moves)
            else:
                source = _StatusSource(self.store, self._followed)
            return Status(self.store, now, with_errors=True, source=source)

    def figures(
        self, now: float, window: float, count: int, job_type: str | None = None
    ) -> Figures:
        """Return the figures of the last `window` seconds, in `count` intervals."""
        with self._lock:
            source = None
            if self._followed is not None:
                source = _FiguresSource(self.store, self._followed)
            return Figures(self.store, now, window, count, job_type, source)

    def metrics(self, now: float, window: float = 3600.0) -> dict[str, Any]:
        """Return what `Queue.metrics` returns. `window` is in seconds.

        Invalid rows of the history are skipped without a warning.
        """
        with self._lock:
            if self._followed is None:
                attempts = self.store.history(since=now - window)
                return metrics.measure(Summary(self.store, now), attempts, now, window)
            found = self._followed.attempts()
            summary = Summary(self.store, now, overview=self._followed.overview(now))
            begins_at = found.begins_at(now - window)
            types: dict[str, metrics.OfType] = {}
            for name, columns in found.types.items():
                part = columns.window(now, window)
                if part.outcomes:
                    ended = metrics.OfType(part.outcomes, part.waiting, part.running)
                    shown = printable(name)
                    types[shown] = types[shown] + ended if shown in types else ended
            begins_at = now if begins_at is None else begins_at
            return metrics.as_dict(summary, types, begins_at, now, window)


class _StatusSource(status.Source):
    """What has changed since the last look; the rest is known."""

    def __init__(self, store: Store, followed: Followed) -> None:
        super().__init__(store)
        self._followed = followed

    def move(self, now: float, cancelled: int) -> Move | None:
        return move_of(self._followed.moving(now)) if cancelled else None

    def failures(self, now: float) -> list[Failures]:
        found = []
        for key, ended_at in self._followed.attempts().errors.items():
            count = len(ended_at) - bisect_right(ended_at, now - DAY_SECONDS)
            if count:
                found.append(Failures(*key, count, ended_at[-1]))
        return in_order(found)

    def summary(
        self, now: float, *, with_errors: bool
    ) -> tuple[Summary, list[tuple[Row, float | None]]]:
        overview = self._followed.overview(now)
        summary = Summary(self._store, now, with_oldest=True, overview=overview)
        if not with_errors:
            return summary, []
        return summary, self._followed.latest_errors(now, SHOWN_ERRORS)

    def passes(self) -> list[EndedPass]:
        return self._followed.passes()

    def schedules(self) -> list[Any]:
        return self._followed.schedules(super().schedules)


class _FiguresSource(figures.Source):
    """The same for the figures."""

    def __init__(self, store: Store, followed: Followed) -> None:
        super().__init__(store)
        self._followed = followed

    def attempts(self, since: float, job_type: str | None) -> Columns:
        found = self._followed.attempts()
        if job_type is None:
            return found.all
        of_type = [columns for name, columns in found.types.items() if unescape(name) == job_type]
        if len(of_type) == 1:
            return of_type[0]
        return Columns(attempt for columns in of_type for attempt in columns.rows(since))

    def due_before(self, now: float, ends: Sequence[float], job_type: str | None) -> list[int]:
        paused = self._store.paused()
        if ALL in paused:
            return [0] * len(ends)
        return self._followed.due_before(now, ends, job_type, paused)
