"""Claims the jobs of an `EngineStore`; `store.protocol.Claims` describes the methods.

- **A worker is alive while it says so**: every 10 seconds, from the ticks of the pass. After 30
  seconds without that, other passes recover its jobs. So a pass that was stopped for longer, or cut
  off from the server, may find that its job runs again elsewhere: it starts no other one, kills a
  job that has a process of its own, and its outcome isn't recorded.
- **An outcome is recorded only if the job hasn't changed since it was claimed**, apart from a
  request to stop it.
- **If the connection breaks**, a claim or a record is tried again for as long as the worker may
  count as alive. What a lost reply has claimed is found again. A look for due jobs finds none in
  the meantime, so that a pass that waits can still be asked to end.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from dbbasic_queue.engines.backend import BEAT_SECONDS, DEAD_SECONDS, Change, ConnectionLost
from dbbasic_queue.engines.notes import EngineHistory, EngineOutput, EngineProgress
from dbbasic_queue.errors import StoreError
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.store.protocol import Claim
from dbbasic_queue.store.worker import worker_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Protocol, TypeVar

    from dbbasic_queue.engines.backend import Backend, News, StoredRow
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.protocol import History, OutputNotes, ProgressNotes, Terms

    T = TypeVar("T")

    class Place(Protocol):
        """The part of `EngineStore` that claims use."""

        backend: Backend
        even_if_moved: bool

        def require_here(self) -> None:
            """Raise QueueMoved if the queue was moved."""

        def paused_here(self) -> Collection[str]:
            """Return the paused types."""


_RECOVERY_SECONDS = 5.0
"""how often a pass looks for jobs of dead workers"""
_LOOK_SECONDS = 0.5
"""how often a pass that waits asks the server for jobs that have become due"""
_STOP_POLL_SECONDS = 0.25
_PERSIST_SECONDS = DEAD_SECONDS - BEAT_SECONDS
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0


class EngineClaims:
    """The jobs that one pass has claimed.

    `_held`  job id -> the row as claimed, for each claim whose outcome isn't recorded
    """

    def __init__(
        self,
        store: Place,
        terms: Terms,
        now: float,
        parallel: int,
    ) -> None:
        """Register the worker, recover the jobs of dead ones, correct times, and find due jobs."""
        backend = store.backend
        self.history: History = EngineHistory(backend)
        self.output: OutputNotes = EngineOutput(backend)
        self.progress: ProgressNotes = EngineProgress(backend)
        self._store = store
        self._backend = backend
        self._terms = terms
        self._parallel = parallel
        self._held: dict[str, StoredRow] = {}
        self._unrecorded: set[str] = set()
        """the jobs that have ended, until their outcome is recorded"""
        self._put_back: set[str] = set()
        """the jobs that were claimed and are pending again: they wait for the next `find_due`"""
        self._is_empty = False
        """whether nothing could be claimed when this pass looked last"""
        self._recovered = 0
        self._died: list[tuple[Row, State]] = []
        self._pulled_in = 0
        self._looks_at = self._recovers_at = 0.0  # on the monotonic clock, like the following
        self._news: News | None = None
        """opened when this pass waits for the first time"""
        self._looks: dict[str, tuple[float, bool]] = {}
        """job id -> when it was last asked whether a running job is to stop, and the answer"""
        self._unreachable_since: float | None = None
        """when a look for due jobs failed first, if the last one failed"""
        self._is_lost = False
        """whether this worker counts as dead"""
        self._worker = backend.open_worker(worker_name(), parallel)
        self._beat_at = time.monotonic()
        try:
            self._pull_in(now)
            self._persist(lambda again: self._look(now))
        except BaseException:
            self.abandon()
            raise

    def slot_fd(self) -> int:
        """Return -1: there is no slot."""
        return -1

    # -- finding and claiming --

    def find_due(self, now: float) -> bool:
        """Look for jobs that are due at `now`; False if there are none to claim.

        Recovers the jobs of dead workers first, unless that was done in the last 5 seconds. A pass
        that waits calls this 20 times a second: while nothing was added, the server is asked twice
        a second.
        """
        is_unreachable = self._unreachable_since is not None
        if self._has_just_looked(now) and (is_unreachable or not self._have_news_come()):
            return False
        try:
            has_due = self._look(now)
        except ConnectionLost:
            since = self._unreachable_since or time.monotonic()
            if time.monotonic() >= since + _PERSIST_SECONDS:
                raise
            self._unreachable_since, self._is_empty = since, True
            return False
        self._unreachable_since = None
        return has_due

    def _look(self, now: float) -> bool:
        self.looked_at = now
        self._looks_at = time.monotonic() + _LOOK_SECONDS
        self._put_back.clear()
        self.history.flush()
        self._beat_if_due()
        self._recover_if_due(now)
        self._store.require_here()
        self._mark = self._backend.look(now)
        self._types = self._backend.types()
        self._is_empty = not self._backend.has_due(self._wanted(), now, self._mark)
        return not self._is_empty

    def _has_just_looked(self, now: float) -> bool:
        """Return whether nothing was due half a second ago, by the queue's clock and for real."""
        is_recent = time.monotonic() < self._looks_at and 0 <= now - self.looked_at < _LOOK_SECONDS
        return self._is_empty and is_recent

    def _have_news_come(self) -> bool:
        if self._news is None:
            try:
                self._news = self._backend.listen()
            except ConnectionLost:
                return True
        return self._news.have_come()

    def _wanted(self) -> list[str]:
        """Return the types that this pass may claim now: it wants them, and none is paused."""
        paused = self._persist(lambda again: self._store.paused_here())
        if ALL in paused:
            return []
        return [
            name for name in sorted(self._types) if name not in paused and self._terms.wants(name)
        ]

    def claim(self, most: int, now: float) -> list[Claim]:
        """Claim up to `most` due jobs: the highest priority first, then in the order of `add`."""
        self.check_slot()
        self._beat_if_due()
        if self._is_empty:
            return []
        self._persist(lambda again: self._recover_if_due(now))
        if self._terms.prioritizes():  # a type that had no jobs may have a higher priority
            self._types |= self._persist(lambda again: self._backend.types())
        types = self._persist(lambda again: self._wanted())
        rows: list[StoredRow] = []
        for priority in self._priorities(types):
            group = [name for name in types if self._terms.priority(name) == priority]
            lower = [name for name in types if self._terms.priority(name) < priority]
            is_newer = bool(lower) and self._has_due(lower)
            if is_newer and now > self.looked_at:
                self._persist(lambda again: self._backend.look(now))
            until, mark = (now, None) if is_newer else (self.looked_at, self._mark)
            rows += self._claim(group, most - len(rows), until, mark)
            if len(rows) >= most:
                break
        self._is_empty = not rows
        return [Claim(row, decode_json(row.payload) if row.payload else {}, 0) for row in rows]

    def _priorities(self, types: list[str]) -> list[int]:
        """Return the priorities of these types, the highest first."""
        return sorted({self._terms.priority(name) for name in types}, reverse=True)

    def _has_due(self, types: list[str]) -> bool:
        return self._persist(lambda again: self._backend.has_due(types, self.looked_at, self._mark))

    def _claim(
        self, types: list[str], most: int, until: float, mark: int | None
    ) -> list[StoredRow]:
        limits = {
            name: (self._terms.concurrency[name], self._parallel)
            for name in types
            if name in self._terms.concurrency
        }
        for name, (limit, parallel) in limits.items():
            mine = sum(row.type == name for row in list(self._held.values()))  # see `unclaim`
            limits[name] = limit, max(parallel - mine, 0)

        def claim(again: bool) -> list[StoredRow]:
            if again:
                claimed = self._backend.claimed(self._worker)
                if lost := [row for row in claimed if row.id not in self._held]:
                    return lost
            return self._backend.claim(
                self._worker,
                types,
                most,
                until,
                mark=mark,
                limits=limits,
                skip=self._put_back,
                anyway=self._store.even_if_moved,
            )

        rows = self._persist(claim)
        self._held |= {row.id: row for row in rows}
        return rows

    # -- what other passes, and wrong clocks, have left --

    def _recover_if_due(self, now: float) -> None:
        if time.monotonic() >= self._recovers_at:
            self._recover(now)
            self._recovers_at = time.monotonic() + _RECOVERY_SECONDS

    def _recover(self, now: float) -> None:
        """Make the jobs of dead workers pending again; see `store.claiming.recovery`."""
        found: list[tuple[Change, bool]] = []
        for row, was_started in self._backend.dead_claims():
            if states.is_to_stop(row.state):
                state = states.stop(row.state, row.state.attempts - (not was_started))
            elif not was_started:
                state = states.unclaim(row.state)
            elif self._terms.wants(row.type):
                seconds = self._terms.wait(row.type, row.state.attempts)
                retry_at = states.retry_at(now, seconds)
                state = states.recover(row.state, self._terms.limit(row.type), retry_at)
            else:
                continue  # how many attempts a job has depends on its handler
            found.append((Change(row, state), was_started))
        if not found:
            return
        made = self._backend.change([change for change, _ in found])
        for ((row, state, _), was_started), is_made in zip(found, made, strict=True):
            if is_made and state is not None:
                self._recovered += 1
                if was_started or state.status == states.CANCELLED:
                    self._died.append((row, state))

    def _pull_in(self, now: float) -> None:
        """Correct times that were set by a clock that was ahead."""
        changes = []
        for row in self._backend.due_late(now):
            pulled_in = states.pull_in(row.state, now)
            longest = self._terms.longest_wait(row.type, row.state.attempts)
            state = pulled_in or states.clamp(row.state, states.later(now, longest))
            if state is not None:
                changes.append((Change(row, state), pulled_in is not None))
        if changes:
            made = self._backend.change([change for change, _ in changes])
            counted = (is_counted for _, is_counted in changes)
            self._pulled_in += sum(itertools.compress(counted, made))

    def take_recovered(self) -> tuple[int, list[tuple[Row, State]]]:
        """Return how many jobs were recovered since the last call, and those that had started."""
        taken = self._recovered, self._died
        self._recovered, self._died = 0, []
        return taken

    def take_pulled_in(self) -> int:
        """Return how many jobs were pulled in since the last call."""
        taken, self._pulled_in = self._pulled_in, 0
        return taken

    # -- running jobs --

    def check_slot(self) -> None:
        """Raise StoreError if this worker counts as dead: other passes may run its jobs."""
        if self._is_lost:
            raise StoreError(
                f"this pass was stopped or cut off from the server for over {DEAD_SECONDS:.0f} s, "
                "so other passes consider it dead: it starts no more jobs (start a new pass): "
                f"{self._backend.name}"
            )

    def may_start(self, claim: Claim) -> bool:
        """Return False if the job isn't this pass's any more, as far as is known."""
        self._beat_if_due()
        return not self._is_lost and claim.row.id in self._held

    def is_to_stop(self, row: Row) -> bool:
        """Return whether a running job is to be stopped, or may run elsewhere by now.

        Looks at most four times a second.
        """
        held = self._held.get(row.id)
        if held is None or self._is_lost:
            return True
        looked_at, stops = self._looks.get(row.id, (0.0, False))
        if (now := time.monotonic()) >= looked_at + _STOP_POLL_SECONDS:
            try:
                current = self._backend.find(row.id)
                stops = current is None or current.version != held.version
            except ConnectionLost:
                pass
            self._looks[row.id] = now, stops
        return stops

    def record(self, claim: Claim, state: State) -> State | None:
        """Record an outcome; return the recorded state, or None if this attempt was replaced."""
        return self.record_all([(claim, state)])[0]

    def record_all(self, ended: list[tuple[Claim, State]]) -> list[State | None]:
        """Record several outcomes."""
        ids = {claim.row.id for claim, _ in ended}
        self._unrecorded |= ids
        recorded = self._record(
            [(self._held.pop(claim.row.id, None), state) for claim, state in ended]
        )
        self._unrecorded -= ids
        return recorded

    def _record(self, ended: list[tuple[StoredRow | None, State | None]]) -> list[State | None]:
        changes = [Change(row, state) for row, state in ended if row and state]
        made = iter(self._persist(lambda again: self._backend.change(changes, again=again)))
        recorded = []
        for row, state in ended:
            accepted = None
            if row and state:
                accepted = state if next(made) else self._record_stop(row, state)
            if row and accepted and accepted.status != states.COMPLETED:
                self._put_back.add(row.id)
            if row:
                self._looks.pop(row.id, None)
            recorded.append(accepted)
        return recorded

    def _record_stop(self, row: StoredRow, state: State) -> State | None:
        """Record the outcome of a job that was marked to be stopped; None if it wasn't."""
        current = self._persist(lambda again: self._backend.find(row.id))
        if current is None or not states.is_to_stop(current.state):
            return None
        if current.state.attempts != row.state.attempts:
            return None
        stopped: State | None = state
        if state.status != states.COMPLETED:
            stopped = states.stop(current.state, state.attempts)
        change = Change(current, stopped)
        made = self._persist(lambda again: self._backend.change([change], again=again))
        return stopped if made == [True] else None

    def unclaim(self, claims: list[Claim], error: str = "") -> None:
        """Make claimed jobs pending again without counting their attempts.

        The ticker's thread may call it at the same time as the pass makes another call.
        """
        ended: list[tuple[StoredRow | None, State | None]] = []
        for claim in claims:
            row = self._held.pop(claim.row.id, None)
            ended.append((row, states.unclaim(row.state, error) if row else None))
        if ended:
            self._record(ended)

    # -- staying alive --

    def _beat_if_due(self) -> None:
        """Say that this worker is alive, if that was 10 seconds ago."""
        if time.monotonic() - self._beat_at < BEAT_SECONDS or self._is_lost:
            return
        try:
            is_alive = self._backend.beat(self._worker)
        except StoreError:  # a server that refuses now may not at the next tick: it isn't the end
            return
        self._is_lost = not is_alive
        self._beat_at = time.monotonic()

    def _persist(self, call: Callable[[bool], T]) -> T:
        """Call a function, again and again while the connection is lost and this may be alive.

        It receives False at first, and True when it is called again.
        """
        again = False
        pause = _FIRST_PAUSE_SECONDS
        end = time.monotonic() + _PERSIST_SECONDS
        while True:
            try:
                return call(again)
            except ConnectionLost:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            again, pause = True, min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def is_published(self) -> bool:
        """Return False, so that the pass ticks: that is when the worker says that it is alive."""
        return False

    def publish(self) -> None:
        """Say that this worker is alive, and write what is in memory: a job takes long."""
        self.history.flush()
        self._beat_if_due()

    def idle(self) -> None:
        """Write what is in memory, and say that this worker is alive."""
        self.history.flush()
        self._beat_if_due()

    def _close_news(self) -> None:
        if self._news is not None:
            self._news.close()
            self._news = None

    def finish(self) -> None:
        """Write the history, and remove the worker; it expires by itself if that fails."""
        self._close_news()
        self.history.flush()
        with suppress(ConnectionLost):
            self._backend.close_worker(self._worker)

    def abandon(self) -> None:
        """End the pass after an error: make its jobs pending again, if that can be done.

        A job whose outcome couldn't be recorded has run: another pass recovers it, and its attempt
        counts.
        """
        self._close_news()
        self.history.flush()
        with suppress(StoreError):  # another pass recovers them when this worker counts as dead
            self._backend.change(
                [
                    Change(row, states.unclaim(row.state))
                    for row in self._backend.claimed(self._worker)
                    if row.id not in self._unrecorded
                ]
            )
            self._backend.close_worker(self._worker)
