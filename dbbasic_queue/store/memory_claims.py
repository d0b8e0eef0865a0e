"""Claims the jobs of a `MemoryStore`; `protocol.Claims` describes the methods.

A state is never altered, only replaced. An outcome is accepted only while the job's state is the
object that its claim made, or that attempt's state marked by a request to stop the job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.rows import Row
from dbbasic_queue.store import output, progress
from dbbasic_queue.store.history import Attempt, encode_row, format_instant
from dbbasic_queue.store.protocol import Claim
from dbbasic_queue.store.worker import worker_name

if TYPE_CHECKING:
    import threading
    from collections import deque
    from typing import Protocol

    from dbbasic_queue.store.output import Output
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.store.protocol import History, OutputNotes, ProgressNotes, Terms

    class Jobs(Protocol):
        """The part of `MemoryStore` that claims use."""

        jobs: dict[str, MemoryJob]
        last_number: int
        finished: deque[Attempt]
        printed: deque[Output]
        reported: dict[str, Progress]

        @property
        def lock(self) -> threading.RLock:
            """Hold this to read or change."""

        def paused(self) -> frozenset[str]:
            """Return the paused types."""


class MemoryJob(Row):
    """A job in memory; `number` is its place in the order of enqueueing."""

    __slots__ = ("number",)

    def __init__(self, row: Row, number: int) -> None:
        super().__init__(row.id, row.type, row.payload, row.state)
        self.number = number

    def copy(self) -> Row:
        """Return a row that the caller may alter."""
        return Row(self.id, self.type, self.payload, self.state)


class MemoryHistory:
    """Receives the finished attempts of a pass."""

    def __init__(self, store: Jobs) -> None:
        self._store = store
        self._worker = worker_name()

    def note(
        self,
        row: Row,
        outcome: str,
        error: str,
        ended_at: float,
        seconds: float | None,
        traceback: str = "",
        exception: str = "",
        output_offset: int | None = None,
    ) -> None:
        """Add a finished attempt."""
        ended = format_instant(ended_at)
        line = encode_row(
            row, outcome, error, ended, seconds, traceback, self._worker, exception, None
        )
        self._store.finished.append(Attempt(line))

    def flush(self) -> None:
        """Do nothing: every row is there at once."""

    def take_error(self) -> None:
        """Return None: no row is ever lost."""


class MemoryOutput:
    """Receives what the jobs of a pass have printed."""

    def __init__(self, store: Jobs) -> None:
        self._store = store

    def keep(self, row: Row, ended_at: float, printed: bytes, left_out: int) -> None:
        """Keep what an attempt has printed."""
        line = output.encode_row(row, ended_at, printed, left_out)
        self._store.printed.append(output.Output(line))

    def take_error(self) -> None:
        """Return None: nothing is lost."""


class MemoryProgress:
    """Receives how far the jobs of a pass are."""

    def __init__(self, store: Jobs) -> None:
        self._store = store

    def note(
        self,
        job_id: str,
        attempt: int,
        started_at: float,
        at: float,
        done: float,
        total: float | None,
        note: str,
    ) -> None:
        """Keep how far an attempt is. Raises StoreError in a forked child, which has a copy."""
        line = progress.encode_row(job_id, attempt, started_at, at, done, total, note)
        with self._store.lock:
            self._store.reported[job_id] = progress.Progress(line)

    def forget(self, row: Row, at: float) -> None:
        """Do nothing: the end of an attempt ends its progress."""

    def take_error(self) -> None:
        """Return None: nothing is lost."""


class MemoryClaims:
    """The jobs in memory that one pass has claimed."""

    def __init__(self, store: Jobs, terms: Terms, now: float, parallel: int) -> None:
        """Correct times that were set by a clock that was ahead, and find the due jobs."""
        self.store = store
        self.terms = terms
        self.parallel = parallel
        self.history: History = MemoryHistory(store)
        self.output: OutputNotes = MemoryOutput(store)
        self.progress: ProgressNotes = MemoryProgress(store)
        self._pulled_in = 0
        self._held: dict[str, tuple[MemoryJob, states.State]] = {}
        with store.lock:
            for job in store.jobs.values():
                if pulled_in := states.pull_in(job.state, now):
                    job.state = pulled_in
                    self._pulled_in += 1
                if job.state.status != states.PENDING or not job.state.attempts:
                    continue
                longest = terms.longest_wait(job.type, job.state.attempts)
                job.state = states.clamp(job.state, states.later(now, longest)) or job.state
            self.find_due(now)

    def slot_fd(self) -> int:
        """Return -1: there is no slot."""
        return -1

    def take_recovered(self) -> tuple[int, list[tuple[Row, states.State]]]:
        """Return (0, []): if a pass dies, all jobs are gone with its process."""
        return 0, []

    def take_pulled_in(self) -> int:
        """Return how many jobs were pulled in since the last call.

        They were enqueued to run at once, but while the clock was ahead. Now they are due.
        """
        taken, self._pulled_in = self._pulled_in, 0
        return taken

    def find_due(self, now: float) -> bool:
        """Look for jobs that are due at `now`; False if there are none."""
        with self.store.lock:
            self.looked_at = now
            self._due_until = now
            self._last_number = self.store.last_number  # jobs that are added later must wait
            self._put_back: set[str] = set()
            return self._look()

    def _look(self) -> bool:
        """Find the jobs that this pass may claim, the next one last; False if there are none."""
        self._due = [job for job in self.store.jobs.values() if self._is_due(job)]
        self._sort()
        return bool(self._due)

    def _sort(self) -> None:
        self._due.sort(key=self._place, reverse=True)

    def _place(self, job: MemoryJob) -> tuple[int, int, int]:
        return -self.terms.priority(job.type), job.state.run_at, job.number

    def _add_newly_due(self, now: float) -> None:
        """Add jobs that have become due, if their priority is higher than that of a due job."""
        lowest = min(self.terms.priority(job.type) for job in self._due)
        known = {job.id for job in self._due}
        self._due_until = max(self._due_until, now)
        self._due += [
            job
            for job in self.store.jobs.values()
            if self._may_be_claimed(job)
            and job.id not in known
            and self.terms.priority(job.type) > lowest
        ]
        self._sort()

    def _is_due(self, job: MemoryJob) -> bool:
        """Return whether a job was due when the pass looked last."""
        return (
            self._may_be_claimed(job)
            and job.state.run_at <= self.looked_at
            and job.number <= self._last_number
        )

    def _may_be_claimed(self, job: MemoryJob) -> bool:
        return (
            job.state.status == states.PENDING
            and job.state.run_at <= self._due_until
            and job.id not in self._put_back
            and self.terms.wants(job.type)
            and self.store.paused().isdisjoint((job.type, ALL))
        )

    def claim(self, most: int, now: float) -> list[Claim]:
        """Claim up to `most` due jobs, the highest priority and the earliest `run_at` first."""
        with self.store.lock:
            if self._due and self.terms.prioritizes():
                self._add_newly_due(now)
            return self._claim(most) or (self._claim(most) if self._look() else [])

    def _claim(self, most: int) -> list[Claim]:
        claims: list[Claim] = []
        waiting: list[MemoryJob] = []
        remaining: dict[str, int] = {}
        while self._due and len(claims) < most:
            job = self._due.pop()
            if not self._may_be_claimed(job) or self.store.jobs.get(job.id) is not job:
                continue  # it has just been cancelled, removed, paused or claimed by another pass
            if not self._use_remaining(job.type, remaining):
                waiting.append(job)
                continue
            state = states.claim(job.state)
            assert state is not None
            job.state = state
            self._held[job.id] = job, state
            claims.append(Claim(job.copy(), decode_json(job.payload), 0))
        self._due += reversed(waiting)
        return claims

    def _use_remaining(self, job_type: str, remaining: dict[str, int]) -> bool:
        """Count a job towards its type's concurrency; return False if that is reached.

        `remaining` is how many more jobs of a type may be claimed, for the types counted so far.
        """
        if job_type not in self.terms.concurrency:
            return True
        if job_type not in remaining:
            processing = sum(
                job.state.status == states.PROCESSING and job.type == job_type
                for job in self.store.jobs.values()
            )
            remaining[job_type] = min(self.terms.concurrency[job_type] - processing, self.parallel)
        remaining[job_type] -= 1
        return remaining[job_type] >= 0

    def may_start(self, claim: Claim) -> bool:
        """Return False if a stop was requested since the claim."""
        return not self.is_to_stop(claim.row)

    def is_to_stop(self, row: Row) -> bool:
        """Return whether a stop was requested for a claimed job. `row` is that of its claim."""
        with self.store.lock:
            held = self._held.get(row.id)
            return held is not None and _is_marked(*held)

    def record(self, claim: Claim, state: states.State) -> states.State | None:
        """Record an outcome; return the recorded state.

        If a stop was requested, and the job hasn't completed, it is cancelled instead. Returns
        None, and records nothing, if a newer attempt has replaced this one.
        """
        with self.store.lock:
            job, claimed = self._held.pop(claim.row.id)
            self.store.reported.pop(job.id, None)
            accepted = _accepted(job, claimed, state)
            if accepted is not None:
                job.state = accepted
                if accepted.status != states.COMPLETED:
                    self._put_back.add(job.id)
            return accepted

    def record_all(self, ended: list[tuple[Claim, states.State]]) -> list[states.State | None]:
        """Record several outcomes."""
        return [self.record(claim, state) for claim, state in ended]

    def unclaim(self, claims: list[Claim], error: str = "") -> None:
        """Make claimed jobs pending again without counting their attempts.

        `error`, if given, becomes the jobs' error. A job for which a stop was requested is
        cancelled instead.
        """
        with self.store.lock:
            for claim in claims:
                job, claimed = self._held.pop(claim.row.id)
                self.store.reported.pop(job.id, None)
                _unclaim(job, claimed, error)

    def is_published(self) -> bool:
        """Return True: every change is visible at once."""
        return True

    def publish(self) -> None:
        """Do nothing: every change is visible at once."""

    def idle(self) -> None:
        """Do nothing: there is no list of claims to empty."""

    def check_slot(self) -> None:
        """Do nothing: there is no slot that could be lost."""

    def finish(self) -> None:
        """Do nothing: there is nothing to fold, and no slot to release."""

    def abandon(self) -> None:
        """End the pass after an error: make the claimed jobs pending again, as by `unclaim`."""
        with self.store.lock:
            for job, claimed in self._held.values():
                _unclaim(job, claimed)
            self._held.clear()


def _is_marked(job: MemoryJob, claimed: states.State) -> bool:
    """Return whether a stop was requested for the attempt whose claim made `claimed`."""
    return states.is_to_stop(job.state) and job.state.attempts == claimed.attempts


def _accepted(
    job: MemoryJob, claimed: states.State, state: states.State | None
) -> states.State | None:
    """Return the state to record if an attempt ends in `state`; None if it was replaced."""
    if job.state is claimed:
        return state
    if state is None or not _is_marked(job, claimed):
        return None
    return state if state.status == states.COMPLETED else states.stop(job.state, state.attempts)


def _unclaim(job: MemoryJob, claimed: states.State, error: str = "") -> None:
    job.state = _accepted(job, claimed, states.unclaim(claimed, error)) or job.state
