"""Finds the due jobs that a pass may claim next.

Due jobs are those that were due when the pass looked last. Jobs that were added since then, and
jobs that the pass itself has run without completing them, wait for its next look, even if a clock
that was set back, or a requeue, makes them seem due already. The module `priorities` has the
exception.

Jobs are chosen without the lock, and checked again under it (`recheck`). Paused types are not
claimed, and no more jobs of a type are processing than its concurrency allows. A **suspect**, a job
that may have killed its last pass, comes after all others, and runs alone, because it may kill this
pass too.
"""

from __future__ import annotations

from array import array
from collections import deque

from dbbasic_queue.lazy import load
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.store import paused
from dbbasic_queue.store.disk.lock import reading
from dbbasic_queue.store.protocol import Claim
from dbbasic_queue.store.reading.bulk import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from types import ModuleType

    from dbbasic_queue.store.claiming.priorities import ByPriority
    from dbbasic_queue.store.protocol import Terms
    from dbbasic_queue.store.writing.queue_files import QueueFiles

_BATCH_BYTES = 1 << 20
_READ_AHEAD_BYTES = 1 << 16


class DueJobs:
    """The due jobs of one pass, which may run `parallel` of them at once.

    `put_back` are the ids of the jobs that the pass has retried, delayed, failed or stopped since
    it looked last: someone may requeue the last two.
    """

    def __init__(self, store: QueueFiles, terms: Terms, parallel: int, now: float) -> None:
        self.lock = store.lock
        self.put_back: set[bytes] = set()
        self._path = store.path
        self._view = store.view
        self._terms = terms
        self._parallel = parallel
        self._looked_at = now
        """when the pass looked last, in Unix seconds"""
        self._last_id = b""
        """the id in the last row that counts: rows after it were added later"""
        self._paused: frozenset[str] = frozenset()
        # Numbers of rows: due jobs, the next one last; those that wait because their type has
        # reached its concurrency; and suspects.
        self._due: array[int] | ByPriority = array("q")
        self._by_priority: ByPriority | None = None
        """the same as `_due` if a handler has a priority"""
        self._waiting: dict[str, deque[int]] = {}
        self._suspects: deque[int] = deque()
        self._numbering = -1  # of the view, when these were found
        self._last_suspect = b""
        """the id of the suspect that was chosen last"""
        self._found_nothing_in: object = None
        """the `_version` when `candidates` last found nothing"""
        self._found_nothing_at = now
        """the `_looked_at` at that time"""
        self._next_due_at: int | None = None
        """the earliest `run_at` after that; None if `may_exist` hasn't looked it up yet"""

    # -- looking for due jobs --

    def look(self, now: float) -> None:
        """Look again: from now on, jobs that are due at `now` count as due.

        Call it through `lock.read`, or under the lock.
        """
        self._looked_at = now
        self._view.refresh()
        self._paused = paused.read(self._path)
        self.end_at_last_row()
        self._due = array("q")
        self._by_priority = None
        self._numbering = -1
        if self.put_back:
            self.put_back.clear()
            self._found_nothing_in = None

    def end_at_last_row(self) -> None:
        """Ignore rows that are added after this call, until the pass looks again."""
        self._last_id = next(reversed(self._view.index), b"")

    def may_exist(self) -> bool:
        """Return whether there may be jobs to claim.

        There are none if nothing was written and no other job became due since the last search
        that found none.
        """
        if self._view.soonest > self._looked_at:
            return False
        if self._found_nothing_in != self._version():
            return True
        if self._next_due_at is None:
            self._next_due_at = self._view.next_after(self._found_nothing_at)
        return self._next_due_at <= self._looked_at

    def _version(self) -> object:
        """Return a value that changes with everything that a search depends on, except time."""
        view = self._view
        known = self._terms.count()
        return view.generation, view.rows.end, view.journal.end, self._last_id, self._paused, known

    # -- choosing jobs, without the lock --

    @reading
    def candidates(self, most: int, held: Container[bytes], now: float) -> list[Claim]:
        """Return claims of the next due jobs, up to `most`.

        The order is that of their priorities, then of their `run_at`. Nothing is written: call
        `recheck` under the lock before claiming them. `held` contains the ids of the jobs that the
        pass has claimed. `now` only matters if there are priorities. Stops early when the payloads
        that were found have 1 MiB together.
        """
        view = self._view
        if self._last_suspect in held:
            return []
        is_left = bool(self._due or self._waiting or self._suspects)
        if self._by_priority is not None:
            view.refresh()
        if not is_left or self._numbering != view.numbering or not view.whole:
            is_left = False
            self._search()
        remaining: dict[str, int] = {}
        found = self._take(most, remaining, now)
        if not found and self._suspects and not (held and self._parallel > 1):
            if is_left:  # jobs that were unclaimed since the search come before a suspect
                self._search()
                remaining.clear()
                found = self._take(most, remaining, now)
            while self._suspects and not found:
                claim = self._candidate(self._suspects.popleft(), remaining, alone=True)
                if claim is not None:
                    self._last_suspect = claim.key
                    found.append(claim)
        if not found:
            self._found_nothing_in, self._next_due_at = self._version(), None
            self._found_nothing_at = self._looked_at
        return found

    def _take(self, most: int, remaining: dict[str, int], now: float) -> list[Claim]:
        """Return claims of the next due jobs that were found, except suspects; see `candidates`.

        `remaining` is as in `_use_remaining`.
        """
        found: list[Claim] = []
        size = 0
        if self._by_priority is not None:
            waiting = [self._terms.priority(job_type) for job_type in self._waiting]
            self._by_priority.add_newly_due(now, waiting)
        if self._waiting:
            self._resume_waiting(remaining)
        due = self._due
        while due and len(found) < most and size < _BATCH_BYTES:
            number = due.pop()
            claim = self._candidate(number, remaining)
            if claim is not None:
                found.append(claim)
                size += len(claim.row.payload)
        return found

    def _search(self) -> None:
        view = self._view
        view.refresh()
        self._numbering = view.numbering
        self._paused = paused.read(self._path)
        if self._last_id and self._last_id not in view.index:  # it was purged
            self.end_at_last_row()
        rows = view.index.get(self._last_id, -1) + 1
        due = self._due = view.due(self._looked_at, rows)
        self._by_priority = None
        if due and self._terms.prioritizes():
            priorities = load(_priorities)
            newly_due = priorities.NewlyDue(view, self._looked_at, rows)
            self._due = self._by_priority = priorities.ByPriority(
                view, self._terms.priority, newly_due
            )
            self._due.extend(due)
        self._waiting.clear()
        self._suspects.clear()

    def _due_until(self) -> float:
        """Return until when, in Unix seconds, a job must have become due to be claimed now."""
        return self._looked_at if self._by_priority is None else self._by_priority.until

    def _candidate(
        self, number: int, remaining: dict[str, int], *, alone: bool = False
    ) -> Claim | None:
        """Return the claim of a row, or None if the pass may not claim it now.

        A suspect, unless it will run `alone`, is put aside in `_suspects`.
        """
        view = self._view
        when = view.when
        if number >= len(when) or when[number] > self._due_until():
            return None
        row = view.row(number, ahead=_READ_AHEAD_BYTES)
        state = states.claim(row.state) if row else None
        if row is None or state is None or not self._terms.wants(row.type):
            return None
        if self.put_back and row.id.encode() in self.put_back:
            return None
        if self._paused and self._is_paused(row.type):
            return None
        if state.error and states.may_kill(state) and not alone:
            self._suspects.append(number)
            return None
        if self._terms.concurrency and not self._use_remaining(row.type, number, remaining):
            return None
        try:
            payload = decode_json(row.payload or "{}")
        except ValueError:
            when[number] = NEVER
            view.unreadable.append(number)
            return None
        row.state = state
        return Claim(row, payload, view.generation)

    # -- checking them again, under the lock --

    def recheck(self, candidates: list[Claim]) -> list[Claim]:
        """Return the candidates that may still be claimed, in their present states.

        Call it under the lock, after reading what is new.
        """
        self._paused = paused.read(self._path)
        claims = [c for c in candidates if self._is_due(c)]
        if self._terms.concurrency:
            index = self._view.index
            remaining: dict[str, int] = {}
            claims = [c for c in claims if self._use_remaining(c.row.type, index[c.key], remaining)]
        return claims

    def claim_of(self, job_id: str, now: float) -> Claim | None:
        """Return the claim of a pending job, whether it is due or not.

        If it isn't, it becomes due at `now`. Returns None if the job isn't pending, if its type is
        paused or has reached its concurrency, or if the pass doesn't run its type. Call it under
        the lock, after reading what is new.
        """
        view = self._view
        self._paused = paused.read(self._path)
        number = view.index.get(job_id.encode())
        row = view.row(number) if number is not None else None
        state = states.claim(row.state) if row else None
        if number is None or row is None or state is None or not self._terms.wants(row.type):
            return None
        if self._is_paused(row.type) or not self._use_remaining(row.type, number, {}):
            return None
        state.run_at = min(state.run_at, int(now))
        row.state = state
        try:
            return Claim(row, decode_json(row.payload or "{}"), view.generation)
        except ValueError:
            return None

    def _is_due(self, claim: Claim) -> bool:
        """Return whether a candidate is still due: it may have been claimed or cancelled.

        If its state has changed, but it is still due, the claim gets the new state.
        """
        view = self._view
        number = view.index.get(claim.key)
        if number is None or view.when[number] > self._due_until():
            return False
        if self._paused and self._is_paused(claim.row.type):
            return False
        if claim.generation != view.generation or claim.key in view.records:
            row = view.row(number)
            state = states.claim(row.state) if row else None
            if row is None or state is None:
                return False
            if (row.type, row.payload) != (claim.row.type, claim.row.payload):
                return False  # another job with the same id
            if states.may_kill(state) and claim.key != self._last_suspect:
                return False  # another pass has died with it since
            claim.row.state = state
            claim.state = encode_state(state)
        return True

    def _is_paused(self, job_type: str) -> bool:
        return job_type in self._paused or ALL in self._paused

    # -- concurrency: how many jobs of a type may be processing --

    def _use_remaining(self, job_type: str, number: int, remaining: dict[str, int]) -> bool:
        """Count a job towards its type's concurrency.

        Returns False if that is reached, and puts the job aside in `_waiting`. `remaining` is how
        many more jobs of a type may be claimed, for the types counted so far.
        """
        if job_type not in self._terms.concurrency:
            return True
        if job_type not in remaining:
            remaining[job_type] = self._count_remaining(job_type)
        if remaining[job_type] <= 0:
            self._waiting.setdefault(job_type, deque()).append(number)
            return False
        remaining[job_type] -= 1
        return True

    def _count_remaining(self, job_type: str) -> int:
        """Return how many more jobs of a type may be claimed now.

        A pass claims only as many as it runs at once: a claimed job that isn't started yet would
        keep another pass from running one.
        """
        view = self._view
        rows = [view.row(number) for number in view.processing]
        processing = sum(row is not None and row.type == job_type for row in rows)
        return min(self._terms.concurrency[job_type] - processing, self._parallel)

    def _resume_waiting(self, remaining: dict[str, int]) -> None:
        """Make waiting jobs due again, as many as their type's concurrency allows now."""
        for job_type, numbers in list(self._waiting.items()):
            remaining[job_type] = self._count_remaining(job_type)
            count = max(min(remaining[job_type], len(numbers)), 0)
            self._due.extend(reversed([numbers.popleft() for _ in range(count)]))
            if not numbers:
                del self._waiting[job_type]


def _priorities() -> ModuleType:
    from dbbasic_queue.store.claiming import priorities

    return priorities
