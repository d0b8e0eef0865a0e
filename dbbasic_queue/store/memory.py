"""Jobs in a dict: what `Queue` asks of a `Store`, and what `Pass` asks of `Claims`.

A state is never altered, only replaced; so whoever holds an old one can see that it is old, and an
outcome is accepted only while the state is the one that its claim made.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from dbbasic_queue.errors import DuplicateJob, QueueError, StoreError
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import Row, parse_row
from dbbasic_queue.store.history import Attempt
from dbbasic_queue.store.protocol import Claim
from dbbasic_queue.store.writing.archive import append_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from dbbasic_queue.store.protocol import History, Terms
    from dbbasic_queue.store.reading.unreadable import Unreadable


class Kept(Row):
    """A job in memory; `number` is its place in the order of enqueueing."""

    __slots__ = ("number",)

    def __init__(self, row: Row, number: int) -> None:
        super().__init__(row.id, row.type, row.payload, row.state)
        self.number = number


def _copy(row: Row) -> Row:
    return Row(row.id, row.type, row.payload, row.state)


_HISTORY = 10_000


class MemoryStore:
    """What `Queue` and `Pass` ask of a `Store`; each method is one atomic change or look."""

    is_shared = False
    skipped_history: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept: dict[str, Kept] = {}
        self.added = 0
        self.ended: deque[Attempt] = deque(maxlen=_HISTORY)
        self._paused: frozenset[str] = frozenset()
        self._mutex = threading.RLock()
        self._process = os.getpid()

    @property
    def lock(self) -> threading.RLock:
        """Hold this to read or change; raises StoreError in a forked child."""
        if os.getpid() != self._process:
            raise StoreError(
                f"nothing was done: the jobs of {self.path} are in the memory of process "
                f"{self._process}, and process {os.getpid()} has but a copy "
                "(a queue for several processes is a text file)"
            )
        return self._mutex

    def __reduce__(self) -> str:
        raise QueueError(
            f"cannot pickle the queue {self.path}: its jobs are in the memory of this process "
            "(a queue for several processes is a text file)"
        )

    def close(self) -> None:
        """Nothing is open."""

    def add(self, rows: str, own_id: str | None = None) -> None:
        """Add the jobs of these lines; raises DuplicateJob if a job has the id `own_id`."""
        parsed = [parse_row(line.encode()) for line in rows.split("\n")[:-1]]
        with self.lock:
            if own_id in self.kept:
                raise DuplicateJob(
                    f"job_id {own_id!r} is already in the queue "
                    "(get_job shows it; choose another id, or purge the old job first)"
                )
            for row in parsed:
                assert row is not None
                self.added += 1
                self.kept[row.id] = Kept(row, self.added)

    def find(self, job_id: str) -> Row | None:
        """Return the job as it stands, or None."""
        with self.lock:
            row = self.kept.get(job_id)
            return _copy(row) if row else None

    def unreadable(self) -> Iterator[Unreadable]:
        """Yield nothing: there are no lines."""
        return iter(())

    def remove_unreadable(self) -> int:
        """Return 0: there are no lines."""
        return 0

    def rows(self, unreadable: list[int] | None = None) -> Iterator[Row]:
        """Yield every job as it stood at the first step, in the order of enqueueing."""
        with self.lock:
            rows = [_copy(row) for row in self.kept.values()]
        yield from rows

    def cancel(self, job_id: str) -> bool:
        """Cancel a job if it is pending."""
        with self.lock:
            row = self.kept.get(job_id)
            state = states.cancel(row.state) if row else None
            if row is None or state is None:
                return False
            row.state = state
            return True

    def run_now(self, job_id: str, now: float) -> bool:
        """Make a job due if it is pending."""
        with self.lock:
            row = self.kept.get(job_id)
            state = states.run_now(row.state, now) if row else None
            if row is None or state is None:
                return False
            row.state = state
            return True

    def requeue(
        self,
        now: float,
        *,
        job_id: str | None = None,
        run_at: int | None = None,
        job_type: str | None = None,
    ) -> int:
        """Requeue one job, or all failed ones, or those of a type; return how many."""
        requeued = 0
        with self.lock:
            for row in self.kept.values():
                if job_id is not None:
                    wanted = row.id == job_id
                else:
                    wanted = row.state.status == states.FAILED and job_type in (None, row.type)
                state = states.requeue(row.state, now, run_at) if wanted else None
                if state is not None:
                    row.state = state
                    requeued += 1
        return requeued

    def remove(self, unwanted: Callable[[Row], bool], archive: str | None = None) -> int:
        """Take the jobs that are not wanted out, but those being run; return how many."""
        with self.lock:
            removed = [
                row
                for row in self.kept.values()
                if row.state.status != states.PROCESSING and unwanted(row)
            ]
            if removed and archive is not None:
                append_rows(archive, [_line(row) for row in removed])
            for row in removed:
                del self.kept[row.id]
        return len(removed)

    def paused(self) -> frozenset[str]:
        """Return the paused types; `ALL` among them stands for all."""
        with self.lock:
            return self._paused

    def pause(self, job_type: str) -> bool:
        """Pause a type, or `ALL`; False if it was paused so."""
        with self.lock:
            before = self._paused
            self._paused = before | {job_type}
            return self._paused != before

    def resume(self, job_type: str | None) -> bool:
        """Take back the pause of a type, or of everything; False if there was none."""
        with self.lock:
            before = self._paused
            self._paused = frozenset() if job_type is None else before - {job_type}
            return self._paused != before

    def history(
        self, job_id: str = "", since: float = -math.inf, *, only_errors: bool = False
    ) -> Iterator[Attempt]:
        """Yield the last attempts that have ended, or those of one job."""
        with self.lock:
            ended = list(self.ended)
        for attempt in ended:
            is_wanted = job_id in ("", attempt.id) and attempt.ended_at >= since
            if is_wanted and (attempt.error or not only_errors):
                yield attempt

    def running(self) -> tuple[list[Any], list[Row]]:
        """Return no pass, and the running jobs."""
        return [], [row for row in self.rows() if row.state.status == states.PROCESSING]

    def take_skipped(self) -> tuple[int, int, list[int]]:
        """Return nothing to report: there are no lines."""
        return 0, 0, []

    def open_claims(self, terms: Terms, now: float, parallel: int) -> MemoryClaims:
        """Return what claims jobs for a pass."""
        return MemoryClaims(self, terms, now, parallel)

    def exists(self) -> bool:
        """Return True: there is no file that could be missing."""
        return True

    def has_work(self, *_: object) -> bool:
        """Return whether a pass might have something to do."""
        return bool(self.kept)

    def count_due(self, now: float) -> int:
        """Return how many pending jobs are due."""
        return sum(r.state.status == states.PENDING and r.state.run_at <= now for r in self.rows())

    def is_complete(self, apart_from: Collection[tuple[str, str]] = ()) -> bool:
        """Tell whether no job is pending, unless its type is paused, or being run.

        Jobs whose path and id are in `apart_from` may be running.
        """
        with self.lock:
            for row in self.kept.values():
                status = row.state.status
                if status == states.PROCESSING and (self.path, row.id) not in apart_from:
                    return False
                if status == states.PENDING and self._paused.isdisjoint((row.type, ALL)):
                    return False
            return True


_named: dict[str, MemoryStore] = {}
_naming = threading.Lock()


def memory_store(url: str) -> MemoryStore:
    """Return a new store for `memory:`; for `memory:NAME`, the one of that name in this process."""
    name = url.partition(":")[2]
    if not name:
        return MemoryStore(url)
    with _naming:
        return _named.setdefault(name, MemoryStore(url))


def _line(row: Row) -> bytes:
    return f"{row.id}\t{row.type}\t{row.payload}\t".encode() + encode_state(row.state)


class MemoryHistory:
    """What `Pass` asks of an `HistoryWriter`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def note(
        self,
        row: Row,
        outcome: str,
        error: str,
        ended_at: float,
        seconds: float | None,
        traceback: str = "",
    ) -> None:
        """Add a row."""
        state = row.state
        due_at = max(state.run_at, state.created_at)
        columns = (row.id, row.type, state.attempts, outcome, due_at, ended_at)
        took = "" if seconds is None else seconds
        self._store.ended.append(
            Attempt("\t".join(map(str, (*columns, took, error, traceback))) + "\n")
        )

    def flush(self) -> None:
        """Nothing is held back."""

    def take_error(self) -> None:
        """No row is ever lost for want of room."""


class MemoryClaims:
    """What `Pass` asks of `Claims`."""

    pulled_in = 0

    def __init__(self, store: MemoryStore, terms: Terms, now: float, parallel: int) -> None:
        self.store = store
        self.terms = terms
        self.parallel = parallel
        self.history: History = MemoryHistory(store)
        self._held: dict[str, tuple[Kept, states.State]] = {}
        with store.lock:
            for row in store.kept.values():
                if pulled_in := states.pull_in(row.state, now):
                    row.state = pulled_in
                    self.pulled_in += 1
                if row.state.status != states.PENDING or not row.state.attempts:
                    continue
                longest = terms.longest_wait(row.type, row.state.attempts)
                row.state = states.clamp(row.state, states.later(now, longest)) or row.state
            self.find_due(now)

    def slot_fd(self) -> int:
        """Return -1: there is no slot."""
        return -1

    def take_recovered(self) -> tuple[int, list[Row]]:
        """Nothing is ever recovered here."""
        return 0, []

    def find_due(self, now: float) -> bool:
        """Take what is due at `now` for due; tell whether there is anything."""
        with self.store.lock:
            self.started_at = now
            self._last = self.store.added  # jobs that are added from now on are not this pass's
            self._put_back: set[str] = set()
            return self._look()

    def _look(self) -> bool:
        """Find what this pass may claim, the next one last."""
        self._due = sorted(
            (row for row in self.store.kept.values() if self._is_due(row)),
            key=lambda row: (row.state.run_at, row.number),
            reverse=True,
        )
        return bool(self._due)

    def _is_due(self, row: Kept) -> bool:
        return (
            row.state.status == states.PENDING
            and row.state.run_at <= self.started_at
            and row.number <= self._last
            and row.id not in self._put_back
            and self.terms.wants(row.type)
            and self.store.paused().isdisjoint((row.type, ALL))
        )

    def claim(self, most: int) -> list[Claim]:
        """Claim up to `most` due jobs, earliest `run_at` first."""
        with self.store.lock:
            return self._take(most) or (self._take(most) if self._look() else [])

    def _take(self, most: int) -> list[Claim]:
        claims: list[Claim] = []
        without_room: list[Kept] = []
        room: dict[str, int] = {}
        while self._due and len(claims) < most:
            row = self._due.pop()
            if not self._is_due(row) or self.store.kept.get(row.id) is not row:
                continue  # cancelled, removed, paused or claimed by another pass meanwhile
            if not self._has_room(row.type, room):
                without_room.append(row)
                continue
            state = states.claim(row.state)
            assert state is not None
            row.state = state
            self._held[row.id] = row, state
            claims.append(Claim(_copy(row), decode_json(row.payload), 0))
        self._due += reversed(without_room)
        return claims

    def _has_room(self, job_type: str, room: dict[str, int]) -> bool:
        """Tell whether one more of the type may be claimed; `room` is what is known of that."""
        if job_type not in self.terms.concurrency:
            return True
        if job_type not in room:
            processing = sum(
                row.state.status == states.PROCESSING and row.type == job_type
                for row in self.store.kept.values()
            )
            room[job_type] = min(self.terms.concurrency[job_type] - processing, self.parallel)
        room[job_type] -= 1
        return room[job_type] >= 0

    def record(self, claim: Claim, state: states.State) -> states.State | None:
        """Record an outcome; None, and nothing recorded, where the attempt is not current."""
        with self.store.lock:
            row, claimed = self._held.pop(claim.row.id)
            if row.state is not claimed:
                return None
            row.state = state
            if state.status == states.PENDING:
                self._put_back.add(row.id)
            return state

    def record_all(self, ended: list[tuple[Claim, states.State]]) -> list[states.State | None]:
        """Record several outcomes."""
        return [self.record(claim, state) for claim, state in ended]

    def unclaim(self, claims: list[Claim], error: str = "") -> None:
        """Put jobs back as they were, their attempts returned, for whoever claims them next."""
        with self.store.lock:
            for claim in claims:
                row, claimed = self._held.pop(claim.row.id)
                if row.state is claimed:
                    row.state = states.unclaim(claimed, error) or claimed

    def is_published(self) -> bool:
        """Whoever looks sees every change at once."""
        return True

    def idle(self) -> None:
        """Nothing is left to be done."""

    def publish(self) -> None:
        """Nothing is left to be shown."""

    def check_slot(self) -> None:
        """There is no lock that could be lost."""

    def finish(self) -> None:
        """End the pass."""

    def abandon(self) -> None:
        """The pass was ended by an error: give back what it holds."""
        with self.store.lock:
            for row, claimed in self._held.values():
                if row.state is claimed:
                    row.state = states.unclaim(claimed) or claimed
            self._held.clear()
