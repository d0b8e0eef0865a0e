"""What a pass holds: its slot, the jobs it has claimed, and the right to say how they ended.

A claim is in the slot's list before it is in the journal, both under one lock: whoever sees the
job as `processing` finds it in the list of a pass that is alive, or may recover it. An outcome is
accepted only while the job's state is, byte for byte, the one that its claim wrote.
"""

from __future__ import annotations

import errno
import time
from array import array
from collections import deque

from dbbasic_queue.errors import StoreError
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.records import decode_state, encode_state
from dbbasic_queue.model.rows import Row
from dbbasic_queue.store import clocks, paused
from dbbasic_queue.store.claiming import slots
from dbbasic_queue.store.disk.files import NO_ROOM
from dbbasic_queue.store.disk.lock import even_if_moved, locked, reading
from dbbasic_queue.store.history import HistoryWriter
from dbbasic_queue.store.protocol import Claim
from dbbasic_queue.store.reading.view import NEVER
from dbbasic_queue.store.writing.fold_costs import CHEAP_IN_A_PASS_SECONDS, SHARE_OF_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, TypeVar

    from dbbasic_queue.store.protocol import Terms
    from dbbasic_queue.store.writing.queue_files import QueueFiles

    P = ParamSpec("P")
    R = TypeVar("R")

_BATCH_BYTES = 1 << 20
_READ_AHEAD = 1 << 16
_SURVEY_SECONDS = 1.0
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def with_spare(method: Callable[Concatenate[Claims, P], R]) -> Callable[Concatenate[Claims, P], R]:
    """Call a method again, with the slot's spare descriptors, if the process has no others left.

    Files are opened before anything is changed.
    """

    def call(self: Claims, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except OSError as e:
            if e.errno not in _NO_DESCRIPTOR or not self.slot.give_up_spare():
                raise
        return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


class Claims:
    """The dealings of one pass with the store. Safe from two threads of the pass."""

    def __init__(self, store: QueueFiles, terms: Terms, now: float, parallel: int = 1) -> None:
        """Take a slot, and recover the jobs of dead passes.

        Of what the pass claims, `parallel` jobs may be started at once. Raises QueueBusy if all
        slots are held.
        """
        self.store = store
        self.lock = store.lock
        self.terms = terms
        self.parallel = parallel
        self.pulled_in = 0
        """how many jobs a clock that ran ahead has enqueued, and are due now"""
        self._recovered = 0
        self._died: list[Row] = []
        self.started_at = now
        self._due = array("q")
        self._aside: dict[str, deque[int]] = {}
        self._suspects: deque[int] = deque()
        self._alone = b""  # the suspect that was claimed last: nothing runs next to it
        self._paused: frozenset[str] = frozenset()
        self._numbering = -1
        self._survey_at = time.monotonic() + _SURVEY_SECONDS
        self._held: dict[bytes, Claim] = {}
        self._put_back: set[bytes] = set()
        self._nothing_seen: object = None
        self._nothing_at = now
        self._next_at: int | None = None
        self._lists_own = False  # until then, the list is that of a dead pass
        self._start()

    @locked
    def _start(self) -> None:
        store = self.store
        store.read_new()
        self.slot = slots.take(store.path, self.parallel)
        try:
            self.history = HistoryWriter(store.path, store.lock, self.slot)
            self._recover()
            self.slot.write([])
            self._lists_own = True
        except BaseException:
            self.slot.release(clear=False)
            raise
        # Rows that are added from now on are not this pass's.
        self._last = next(reversed(store.view.index), b"")

    def take_recovered(self) -> tuple[int, list[Row]]:
        """Return how many jobs have been recovered since the last call, and which were started."""
        taken = self._recovered, self._died
        self._recovered, self._died = 0, []
        return taken

    def find_due(self, now: float) -> bool:
        """Take what has become due until `now` for due; tell whether there may be anything."""
        self.started_at = now
        self.store.rescue()
        may_be_due = self._look()
        if may_be_due is not None:
            return may_be_due
        self._survey_at = time.monotonic() + _SURVEY_SECONDS
        self._recover_again()
        return True

    @reading
    def _look(self) -> bool | None:
        """Tell whether jobs may be due; None if something has to be put right first."""
        view = self.store.view
        view.refresh()
        self._paused = paused.read(self.store.path)
        self._last = next(reversed(view.index), b"")
        self._due = array("q")
        self._numbering = -1
        if self._put_back:
            self._put_back.clear()
            self._nothing_seen = None
        now = self.started_at
        lost_passes = view.processing and time.monotonic() >= self._survey_at
        clock_was_ahead = view.latest_created > now + states.CLOCK_TOLERANCE
        if lost_passes or clock_was_ahead or view.has_torn_row():
            return None
        return view.soonest <= now and self._may_have_become_due()

    @locked
    def _recover_again(self) -> None:
        self.slot.check_at_path()
        self.store.read_new()
        self._recover()

    def _may_have_become_due(self) -> bool:
        """Tell jobs that are new, or due only now, from those that are due and not wanted here."""
        if self._nothing_seen != self._seen():
            return True
        if self._next_at is None:
            self._next_at = self.store.view.next_after(self._nothing_at)
        return self._next_at <= self.started_at

    def _seen(self) -> object:
        """Return what changes with everything that is read again."""
        view = self.store.view
        known = self.terms.count()
        return view.generation, view.rows.end, view.journal.end, self._last, self._paused, known

    def _recover(self) -> None:
        """Recover the jobs of dead passes.

        One that was started counts by its own handler's limit: where that is another pass's to
        know, the job is left to that pass.
        """
        view = self.store.view
        rows = {row.id: row for n in sorted(view.processing) if (row := view.row(n))}

        def is_open(job_id: str, attempt: int) -> bool:
            return job_id in rows and rows[job_id].state.attempts == attempt

        survey = slots.Survey(self.store.path, self.slot, is_open)
        try:
            self._recover_lost(survey, rows)
            survey.clear()
        finally:
            survey.release()

    def _recover_lost(self, survey: slots.Survey, rows: dict[str, Row]) -> None:
        now = self.started_at
        changes = clocks.enqueued_ahead(self.store.view, now)
        self.pulled_in += len(changes)
        changes += clocks.retries_ahead(self.store.view, now, self.terms.longest_wait)
        for row in rows.values():
            claim = (row.id, row.state.attempts)
            if claim in survey.alive or row.id.encode() in self._held:
                continue
            if claim in survey.not_started and claim not in survey.started:
                state = states.unclaim(row.state)
            elif not self.terms.wants(row.type):
                continue
            else:
                state = states.recover(row.state, self.terms.limit(row.type), now)
                self._died.append(row)
            assert state is not None
            row.state = state
            changes.append((row.id.encode(), encode_state(state)))
            self._recovered += 1
        if changes:
            self.store.change(changes)

    def claim(self, most: int) -> list[Claim]:
        """Claim up to `most` due jobs, earliest `run_at` first; recorded on return.

        Due is what was so when the pass began: a job that enqueues itself waits for the next one,
        and so does one that this pass has put back, whatever the clock says since.
        """
        while candidates := self._candidates(most):
            claims = self._claim(candidates)
            if claims:
                # Quick jobs come in batches: to show each of them takes its share of time only.
                self._fold(CHEAP_IN_A_PASS_SECONDS if len(claims) == 1 else 0.0)
                return claims
        return []

    @locked
    def _claim(self, candidates: list[Claim]) -> list[Claim]:
        """Claim those that still may be; recorded on return."""
        self.slot.check_at_path()
        self.store.read_new()
        self._paused = paused.read(self.store.path)
        room: dict[str, int] = {}
        claims = [c for c in candidates if self._is_due(c)]
        if self.terms.concurrency:
            index = self.store.view.index
            claims = [c for c in claims if self._has_room(c.row.type, index[c.key], room)]
        if claims:
            # First what will be started first; then what the watcher is giving back.
            self._held = {claim.key: claim for claim in claims} | self._held
            self._list()
            self.store.change([(c.key, c.state) for c in claims])
        return claims

    def _fold(self, cheap: float) -> None:
        """Fold where that is cheap; the lock was free before, so that nobody waits for both."""
        if self.store.is_fold_cheap(cheap, SHARE_OF_TIME):
            try:
                if self.slot.file.is_at_path():
                    self.lock.run(self.store.try_fold)
            except OSError:
                pass  # even if the lock can't be had: what was claimed is to be run

    def _list(self) -> None:
        self.slot.write([(c.row.id, c.row.state.attempts) for c in self._held.values()])

    def _is_due(self, claim: Claim) -> bool:
        """Look again, under the lock: another pass may have it, a person have cancelled it."""
        view = self.store.view
        number = view.index.get(claim.key)
        if number is None or view.when[number] > self.started_at:
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
            if states.may_kill(state) and claim.key != self._alone:
                return False  # another pass has died with it since
            claim.row.state = state
            claim.state = encode_state(state)
        return True

    @reading
    def _candidates(self, most: int) -> list[Claim]:
        """Read the next due rows, and make their claims, before the lock is taken.

        They hold unless `_is_due` finds that something has changed since. A job that may have
        killed its last pass comes after all others, and alone: it may kill this one.
        """
        found: list[Claim] = []
        size = 0
        view = self.store.view
        if self._alone in self._held:
            return found
        waiting = self._due or self._aside or self._suspects
        if not waiting or self._numbering != view.numbering or not view.whole:
            view.refresh()
            self._numbering = view.numbering
            self._paused = paused.read(self.store.path)
            if self._last and self._last not in view.index:  # it was purged meanwhile
                self._last = next(reversed(view.index), b"")
            self._due = view.due(self.started_at, view.index.get(self._last, -1) + 1)
            self._aside.clear()
            self._suspects.clear()
        room: dict[str, int] = {}
        if self._aside:
            self._bring_back(room)
        due = self._due
        while due and len(found) < most and size < _BATCH_BYTES:
            number = due.pop()
            claim = self._candidate(number, room)
            if claim is not None:
                found.append(claim)
                size += len(claim.row.payload)
        if not found and not (self._held and self.parallel > 1):
            while self._suspects and not found:
                claim = self._candidate(self._suspects.popleft(), room, alone=True)
                if claim is not None:
                    self._alone = claim.key
                    found.append(claim)
        if not found:
            self._nothing_seen, self._next_at = self._seen(), None
            self._nothing_at = self.started_at
        return found

    def _candidate(self, number: int, room: dict[str, int], *, alone: bool = False) -> Claim | None:
        """Return the claim of a due row; None if it isn't one that this pass may claim now.

        A job that may kill the pass is put aside, unless it will be `alone` in its batch.
        """
        view = self.store.view
        when = view.when
        if number >= len(when) or when[number] > self.started_at:
            return None
        row = view.row(number, ahead=_READ_AHEAD)
        state = states.claim(row.state) if row else None
        if row is None or state is None or not self.terms.wants(row.type):
            return None
        if self._put_back and row.id.encode() in self._put_back:
            return None
        if self._paused and self._is_paused(row.type):
            return None
        if state.error and states.may_kill(state) and not alone:
            self._suspects.append(number)
            return None
        if self.terms.concurrency and not self._has_room(row.type, number, room):
            return None
        try:
            payload = decode_json(row.payload or "{}")
        except ValueError:
            when[number] = NEVER
            view.unreadable.append(number)
            return None
        row.state = state
        return Claim(row, payload, view.generation)

    def _is_paused(self, job_type: str) -> bool:
        return job_type in self._paused or ALL in self._paused

    # -- how many of a type may be processing --

    def _has_room(self, job_type: str, number: int, room: dict[str, int]) -> bool:
        """Tell whether one more of the type may be claimed; if not, put it aside until one may.

        `room` is how many more may be, by type, as far as it has been counted in this batch.
        """
        if job_type not in self.terms.concurrency:
            return True
        if job_type not in room:
            room[job_type] = self._room(job_type)
        if room[job_type] <= 0:
            self._aside.setdefault(job_type, deque()).append(number)
            return False
        room[job_type] -= 1
        return True

    def _room(self, job_type: str) -> int:
        """Count how many more may be claimed now.

        A pass that runs one job at a time claims one only: another would take up another pass's
        place until its turn comes.
        """
        view = self.store.view
        rows = [view.row(number) for number in view.processing]
        taken = sum(row is not None and row.type == job_type for row in rows)
        return min(self.terms.concurrency[job_type] - taken, self.parallel)

    def _bring_back(self, room: dict[str, int]) -> None:
        """Make due again what was put aside, as far as there is room for it now."""
        for job_type, numbers in list(self._aside.items()):
            room[job_type] = self._room(job_type)
            count = max(min(room[job_type], len(numbers)), 0)
            self._due.extend(reversed([numbers.popleft() for _ in range(count)]))
            if not numbers:
                del self._aside[job_type]

    @locked
    @even_if_moved
    @with_spare
    def record(self, claim: Claim, state: states.State) -> states.State | None:
        """Record an attempt's outcome: on the disk on return.

        Returns what was recorded: without the result where that finds no room on a full disk, for
        the work is done and must not run again. None, and nothing recorded, where the attempt is
        no longer the current one.
        """
        self.store.catch_up()
        recorded = None
        if self._is_current(claim):
            recorded = state
            try:
                self._write([(claim, state)], last=True)
            except StoreError as e:
                recorded = states.without_result(state, "result not kept: the disk is full")
                if recorded is None or not self._has_made_room(e, [claim]):
                    raise
                self.store.change([(claim.key, encode_state(recorded))])
        self._forget(claim, recorded)
        return recorded

    def record_all(self, ended: list[tuple[Claim, states.State]]) -> list[states.State | None]:
        """Record several outcomes by one write; otherwise as `record`."""
        return self._record_all(ended) or [self.record(claim, state) for claim, state in ended]

    @locked
    @even_if_moved
    @with_spare
    def _record_all(self, ended: list[tuple[Claim, states.State]]) -> list[states.State | None]:
        """Return what was recorded; nothing if the slot's room on the disk had to be given up."""
        self.store.catch_up()
        recorded = [state if self._is_current(claim) else None for claim, state in ended]
        current = [(c, s) for (c, _), s in zip(ended, recorded, strict=True) if s]
        try:
            self._write(current, last=True)
        except StoreError as e:
            if not self._has_made_room(e, [c for c, _ in current]):
                raise
            return []
        for (claim, _), state in zip(ended, recorded, strict=True):
            self._forget(claim, state)
        return recorded

    def _forget(self, claim: Claim, recorded: states.State | None) -> None:
        if recorded is not None and recorded.status == states.PENDING:
            self._put_back.add(claim.key)
        self._held.pop(claim.key, None)

    @locked
    @even_if_moved
    @with_spare
    def unclaim(self, claims: list[Claim], error: str = "") -> None:
        """Put jobs back as they were, their attempts returned, for whoever claims them next.

        The slot's list is what is still held afterwards: another pass may claim one of these
        under the same attempt's number, and die.
        """
        self.store.catch_up()
        changes = []
        for claim in claims:
            state = states.unclaim(decode_state(claim.state), error)
            if state is not None and self._is_current(claim):
                changes.append((claim, state))
        if changes:
            self._write(changes)
        for claim in claims:
            self._held.pop(claim.key, None)
        if len(self._held) < self.slot.claims:
            try:
                self._list()
            except OSError:
                pass  # the jobs are given back; a list too long can wait

    def _is_current(self, claim: Claim) -> bool:
        view = self.store.view
        state = view.records.get(claim.key)
        if state is None:
            row = view.find(claim.key)
            state = encode_state(row.state) if row else None
        return state == claim.state

    def _write(self, ended: list[tuple[Claim, states.State]], *, last: bool = False) -> None:
        changes = [(claim.key, encode_state(state)) for claim, state in ended]
        try:
            self.store.change(changes, last=last)
        except StoreError as e:
            if not self._has_made_room(e, [claim for claim, _ in ended]):
                raise
            self.store.change(changes)

    def _has_made_room(self, error: StoreError, claims: list[Claim]) -> bool:
        """Give up the slot's room where that is what is wanting, and nothing else.

        Tells whether the change may be tried again: nothing of it was made.
        """
        if error.errno not in NO_ROOM:
            return False
        self.slot.give_up_room()
        self.store.read_new()
        return all(self._is_current(claim) for claim in claims)

    def is_published(self) -> bool:
        """Tell whether the file says what the journal says."""
        return self.store.view.journal.end == 0

    def idle(self) -> None:
        """Nothing is in hand: show what was done, and list nothing any more.

        A job that was put back, or requeued, may be claimed by another pass under the attempt's
        number that stands in the list, and be lost there.
        """
        self.publish()
        if self.slot.claims:
            self.lock.run(self._list)

    def publish(self) -> None:
        """Fold where that is cheap, so that `cat` shows what is running, and write the history."""
        self.history.flush()
        if not self.is_published():
            self._fold(CHEAP_IN_A_PASS_SECONDS)

    def finish(self) -> Exception | None:
        """Fold and let go of the slot; returns the error of a fold that has to wait."""
        try:
            return self.lock.run(self.store.try_fold)
        finally:
            self.store.rescue()
            self.abandon()

    def slot_fd(self) -> int:
        """Return the descriptor whose lock tells others that this pass is alive."""
        return self.slot.file.fd

    def check_slot(self) -> None:
        """Raise StoreError if the slot's lock is gone: other passes may run what was claimed."""
        if not self.slot.file.is_ours():
            self.slot.require()

    def abandon(self) -> None:
        """Let go of the slot: whatever is still claimed is for the next pass to recover."""
        self.history.close()
        self.slot.release(clear=self._lists_own and not self._held)
