"""Moves all jobs of a queue to another one, while passes and other programs use both.

1. **While the queue is open**: its pending jobs are moved in batches, in three steps. They are
   withdrawn (`cancelled`, with the error `Moving to ADDRESS`), if no pass has claimed them in the
   meantime. They are added to the target, with their ids. They are marked `Moved to ADDRESS`.
2. **It is closed**: from then on all its calls raise QueueMoved, and no pass claims a job there.
   Passes still record the outcomes of jobs that they have claimed.
3. **The rest is moved**: jobs that were added until then, and those that running jobs become when
   they are to be retried. Then schedules and pauses, and finished jobs and history on request.
4. **It is verified** that the target has every job that was moved. Only then are they removed from
   the source.

Each step is on the disk before the next one, so a move that was killed at any moment goes on when
it is made again. A job is never pending in both queues. If the move was killed between the first
and the third step, the job may be in the target already: the next move looks it up there.

An id that another job has in the target is a **conflict**: the job stays in the source.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model import states
from dbbasic_queue.model.rows import Row
from dbbasic_queue.store import schedule_file
from dbbasic_queue.store.batches import batches
from dbbasic_queue.store.schedule_file import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.history import Attempt
    from dbbasic_queue.store.protocol import Store


PATIENCE_SECONDS = 60.0
"""How long to wait for running jobs. A worker on a server that has died is noticed in that time."""

_BATCH = 500
_SWEEPS = 10
"""how often to move the pending jobs before the source is closed, if many are added each time"""
_POLL_SECONDS = 0.1
_RECOVERY_SECONDS = 5.0
_WITHDRAWN = (states.CANCELLED,)
"""the status of the jobs that are on their way, and of those that were moved"""
_EVER = 1e12
"""after the `run_at` of every job, in Unix seconds"""


class Outcome:
    """What a move has done.

    `moved`      how many jobs were moved that were pending
    `finished`   how many finished ones
    `schedules`  how many schedules
    `history`    how many attempts were copied to the target's history
    `running`    the ids of jobs that are still running in the source: move again when they have
                 ended
    `left`       how many jobs are added there again and again, without a lock
    `conflicts`  the ids of jobs that stay in the source, because the target has other jobs with
                 these ids
    `missing`    the ids of jobs that were moved and aren't in the target, in this or in an
                 interrupted move: someone has removed them there, or the server has lost them
    """

    def __init__(self) -> None:
        self.moved = self.finished = self.schedules = self.history = self.left = 0
        self.running: list[str] = []
        self.conflicts: list[str] = []
        self.missing: list[str] = []

    def is_complete(self) -> bool:
        """Return whether everything was moved, and found in the target."""
        return not (self.running or self.left or self.conflicts or self.missing)


def move(
    source: Store,
    target: Store,
    *,
    finished: bool = False,
    history: bool = False,
    clock: Callable[[], float] = time.time,
    progress: Callable[[int, int], object] = lambda moved, left: None,
    waiting: Callable[[list[str]], object] = lambda running: None,
) -> Outcome:
    """Move the jobs, schedules and pauses of a store to another one; return what was done.

    Both were opened so that they can be used even if they were moved. With `finished`, finished
    jobs are moved, too; with `history`, the attempts are copied. `progress` is called after each
    batch, with how many jobs were moved, and about how many are left; `waiting` while the move
    waits for running jobs, with their ids.

    Raises InvalidArgument if the source was moved to another address, or the target to another one
    than the source; StoreError if the system or a server refuses: then move again.
    """
    mover = _Mover(source, target, clock, progress, waiting)
    mover.run(finished=finished, history=history)
    return mover.outcome


class Preview:
    """What a move would do, if nothing changed until then.

    `counts`     status -> how many jobs would be moved; running ones when they have ended
    `schedules`  how many schedules
    `conflicts`  the ids of jobs that would stay, because the target has jobs with these ids
    `left`       how many jobs would stay because they are finished
    """

    def __init__(self, source: Store, target: Store, *, finished: bool = False) -> None:
        """Changes nothing. Raises what `move` would raise before it changes anything."""
        _Mover(source, target, time.time, lambda *_: None, lambda *_: None).check()
        self.counts: dict[str, int] = {}
        self.conflicts: list[str] = []
        self.left = 0
        there = {row.id for row in target.rows()}
        for row in source.rows():
            is_withdrawn = _is_on_its_way(row.state)
            if _is_finished(row.state) and not finished:
                self.left += 1
                continue
            if row.id in there and not is_withdrawn:
                self.conflicts.append(row.id)
                continue
            status = states.PENDING if is_withdrawn else row.state.status
            self.counts[status] = self.counts.get(status, 0) + 1
        rows = source.read_schedules() if source.has_schedules() else b""
        self.schedules = len(schedule_file.parse(rows, source.path))


class _Mover:
    def __init__(
        self,
        source: Store,
        target: Store,
        clock: Callable[[], float],
        progress: Callable[[int, int], object],
        waiting: Callable[[list[str]], object],
    ) -> None:
        self.outcome = Outcome()
        self._source = source
        self._target = target
        self._address = states.as_address(target.path)
        self._clock = clock
        self._progress = progress
        self._waiting = waiting
        self._conflicts: set[str] = set()
        self._sweeps = 0

    def run(self, *, finished: bool, history: bool) -> None:
        self.check()
        if self._target.moved_to():
            self._target.set_moved("")  # it was moved to the source: now it is moved back
        self._move_pauses()
        self._recover()
        is_open = not self._source.moved_to()
        for _ in range(_SWEEPS if is_open else 0):
            if self._sweep() < _BATCH:
                break
        if not (is_open and self._conflicts):  # otherwise passes go on with them there
            self._source.set_moved(self._target.path)
            self._move_rest()
            if not self.outcome.running and not self.outcome.left:
                self._move_schedules()
                self._move_pauses(end=True)
                if finished:
                    self._move_finished()
            if history:
                self._copy_history()
            self._verify()
        self.outcome.conflicts = sorted(self._conflicts)

    def check(self) -> None:
        """Raise InvalidArgument if the queues can't be used for this move; changes nothing."""
        source, target = self._source, self._target
        if not source.is_shared:
            raise InvalidArgument(
                f"the jobs of {source.path} can't be moved: they are in the memory of a process, "
                "and end with it"
            )
        if source.path == target.path or _are_same_file(source.path, target.path):
            raise InvalidArgument(f"{source.path} can't be moved to itself")
        if (address := source.moved_to()) not in ("", target.path):
            raise InvalidArgument(
                f"{source.path} was moved to {address}: nothing was done (move that queue "
                f"instead, or move what is left here to {address})"
            )
        if (address := target.moved_to()) not in ("", source.path):
            raise InvalidArgument(
                f"{target.path} was moved to {address}: nothing was done (move to that address)"
            )
        for row in source.rows(statuses=_WITHDRAWN):
            if _is_on_its_way(row.state) and not self._is_on_its_way_there(row.state):
                raise _unfinished(source, row)
        for row in target.rows(statuses=_WITHDRAWN):
            if _is_on_its_way(row.state):
                raise _unfinished(target, row)

    def _is_on_its_way_there(self, state: State) -> bool:
        return (
            states.is_moved_to(state, self._address)
            or states.restore(state, self._address) is not None
        )

    # -- pending jobs --

    def _sweep(self) -> int:
        """Move the jobs that are pending now; return how many there were.

        And those that an interrupted move has withdrawn: they may be in the target already. The
        record of a withdrawal may be torn, and become valid with the first one that is written now.
        So the second call looks for those, too; later ones needn't.
        """
        count = 0
        self._sweeps += 1
        statuses = (states.PENDING, *_WITHDRAWN) if self._sweeps <= 2 else (states.PENDING,)
        left = self._source.count_due(_EVER)
        to_move = (
            row
            for row in self._source.rows(statuses=statuses)
            if row.id not in self._conflicts
            and (row.state.status == states.PENDING or states.is_moving(row.state))
        )
        for batch in batches(to_move, _BATCH):
            self._move_batch(batch)
            count += len(batch)
            left = max(left - len(batch), 0)
            self._progress(self.outcome.moved, left)
        return count

    def _move_batch(self, rows: list[Row]) -> None:
        """Move jobs, except those that others have changed in the meantime."""
        pending = [row for row in rows if row.state.status == states.PENDING]
        found = self._source.exchange([(row, self._withdrawn(row.state)) for row in pending])
        # With the payloads that they have now, which others may have edited.
        withdrawn = [row for row in found if row is not None]
        for row in rows:
            if before := states.restore(row.state, self._address):
                withdrawn.append(Row(row.id, row.type, row.payload, before))
        self._add(withdrawn)

    def _withdrawn(self, state: State) -> State:
        withdrawn = states.withdraw(state, self._address)
        assert withdrawn is not None
        return withdrawn

    def _add(self, rows: list[Row]) -> None:
        """Add jobs that were withdrawn to the target; `rows` have the states from before that."""
        there = set(self._target.add_missing(rows))
        changes: list[tuple[Row, State]] = []
        for row in rows:
            withdrawn = self._withdrawn(row.state)
            end = states.end_move(withdrawn, self._address)
            # Such an id may also be of a job that was just added, and the server's reply was lost.
            if row.id in there and not _is_same(row, self._target.find(row.id)):
                self._conflicts.add(row.id)
                end = row.state
            else:
                self.outcome.moved += 1
            assert end is not None
            changes.append((Row(row.id, row.type, row.payload, withdrawn), end))
        self._source.exchange(changes)

    def _move_rest(self) -> None:
        """Move what was added before the source was closed, and what running jobs become."""
        end = time.monotonic() + PATIENCE_SECONDS
        recovers_at = time.monotonic() + _RECOVERY_SECONDS
        left = None
        while True:
            count = self._source.count_due(_EVER)
            if count != left:
                self._sweep()
                left = self._source.count_due(_EVER)
            running = self._running()
            self.outcome.left = 0 if running else self._sweep()
            # A pass that had not noticed yet that the source was closed may have claimed one.
            self.outcome.running = running or self._running()
            if not self.outcome.running and not self.outcome.left:
                return
            if time.monotonic() >= end:
                return
            if self.outcome.running and time.monotonic() >= recovers_at:
                self._recover()
                recovers_at = time.monotonic() + _RECOVERY_SECONDS
            if self.outcome.running:
                self._waiting(self.outcome.running)
            time.sleep(_POLL_SECONDS)

    def _running(self) -> list[str]:
        return [row.id for row in self._source.running()[1]]

    def _recover(self) -> None:
        """Make the jobs of dead passes pending, as a pass does that has a handler for each."""
        if self._running():
            recover(self._source, self._clock())

    # -- schedules and pauses --

    def _move_schedules(self) -> None:
        """Give the target the schedules, and forget them here."""
        while True:
            seen = self._source.read_schedules()
            rows = schedule_file.parse(seen, self._source.path)
            if not rows:
                return
            while True:
                there = self._target.read_schedules()
                known = schedule_file.parse(there, self._target.path)
                changes = [
                    Change(row.name, _merge(row, known.get(row.name))) for row in rows.values()
                ]
                if self._target.update_schedules(there, changes):
                    break
            if self._source.update_schedules(seen, [Change(name, None) for name in rows]):
                self.outcome.schedules += len(rows)

    def _move_pauses(self, *, end: bool = False) -> None:
        """Pause the types in the target that are paused here; at the `end`, no more here."""
        types = self._source.paused()
        for job_type in types:
            self._target.pause(job_type)
        if end and types:
            self._source.resume(None)

    # -- finished jobs and history --

    def _move_finished(self) -> None:
        moved: set[str] = set()
        finished = (row for row in self._source.rows() if _is_finished(row.state))
        for batch in batches(finished, _BATCH):
            for job_id in self._target.add_missing(batch):
                row = next(row for row in batch if row.id == job_id)
                if not _is_same(row, self._target.find(job_id)):
                    self._conflicts.add(job_id)
            moved.update(row.id for row in batch if row.id not in self._conflicts)
            self._progress(self.outcome.moved + len(moved), 0)
        missing = self._missing(moved)
        self.outcome.missing += sorted(missing)
        moved -= missing
        self.outcome.finished = len(moved)
        if moved:
            self._source.remove(lambda row: row.id in moved and _is_finished(row.state))

    def _copy_history(self) -> None:
        """Copy the attempts that the target doesn't have yet."""
        there = {_attempt_key(attempt) for attempt in self._target.history()}
        new = (a for a in self._source.history() if _attempt_key(a) not in there)
        for batch in batches(new, _BATCH):
            self._target.add_history(batch)
            self.outcome.history += len(batch)

    # -- the end --

    def _verify(self) -> None:
        """Look every moved job up in the target, and remove those that it has from the source."""
        rows = self._source.rows(statuses=_WITHDRAWN)
        moved = {row.id for row in rows if states.is_moved(row.state)}
        missing = self._missing(moved)
        self.outcome.missing += sorted(missing)
        if len(moved) > len(missing):
            self._source.remove(
                lambda row: (
                    states.is_moved(row.state) and row.id in moved and row.id not in missing
                ),
                statuses=_WITHDRAWN,
            )

    def _missing(self, ids: set[str]) -> set[str]:
        """Return those of the ids that no job in the target has."""
        missing = set(ids)
        if missing:
            missing.difference_update(row.id for row in self._target.rows())
        return missing


def _is_same(row: Row, found: Row | None) -> bool:
    """Return whether a job in the target is the one that was moved there: it may have run since."""
    if found is None or found.type != row.type or _is_on_its_way(found.state):
        return False
    return found.state.created_at == row.state.created_at


def _is_on_its_way(state: State) -> bool:
    return states.is_moving(state) or states.is_moved(state)


def _is_finished(state: State) -> bool:
    return state.status in states.FINISHED and not _is_on_its_way(state)


def _unfinished(store: Store, row: Row) -> InvalidArgument:
    return InvalidArgument(
        f"the jobs of {store.path} were not moved completely: nothing was done (make that move "
        f"again first: the error of the job {row.id} says where to, {row.state.error!r})"
    )


def _merge(
    row: schedule_file.ScheduleRow, known: schedule_file.ScheduleRow | None
) -> schedule_file.ScheduleRow:
    """Return the row of a schedule that the target may have started already.

    If it has added jobs beyond what the source has, the instants in between may be missing: they
    are due again, and those whose jobs are there aren't added twice.
    """
    if known is None or known.last is None or known.next <= row.next:
        return row
    known.next = row.next
    return known


def _attempt_key(attempt: Attempt) -> tuple[str, int, str]:
    return attempt.id, attempt.attempt, f"{attempt.ended_at:.3f}"


def _are_same_file(source: str, target: str) -> bool:
    try:
        return os.path.samefile(source, target)
    except OSError:
        return False


def recover(store: Store, now: float) -> None:
    """Make the jobs of dead passes pending, as a pass does that has a handler for each."""
    claims = store.open_claims(_AllTypes(), now, 1)
    try:
        for row, state in claims.take_recovered()[1]:
            outcome = "stopped" if state.status == states.CANCELLED else "died"
            claims.history.note(row, outcome, state.error, now, None)
    finally:
        claims.abandon()


class _AllTypes:
    """The `Terms` of a recovery without handlers: each job is retried, however often it has run."""

    def __init__(self) -> None:
        self.concurrency: dict[str, int] = {}

    def count(self) -> int:
        return 0

    def wants(self, job_type: str) -> bool:
        return True

    def limit(self, job_type: str) -> int:
        return states.HIGHEST_ATTEMPT + 1

    def wait(self, job_type: str, attempt: int) -> float:
        return states.backoff(attempt)

    def longest_wait(self, job_type: str, attempt: int) -> float:
        return states.LATEST

    def priority(self, job_type: str) -> int:
        return 0

    def types(self) -> str:
        return ""

    def prioritizes(self) -> bool:
        return False
