"""Keeps jobs in the memory of one process: a `Store` without files.

A state is never altered, only replaced. Nothing survives the process, and a forked child can't use
the jobs.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from dbbasic_queue.errors import (
    DuplicateJob,
    InvalidArgument,
    QueueError,
    StoreError,
    no_transaction,
)
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import parse_row
from dbbasic_queue.model.strict_json import canonical_json
from dbbasic_queue.store import pass_log, schedule_file
from dbbasic_queue.store.memory_claims import MemoryClaims, MemoryJob
from dbbasic_queue.store.writing.archive import append_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.output import Output
    from dbbasic_queue.store.pass_log import EndedPass
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.store.protocol import Terms
    from dbbasic_queue.store.reading.unreadable import Unreadable
    from dbbasic_queue.store.schedule_file import Change

_MOST_ATTEMPTS_KEPT = 10_000
_MOST_OUTPUTS_KEPT = 100
_MOST_PASSES_KEPT = 100


class MemoryStore:
    """The jobs of one `memory:` queue; `protocol.Store` describes its methods.

    `jobs`         id -> job, in the order of enqueueing
    `last_number`  the `number` of the job that was enqueued last
    `finished`     the last 10,000 finished attempts, the oldest first
    `printed`      what the last 100 attempts that have printed anything have printed
    `reported`     job id -> how far it is, if it runs and has reported that
    """

    is_shared = False
    skipped_history: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.path = path
        self.jobs: dict[str, MemoryJob] = {}
        self.last_number = 0
        self.finished: deque[Attempt] = deque(maxlen=_MOST_ATTEMPTS_KEPT)
        self.printed: deque[Output] = deque(maxlen=_MOST_OUTPUTS_KEPT)
        self.reported: dict[str, Progress] = {}
        self._passes: deque[str] = deque(maxlen=_MOST_PASSES_KEPT)
        self._paused: frozenset[str] = frozenset()
        self._purged: dict[str, float] = {}
        """job type -> when a pass last removed its old jobs"""
        self._schedules = b""
        self._mutex = threading.RLock()
        self._process = os.getpid()

    @property
    def lock(self) -> threading.RLock:
        """Hold this to read or change the jobs. Raises StoreError in a forked child."""
        if os.getpid() != self._process:
            raise StoreError(
                f"nothing was done: the jobs of {self.path} are in the memory of process "
                f"{self._process}, and process {os.getpid()} has only a copy "
                "(to share a queue between processes, keep it in a text file)"
            )
        return self._mutex

    def __reduce__(self) -> str:
        raise QueueError(
            f"cannot pickle the queue {self.path}: its jobs are in the memory of this process "
            "(to share a queue between processes, keep it in a text file)"
        )

    def warnings(self) -> list[str]:
        """Return nothing: there is no server."""
        return []

    @property
    def address(self) -> str:
        """Where the queue is; another process can't open it."""
        return self.path

    def exists(self) -> bool:
        """Return True: there is no file that could be missing."""
        return True

    def close(self) -> None:
        """Do nothing: no file is open."""

    # -- jobs --

    def within(self, connection: object) -> MemoryStore:
        """Raise InvalidArgument: no database connection has a part in the jobs."""
        raise no_transaction(self.path)

    def add(self, rows: str, own_id: str | None = None) -> None:
        """Add new jobs, given as lines. Raises DuplicateJob if a job has the id `own_id`."""
        parsed = [parse_row(line.encode()) for line in rows.split("\n")[:-1]]
        with self.lock:
            if own_id in self.jobs:
                raise DuplicateJob(
                    f"job_id {own_id!r} is already in the queue "
                    "(`dbbasic-queue show` shows it; choose another id, or purge the old job first)"
                )
            for row in parsed:
                assert row is not None
                self.last_number += 1
                self.jobs[row.id] = MemoryJob(row, self.last_number)

    def add_once(self, row: str, own_id: str) -> None:
        """Add a job unless one has the id `own_id` already."""
        with self.lock:
            if own_id not in self.jobs:
                self.add(row)

    def add_unless_pending(self, row: str, job_type: str, payload: str) -> str | None:
        """Add a job unless a job of this type with the same payload is pending.

        Returns the id of that job, or None if the new one was added. Looks at every job.
        """
        wanted = canonical_json(payload)
        with self.lock:
            for job in self.jobs.values():
                if (
                    job.type == job_type
                    and job.state.status == states.PENDING
                    and canonical_json(job.payload) == wanted
                ):
                    return job.id
            self.add(row)
        return None

    def find(self, job_id: str) -> Row | None:
        """Return a copy of the job's row, or None."""
        with self.lock:
            job = self.jobs.get(job_id)
            return job.copy() if job else None

    def rows(self, unreadable: list[int] | None = None, **_: object) -> Iterator[Row]:
        """Yield every job as it is when the iteration starts, in the order of enqueueing."""
        with self.lock:
            rows = [job.copy() for job in self.jobs.values()]
        yield from rows

    def newest(self, statuses: Collection[str] = states.STATUSES) -> Iterator[Row]:
        """Return the jobs with one of the statuses, in reverse order of enqueueing."""
        with self.lock:
            found = [job.copy() for job in self.jobs.values() if job.state.status in statuses]
        return reversed(found)

    def overview(self, now: float, each: object = None) -> None:
        """Return None: the rows are here."""

    def cancel(self, job_id: str) -> bool:
        """Cancel a job if it is pending; return whether it was."""
        return self._change(job_id, states.cancel)

    def stop(self, job_id: str) -> str | None:
        """Cancel a job if it is pending; mark it for its pass to stop if it is processing.

        Returns its status after that, or None if it is finished or unknown.
        """
        with self.lock:
            if self._change(job_id, lambda s: states.cancel(s) or states.request_stop(s)):
                return self.jobs[job_id].state.status
            return None

    def run_now(self, job_id: str, now: float) -> bool:
        """Make a job due if it is pending; return whether it was."""
        return self._change(job_id, lambda state: states.run_now(state, now))

    def _change(self, job_id: str, new_state: Callable[[State], State | None]) -> bool:
        with self.lock:
            job = self.jobs.get(job_id)
            state = new_state(job.state) if job else None
            if job is None or state is None:
                return False
            job.state = state
            return True

    def requeue(
        self,
        now: float,
        *,
        job_id: str | None = None,
        run_at: int | None = None,
        wanted: Callable[[Row], bool] = lambda _: True,
    ) -> int:
        """Requeue one job, or the failed ones that `wanted` returns True for; return how many."""
        requeued = 0
        with self.lock:
            for job in self.jobs.values():
                if job_id is not None:
                    is_wanted = job.id == job_id
                else:
                    is_wanted = job.state.status == states.FAILED and wanted(job)
                state = states.requeue(job.state, now, run_at) if is_wanted else None
                if state is not None:
                    job.state = state
                    requeued += 1
        return requeued

    def edit(self, job_id: str, payload: str, before: str | None = None) -> bool:
        """Replace the payload of a job if it is pending; return whether it was.

        With `before`, it must also still have that payload.
        """
        with self.lock:
            job = self.jobs.get(job_id)
            if job is None or job.state.status != states.PENDING:
                return False
            if before is not None and job.payload != before:
                return False
            job.payload = payload
            return True

    def remove(
        self, unwanted: Callable[[Row], bool], archive: str | None = None, **_: object
    ) -> int:
        """Remove the unwanted jobs, except running ones; return how many.

        With `archive`, their rows are on the disk in that file first.
        """
        with self.lock:
            removed = [
                job
                for job in self.jobs.values()
                if job.state.status != states.PROCESSING and unwanted(job)
            ]
            if removed and archive is not None:
                append_rows(archive, [_line(job) for job in removed])
            for job in removed:
                del self.jobs[job.id]
        return len(removed)

    def take_turn_to_purge(self, types: Collection[str], now: float, pause: float) -> bool:
        """Return whether jobs of these types were purged `pause` seconds ago or longer."""
        with self.lock:
            is_turn = any(not 0 <= now - self._purged.get(name, -pause) < pause for name in types)
            if is_turn:
                self._purged |= dict.fromkeys(types, now)
            return is_turn

    def unreadable(self) -> Iterator[Unreadable]:
        """Yield nothing: there are no lines."""
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
        with self.lock:
            return self._paused

    def pause(self, job_type: str) -> bool:
        """Pause a type, or `ALL`; False if it was paused already."""
        with self.lock:
            before = self._paused
            self._paused = before | {job_type}
            return self._paused != before

    def resume(self, job_type: str | None) -> bool:
        """End the pause of a type or, for None, every pause; False if there was none."""
        with self.lock:
            before = self._paused
            self._paused = frozenset() if job_type is None else before - {job_type}
            return self._paused != before

    # -- schedules --

    def has_schedules(self) -> bool:
        """Return whether any schedule was ever recorded."""
        return self._schedules != b""

    def read_schedules(self) -> bytes:
        """Return the schedules, as the text file would hold them."""
        with self.lock:
            return self._schedules

    def update_schedules(self, seen: bytes, changes: list[Change]) -> bool:
        """Add the jobs of due instants, and record that; False if `seen` is outdated."""
        with self.lock:
            if self._schedules != seen:
                return False
            rows = schedule_file.parse(seen, self.path)
            new, _ = schedule_file.apply(rows, changes, self.find)
            self.add("".join(new.values()))
            self._schedules = schedule_file.encode(rows.values())
            return True

    # -- passes --

    def open_claims(self, terms: Terms, now: float, parallel: int) -> MemoryClaims:
        """Return the claims of a new pass, which runs up to `parallel` jobs at once."""
        return MemoryClaims(self, terms, now, parallel)

    def has_work(self, *_: object) -> bool:
        """Return whether a pass might have something to do."""
        return bool(self.jobs)

    def count_due(self, now: float) -> int:
        """Return how many pending jobs of all types are due."""
        return sum(r.state.status == states.PENDING and r.state.run_at <= now for r in self.rows())

    def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
        """Return whether no job is running, and none is pending whose type isn't paused.

        The jobs in `apart_from`, pairs of path and id, may be running.
        """
        with self.lock:
            for job in self.jobs.values():
                status = job.state.status
                if status == states.PROCESSING and (self.path, job.id) not in apart_from:
                    return False
                if status == states.PENDING and self._paused.isdisjoint((job.type, ALL)):
                    return False
            return True

    def running(self) -> tuple[list[Any], list[Row]]:
        """Return no passes, and the running jobs."""
        return [], [row for row in self.rows() if row.state.status == states.PROCESSING]

    def note_pass(self, line: str) -> None:
        """Add a pass that has ended."""
        self._passes.append(line)

    def passes(self) -> list[EndedPass]:
        """Return the last passes that have ended."""
        return pass_log.parse(self._passes)

    # -- moving the jobs of another queue here --

    def exchange(self, changes: Sequence[tuple[Row, State]]) -> list[Row | None]:
        """Give each job a new state, if it still has that of the row; see `protocol.Store`."""
        found: list[Row | None] = []
        with self.lock:
            for row, state in changes:
                job = self.jobs.get(row.id)
                if job is None or encode_state(job.state) != encode_state(row.state):
                    found.append(None)
                    continue
                found.append(job.copy())
                job.state = state
        return found

    def add_missing(self, rows: Sequence[Row]) -> list[str]:
        """Add the jobs whose ids no job has; return the other ids."""
        with self.lock:
            there = [row.id for row in rows if row.id in self.jobs]
            for row in rows:
                if row.id not in self.jobs:
                    self.last_number += 1
                    self.jobs[row.id] = MemoryJob(row, self.last_number)
        return there

    def moved_to(self) -> str:
        """Return "": it can't be moved."""
        return ""

    def set_moved(self, address: str) -> None:
        """Do nothing if the address is ""; raise InvalidArgument otherwise."""
        if address:
            raise _not_movable(self.path)

    def add_history(self, attempts: Sequence[Attempt]) -> None:
        """Add finished attempts of another queue."""
        self.finished.extend(attempts)

    def history(
        self, job_id: str = "", since: float = -math.inf, *, only_errors: bool = False
    ) -> Iterator[Attempt]:
        """Yield the last 10,000 finished attempts, or those of one job among them."""
        with self.lock:
            finished = list(self.finished)
        for attempt in finished:
            is_wanted = job_id in ("", attempt.id) and attempt.ended_at >= since
            if is_wanted and (attempt.error or not only_errors):
                yield attempt

    def latest(self, count: int) -> list[Attempt]:
        """Return the attempts that ended last, at most `count`, the oldest first."""
        return list(self.finished)[-count:]

    def output(self, job_id: str, attempt: int | None = None) -> Output | None:
        """Return what a job's latest attempt, or this attempt, has printed, if that is kept."""
        with self.lock:
            for output in reversed(self.printed):
                if output.id == job_id and attempt in (None, output.attempt):
                    return output
        return None

    def progress(self, rows: Iterable[Row]) -> dict[str, Progress]:
        """Return job id -> how far it is, for those of the jobs that run and have reported."""
        with self.lock:
            found = [(row, self.reported.get(row.id)) for row in rows]
        return {row.id: progress for row, progress in found if progress and progress.is_of(row)}


def _not_movable(path: str) -> InvalidArgument:
    return InvalidArgument(
        f"the jobs of {path} can't be moved: they are in the memory of a process, and end with it"
    )


def _line(row: Row) -> bytes:
    return f"{row.id}\t{row.type}\t{row.payload}\t".encode() + encode_state(row.state)


_stores: dict[str, MemoryStore] = {}
_stores_mutex = threading.Lock()


def memory_store(url: str) -> MemoryStore:
    """Return a new store for `memory:`; for `memory:NAME`, the one of that name in this process."""
    name = url.partition(":")[2]
    if not name:
        return MemoryStore(url)
    with _stores_mutex:
        return _stores.setdefault(name, MemoryStore(url))
