"""`EngineStore`: the `Store` of a queue whose jobs are on a server; `store.protocol` describes it.

There were three ways to run our jobs on an engine:

1. Its own worker runs a function of ours, which calls the handler. Then the engine's rules for
   retries, time limits and signals apply, not ours; and an outcome is recorded twice, by us and by
   the engine, so that a kill in between makes one of them wrong.
2. A `Queue` of its own for each engine. Then everything that a queue can do is written three times.
3. Our pass runs the handlers, and the engine keeps the jobs: where they wait, who has claimed them,
   which workers are alive. Then handlers, policies, schedules, hooks and the command line are the
   same code on every engine, and a job's outcome and its place change in one step.

This is the third. The engine's own tools show the jobs, and its own workers leave them alone.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from typing import TYPE_CHECKING

from dbbasic_queue.engines.backend import MOVED, Change, StoredRow
from dbbasic_queue.engines.claims import EngineClaims
from dbbasic_queue.errors import DuplicateJob, StoreError, queue_moved
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import parse_row
from dbbasic_queue.passes import log_lines
from dbbasic_queue.store import pass_log, purged, schedule_file
from dbbasic_queue.store.batches import batches
from dbbasic_queue.store.history import Attempt
from dbbasic_queue.store.output import Output
from dbbasic_queue.store.progress import Progress
from dbbasic_queue.store.writing.archive import append_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from logging import Logger
    from typing import Any

    from dbbasic_queue.engines.backend import Backend
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.protocol import Overview, Terms
    from dbbasic_queue.store.reading.unreadable import Unreadable
    from dbbasic_queue.store.schedule_file import Change as ScheduleChange

_BATCH = 1000
_PASSES, _PAUSED, _PURGED, _SCHEDULES = "passes", "paused", "purged", "schedules"
_WARNINGS = "warnings"
"""the names of the backend's values"""
_RECENT_SECONDS = 600.0
_MOST_PASSES = 100
"""how many passes that have ended are kept"""


class EngineStore:
    """The jobs of one queue on a server."""

    is_shared = True
    skipped_history: tuple[str, ...] = ()

    def __init__(self, backend: Backend, *, even_if_moved: bool = False) -> None:
        """With `even_if_moved`, no call raises QueueMoved."""
        self.backend = backend
        self.path = backend.name
        self.even_if_moved = even_if_moved
        self._has_checked = False
        """whether this process has checked the server's settings"""

    @property
    def address(self) -> str:
        """What another process needs to open the queue: its URL, with the password."""
        return self.backend.url

    def exists(self) -> bool:
        """Return whether the queue was ever used."""
        return self.backend.exists()

    def close(self) -> None:
        """Close all connections; the next call opens one again."""
        self.backend.close()

    def require_here(self) -> None:
        """Raise QueueMoved if the queue was moved."""
        if not self.even_if_moved and (address := self.moved_to()):
            raise queue_moved(self.path, address)

    # -- jobs --

    def within(self, connection: Any) -> EngineStore:
        """Return a store whose `add` calls belong to the transaction of a database connection."""
        backend = self.backend.within(connection)
        return EngineStore(backend, even_if_moved=self.even_if_moved)

    def add(self, rows: str, own_id: str | None = None) -> None:
        """Add new jobs, given as lines. Raises DuplicateJob if a job has the id `own_id`."""
        if not self._add(_parse(rows), own_id=own_id is not None):
            raise DuplicateJob(
                f"job_id {own_id!r} is already in the queue "
                "(`dbbasic-queue show` shows it; choose another id, or purge the old job first)"
            )

    def add_once(self, row: str, own_id: str) -> None:
        """Add a job unless one has the id `own_id` already."""
        self._add(_parse(row), own_id=True)

    def _add(self, rows: Sequence[Row], *, own_id: bool) -> bool:
        return self.backend.add(rows, own_id=own_id, anyway=self.even_if_moved)

    def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
        """Add a job unless a job of this type with the same payload is pending.

        Returns the id of that job, or None if the new one was added.
        """
        return self.backend.add_unless_pending(_parse(row)[0], anyway=self.even_if_moved)

    def find(self, job_id: str) -> Row | None:
        """Return the job's row, or None.

        To save a look at whether the queue was moved, an open job is returned without it.
        """
        row = self.backend.find(job_id)
        if row is None or row.state.status in states.FINISHED:
            self.require_here()
        return row

    def rows(
        self,
        unreadable: list[int] | None = None,
        *,
        statuses: Collection[str] = states.STATUSES,
        job_type: str | None = None,
        only_errors: bool = False,
        beginning: str = "",
    ) -> Iterator[Row]:
        """Yield every job, or those that are wanted, in the order of enqueueing."""
        self.require_here()
        return self.backend.rows(statuses, job_type, only_errors=only_errors)

    def overview(self, now: float, each: Callable[[Row], object] | None = None) -> Overview:
        """Return what the server has counted; call `each` with the open jobs that have an error."""
        self.require_here()
        found = self.backend.overview(now)
        if each is not None:
            for row in self.rows(statuses=(states.PENDING, states.FAILED), only_errors=True):
                each(row)
        return found

    def _change(
        self,
        job_id: str,
        new_state: Callable[[State], State | None],
        payload: str | None = None,
        before: str | None = None,
    ) -> State | None:
        """Give a job the state that `new_state` returns; return it, or None if that is None.

        Also returns None if the job's payload isn't `before`.
        """
        self.require_here()
        while row := self.backend.find(job_id):
            if before is not None and row.payload != before:
                return None
            state = new_state(row.state)
            if state is None:
                return None
            new = Change(row, payload=payload) if payload is not None else Change(row, state)
            if self.backend.change([new]) == [True]:
                return state
        return None

    def cancel(self, job_id: str) -> bool:
        """Cancel a job if it is pending; return whether it was."""
        return self._change(job_id, states.cancel) is not None

    def stop(self, job_id: str) -> str | None:
        """Cancel a job if it is pending; mark it for its pass to stop if it is processing.

        Returns its status after that, or None if it is finished or unknown.
        """
        state = self._change(job_id, lambda s: states.cancel(s) or states.request_stop(s))
        return state.status if state else None

    def run_now(self, job_id: str, now: float) -> bool:
        """Make a job due if it is pending; return whether it was."""
        return self._change(job_id, lambda state: states.run_now(state, now)) is not None

    def edit(self, job_id: str, payload: str, before: str | None = None) -> bool:
        """Replace the payload of a job if it is pending; return whether it was.

        With `before`, it must also still have that payload.
        """

        def if_pending(state: State) -> State | None:
            return state if state.status == states.PENDING else None

        return self._change(job_id, if_pending, payload, before) is not None

    def requeue(
        self,
        now: float,
        *,
        job_id: str | None = None,
        run_at: int | None = None,
        wanted: Callable[[Row], bool] = lambda _: True,
    ) -> int:
        """Requeue one job, or the failed ones that `wanted` returns True for; return how many."""
        if job_id is not None:
            state = self._change(job_id, lambda state: states.requeue(state, now, run_at))
            return int(state is not None)
        self.require_here()
        changes = (
            Change(row, states.requeue(row.state, now, run_at))
            for row in self.backend.rows((states.FAILED,))
            if wanted(row)
        )
        return sum(sum(self.backend.change(batch)) for batch in batches(changes, _BATCH))

    def remove(
        self,
        unwanted: Callable[[Row], bool],
        archive: str | None = None,
        *,
        statuses: Collection[str] = states.STATUSES,
        job_type: str | None = None,
    ) -> int:
        """Remove the unwanted jobs, except running ones; return how many.

        With `archive`, their rows are on the disk in that file first.
        """
        self.require_here()
        removed = 0
        changes = (
            Change(row)
            for row in self.backend.rows(statuses, job_type)
            if row.state.status != states.PROCESSING and unwanted(row)
        )
        for batch in batches(changes, _BATCH):
            if archive is not None:
                append_rows(archive, [_line(change.row) for change in batch])
            removed += sum(self.backend.change(batch))
        return removed

    def take_turn_to_purge(self, types: Collection[str], now: float, pause: float) -> bool:
        """Return whether jobs of these types were purged `pause` seconds ago or longer."""
        before = self.backend.read(_PURGED)
        when: dict[str, float] = json.loads(before or b"{}")
        if not purged.is_turn(when, types, now, pause):
            return False
        when |= dict.fromkeys(types, int(now))
        return self.backend.replace(_PURGED, before, json.dumps(when).encode())

    def unreadable(self) -> Iterator[Unreadable]:
        """Yield nothing: there are no lines."""
        self.require_here()
        return iter(())

    def remove_unreadable(self) -> int:
        """Return 0: there are no lines."""
        return 0

    def take_skipped(self) -> tuple[int, int, list[int]]:
        """Return nothing to report: there are no lines."""
        return 0, 0, []

    # -- pausing --

    def paused(self) -> frozenset[str]:
        """Return the paused types; `ALL` among them means all types."""
        self.require_here()
        return self.paused_here()

    def paused_here(self) -> frozenset[str]:
        """Return the same, without a look at whether the queue was moved."""
        return frozenset(self.backend.read(_PAUSED).decode().split())

    def pause(self, job_type: str) -> bool:
        """Pause a type, or `ALL`; False if it was paused already."""
        return self._change_paused(lambda types: types | {job_type})

    def resume(self, job_type: str | None) -> bool:
        """End the pause of a type or, for None, every pause; False if there was none."""
        return self._change_paused(
            lambda types: frozenset() if job_type is None else types - {job_type}
        )

    def _change_paused(self, change: Callable[[frozenset[str]], frozenset[str]]) -> bool:
        self.require_here()
        while True:
            before = self.backend.read(_PAUSED)
            types = frozenset(before.decode().split())
            changed = change(types)
            if changed == types:
                return False
            if self.backend.replace(_PAUSED, before, " ".join(sorted(changed)).encode()):
                return True

    # -- schedules --

    def has_schedules(self) -> bool:
        """Return whether any schedule was ever recorded."""
        return self.read_schedules() != b""

    def read_schedules(self) -> bytes:
        """Return the schedules, as the text file would hold them."""
        self.require_here()
        return self.backend.read(_SCHEDULES)

    def update_schedules(self, seen: bytes, changes: list[ScheduleChange]) -> bool:
        """Add the jobs of due instants, and record that; False if `seen` is outdated."""
        self.require_here()
        rows = schedule_file.parse(seen, self.path)
        new, _ = schedule_file.apply(rows, changes, self.find)
        after = schedule_file.encode(rows.values())
        jobs = _parse("".join(new.values()))
        return self.backend.replace(_SCHEDULES, seen, after, jobs, anyway=self.even_if_moved)

    # -- passes --

    def open_claims(self, terms: Terms, now: float, parallel: int) -> EngineClaims:
        """Return the claims of a new pass, which runs up to `parallel` jobs at once.

        Logs what in the server's settings could lose jobs, once for all passes, and again when
        that has changed.
        """
        if (log := log_lines.logger()) and not self._has_checked:
            self._has_checked = True
            self._log_warnings(log)
        return EngineClaims(self, terms, now, parallel)

    def _log_warnings(self, log: Logger) -> None:
        logged, found = self.backend.read(_WARNINGS), self.warnings()
        content = "\n".join(found).encode()
        if content != logged and self.backend.replace(_WARNINGS, logged, content):
            for warning in found:
                log_lines.server_warning(log, self.path, warning)

    def warnings(self) -> list[str]:
        """Return what in the server's settings could lose jobs, one sentence each."""
        return self.backend.warnings()

    def has_work(self, *_: object) -> bool:
        """Return whether a pass might have something to do."""
        self.require_here()
        return self.backend.has_open()

    def count_due(self, now: float) -> int:
        """Return how many pending jobs of all types are due."""
        return self.backend.count_due(now)

    def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
        """Return whether no job is running, and none is pending whose type isn't paused.

        The jobs in `apart_from`, pairs of path and id, may be running.
        """
        paused = self.paused_here()
        if ALL not in paused and not self.backend.pending_types() <= paused:
            return False
        return all(
            (self.path, row.id) in apart_from for row in self.backend.rows((states.PROCESSING,))
        )

    def running(self) -> tuple[list[Any], list[Row]]:
        """Return the live workers and the running jobs."""
        return list(self.backend.workers()), list(self.backend.rows((states.PROCESSING,)))

    def note_pass(self, line: str) -> None:
        """Add a pass that has ended to the last ones; it is lost if the server can't be reached."""
        try:
            while not self.backend.replace(_PASSES, *self._with_pass(line)):
                pass
        except StoreError:
            return

    def _with_pass(self, line: str) -> tuple[bytes, bytes]:
        """Return the kept rows, and the rows that are to be kept."""
        before = self.backend.read(_PASSES)
        kept = before.splitlines(keepends=True)[1 - _MOST_PASSES :]
        return before, b"".join([*kept, line.encode()])

    def passes(self) -> list[EndedPass]:
        """Return the last passes that have ended."""
        return pass_log.parse(self.backend.read(_PASSES).decode().splitlines())

    # -- moving the jobs to another queue, and from there --

    def exchange(self, changes: Sequence[tuple[Row, State]]) -> list[Row | None]:
        """Give each job a new state if it still has that of the row; return it as it was, or None.

        A row that isn't as it was read from this store is looked up.
        """
        self.require_here()
        known: list[Change | None] = []
        others = [row.id for row, _ in changes if not isinstance(row, StoredRow)]
        found = self.backend.find_many(others) if others else {}
        for row, state in changes:
            present = row if isinstance(row, StoredRow) else found.get(row.id)
            is_same = present and encode_state(present.state) == encode_state(row.state)
            known.append(Change(present, state) if present and is_same else None)
        made = iter(self.backend.change([change for change in known if change]))
        return [change.row if change and next(made) else None for change in known]

    def add_missing(self, rows: Sequence[Row]) -> list[str]:
        """Add the jobs whose ids no job has; return the other ids."""
        if not rows or self._add(rows, own_id=True):
            return []
        return [row.id for row in rows if not self._add([row], own_id=True)]

    def moved_to(self) -> str:
        """Return the address that the queue was moved to, "" if it wasn't moved."""
        return self.backend.read(MOVED).decode()

    def set_moved(self, address: str) -> None:
        """Record that the queue was moved to this address, or that it wasn't if it is ""."""
        while not self.backend.replace(MOVED, self.backend.read(MOVED), address.encode()):
            pass

    def add_history(self, attempts: Sequence[Attempt]) -> None:
        """Add finished attempts of another queue."""
        self.backend.add_history(attempt.line() for attempt in attempts)

    # -- what attempts have left behind --

    def newest(self, statuses: Collection[str] = states.STATUSES) -> None:
        """Return None: the servers keep the jobs in the order of enqueueing."""

    def history(
        self, job_id: str = "", since: float = -math.inf, *, only_errors: bool = False
    ) -> Iterator[Attempt]:
        """Yield the finished attempts, or those of one job."""
        self.require_here()
        for attempt in map(Attempt, self.backend.history(job_id, since)):
            if attempt.error or not only_errors:
                yield attempt

    def latest(self, count: int) -> list[Attempt]:
        """Return the attempts that ended last, at most `count`, the oldest first."""
        found: deque[Attempt] = deque(maxlen=count)
        for seconds in (_RECENT_SECONDS, math.inf):
            since = time.time() - seconds
            found.extend(map(Attempt, self.backend.history("", since)))
            if len(found) >= count:
                break
            if seconds != math.inf:
                found.clear()
        return list(found)

    def output(self, job_id: str, attempt: int | None = None) -> Output | None:
        """Return what a job's latest attempt, or this attempt, has printed, if that is kept."""
        self.require_here()
        line = self.backend.output(job_id, attempt)
        return Output(line) if line else None

    def progress(self, rows: Iterable[Row]) -> dict[str, Progress]:
        """Return job id -> how far it is, for those of the jobs that run and have reported."""
        by_id = {row.id: row for row in rows}
        found = {job_id: Progress(line) for job_id, line in self.backend.progress(by_id).items()}
        return {
            job_id: progress for job_id, progress in found.items() if progress.is_of(by_id[job_id])
        }


def _parse(lines: str) -> list[Row]:
    rows = [parse_row(line.encode()) for line in lines.split("\n")[:-1]]
    return [row for row in rows if row is not None]


def _line(row: StoredRow) -> bytes:
    return f"{row.id}\t{row.type}\t{row.payload}\t".encode() + encode_state(row.state)
