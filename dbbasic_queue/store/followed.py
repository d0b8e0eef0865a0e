"""A queue's files, read again and again by one process: a look costs what has changed since.

- The queue file and its journal are read by the store's `View`, which other calls share; `Counts`
  counts what it has read. `Attempts` follows the history.
- The view notices every change but one: an edit by hand, in place, that keeps the file's length. So
  if the file's mtime has changed and its size hasn't, everything is read again.
- Small files are read again if their inode, size or mtime has changed.
"""

from __future__ import annotations

import os

from dbbasic_queue.store import pass_log
from dbbasic_queue.store.attempts import Attempts
from dbbasic_queue.store.reading.counts import Counts
from dbbasic_queue.store.reading.ordered import Ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any, ParamSpec, TypeVar

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.disk.lock import QueueLock
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.protocol import Overview
    from dbbasic_queue.store.reading.view import View

    P = ParamSpec("P")
    R = TypeVar("R")
    Key = tuple[bool, float, int]


class Followed:
    """What a queue's files say. Each call reads what is new. Not thread-safe."""

    def __init__(
        self, path: str, lock: QueueLock, view: View, refresh: Callable[[], object]
    ) -> None:
        """`refresh` reads what is new into the view of the queue at the path."""
        self._path = path
        self._lock = lock
        self._view = view
        self._refresh_view = refresh
        self._counts = Counts(view)
        self._attempts = Attempts(path)
        self._errors = _Errors(self._counts, self._attempts)
        self._seen: tuple[tuple[int, int], int, int] | None = None
        """identity, size and mtime of the queue file before it was last read"""
        self._passes = _Kept(path + ".passes", path + ".passes.1")
        self._schedules = _Kept(path + ".schedule")

    def size(self) -> int:
        """Return how many bytes the queue file, its journal and the history have."""
        paths = [self._path, f"{self._path}.journal", *self._attempts.all_paths()]
        return sum(os.path.getsize(path) for path in paths if os.path.exists(path))

    def read_index(self) -> None:
        """Read what is new into the view. Any thread may call it."""
        self._lock.read(self._refresh_view)

    def attempts(self) -> Attempts:
        """Return the attempts in the history."""
        self._attempts.refresh()
        return self._attempts

    def overview(self, now: float) -> Overview:
        """Count the jobs; see `protocol.Store.overview`."""
        return self._read(now, self._counts.overview)

    def moving(self, now: float) -> list[str]:
        """Return the error of each job that is being moved, or was moved, to another queue."""
        return self._read(now, lambda: list(self._counts.moving.values()))

    def latest_errors(self, now: float, most: int) -> list[tuple[Row, float | None]]:
        """Return the jobs whose attempts failed last, and when these ended; see `Status`.

        As of the same reading of the history as the last call of `attempts`.
        """
        return self._read(now, self._latest_errors, most)

    def _latest_errors(self, most: int) -> list[tuple[Row, float | None]]:
        index = self._view.index
        found = []
        for number in self._errors.latest(most, lambda job_id: index.get(job_id.encode())):
            if (row := self._view.row(number)) is not None:
                found.append((row, self._attempts.ended_at.get(row.id)))
        return found

    def due_before(
        self, now: float, ends: Sequence[float], job_type: str | None, paused: Collection[str]
    ) -> list[int]:
        """Return, for each of the instants, how many of the due jobs were due before it.

        Jobs of the `paused` types are left out, and those of other types than `job_type`.
        """
        return self._read(now, self._counts.due_before, ends, job_type, paused)

    def _read(self, now: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what a function returns that is called when all that is new was counted."""

        def read() -> tuple[R] | None:
            return (function(*args, **kwargs),) if self._refresh(now) else None

        while True:
            if (found := self._lock.read(read)) is not None:
                return found[0]

    def _refresh(self, now: float) -> bool:
        """Read what is new. Returns False if there is more to count: call it again."""
        seen, was = self._look(), self._seen
        if seen is not None and was is not None and seen[:2] == was[:2] and seen != was:
            self._view.close()
            seen = None
        self._refresh_view()
        self._seen = seen or self._look()
        return self._counts.update(now)

    def _look(self) -> tuple[tuple[int, int], int, int] | None:
        """Return identity, size and mtime of the queue file that is open, if one is."""
        file = self._view.rows.file
        if file is None or not self._view.whole or not file.is_ours():
            return None
        status = os.fstat(file.fd)
        return file.identity, status.st_size, status.st_mtime_ns

    def passes(self) -> list[EndedPass]:
        """Return the passes that have ended, the last one last."""
        found: list[EndedPass] = self._passes.read(lambda: pass_log.read(self._path))
        return found

    def schedules(self, read: Callable[[], list[Any]]) -> list[Any]:
        """Return what `read` returns, which is called if the recorded schedules have changed."""
        found: list[Any] = self._schedules.read(read)
        return found


class _Kept:
    """What was read from files, until one of them has another inode, size or mtime."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._kept: tuple[object, Any] | None = None

    def read(self, read: Callable[[], Any]) -> Any:
        """Return what `read` has returned for the files as they are now."""
        seen = [_fingerprint(path) for path in self._paths]
        if self._kept is None or self._kept[0] != seen:
            self._kept = seen, read()
        return self._kept[1]


def _fingerprint(path: str) -> tuple[int, ...] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


class _Errors:
    """The jobs with errors, ordered by when their attempts ended."""

    def __init__(self, counts: Counts, attempts: Attempts) -> None:
        self._counts = counts
        self._attempts = attempts
        self._keys: dict[int, Key] = {}
        """number of the row -> what orders it"""
        self._order = Ordered()
        self._rebuilt = (-1, -1)

    def latest(self, most: int, number_of: Callable[[str], int | None]) -> list[int]:
        """Return the numbers of the rows whose attempts ended last, at most `most`."""
        rebuilt = self._counts.rebuilt, self._attempts.rebuilt
        changed = set(self._counts.take_changed_errors())
        changed.update(
            number
            for job_id in self._attempts.take_failed()
            if (number := number_of(job_id)) is not None
        )
        if rebuilt != self._rebuilt:
            self._rebuilt = rebuilt
            self._keys = {number: self._key(number) for number in self._counts.errors}
            self._order = Ordered(self._keys.values())
        else:
            for number in changed:
                self._change(number)
        count = len(self._order)
        return [-self._order[count - n - 1][2] for n in range(min(most, count))]

    def _change(self, number: int) -> None:
        if (key := self._keys.pop(number, None)) is not None:
            self._order.remove(key)
        if number in self._counts.errors:
            key = self._keys[number] = self._key(number)
            self._order.add(key)

    def _key(self, number: int) -> Key:
        """Return a larger key for a later end; those without one come last."""
        job_id, run_at = self._counts.errors[number]
        ended_at = self._attempts.ended_at.get(job_id)
        return ended_at is not None, ended_at or run_at, -number
