"""What a pass holds: its slot, the jobs that it has claimed, and the right to record outcomes.

A claim is written to the slot's list and then to the journal, without releasing the queue's lock in
between. So a `processing` job that no live pass lists may be recovered. An outcome is accepted only
while the job's state is, byte for byte, the one that its claim wrote, or that state marked by a
request to stop the job. Then a job that hasn't completed is cancelled, whatever its outcome is.
"""

from __future__ import annotations

import errno

from dbbasic_queue.errors import QueueError, StoreError
from dbbasic_queue.model import states
from dbbasic_queue.model.records import decode_state, encode_state
from dbbasic_queue.store.claiming import slots
from dbbasic_queue.store.claiming.due import DueJobs
from dbbasic_queue.store.claiming.recovery import Recovery
from dbbasic_queue.store.disk.files import NO_SPACE
from dbbasic_queue.store.disk.lock import even_if_moved, locked, reading
from dbbasic_queue.store.history import HistoryWriter
from dbbasic_queue.store.output import OutputWriter
from dbbasic_queue.store.progress import ProgressWriter
from dbbasic_queue.store.writing.fold_costs import CHEAP_IN_A_PASS_SECONDS, SHARE_OF_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, TypeVar

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Claim, Terms
    from dbbasic_queue.store.writing.queue_files import QueueFiles

    P = ParamSpec("P")
    R = TypeVar("R")

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def with_spare_descriptors(
    method: Callable[Concatenate[Claims, P], R],
) -> Callable[Concatenate[Claims, P], R]:
    """Make a method start again, with the slot's spare descriptors closed, if none was free.

    The method must open its files before it changes anything.
    """

    def call(self: Claims, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except OSError as e:
            if e.errno not in _NO_DESCRIPTOR or not self.slot.close_spare_descriptors():
                raise
        return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


class Claims:
    """The jobs that one pass has claimed. Two threads of the pass may use it at once."""

    def __init__(self, store: QueueFiles, terms: Terms, now: float, parallel: int = 1) -> None:
        """Acquire a slot, and recover the jobs of dead passes.

        The pass may start `parallel` jobs at once. Raises QueueBusy if all slots are held.
        """
        self.store = store
        self.lock = store.lock
        self.looked_at = now
        self._due = DueJobs(store, terms, parallel, now)
        self._recovery = Recovery(store, terms)
        self._held: dict[bytes, Claim] = {}
        """job id -> claim whose outcome isn't recorded yet, in the order of the slot's list"""
        self._lists_own = False
        """whether the slot's list is this pass's own, and no longer that of a dead pass"""
        self._start(parallel, terms.types())

    @locked
    def _start(self, parallel: int, types: str) -> None:
        self.store.read_new()
        self.store.require_here()
        self.slot = slots.acquire(self.store.path, parallel, types)
        try:
            files = self.store.path, self.lock, self.slot.has_reserved_space
            self.history = HistoryWriter(*files)
            self.output = OutputWriter(*files)
            self.progress = ProgressWriter(*files)
            self._recovery.run(self.looked_at, self.slot, self._held)
            self.slot.write([])
            self._lists_own = True
        except BaseException:
            self.slot.release(clear=False)
            raise
        self._due.end_at_last_row()

    # -- which jobs --

    def find_due(self, now: float) -> bool:
        """Look for jobs that are due at `now`; return False if there are none to claim.

        True means that there may be some. Recovers the jobs of dead passes first, if needed.
        """
        self.looked_at = now
        self.store.rescue()
        may_be_due = self._look()
        if may_be_due is None:
            self._recover()
            return True
        return may_be_due

    @reading
    def _look(self) -> bool | None:
        """Return whether jobs may be due; None if recovery is needed first."""
        self._due.look(self.looked_at)
        self.store.require_here()
        if self._recovery.is_needed(self.looked_at):
            return None
        return self._due.may_exist()

    @locked
    def _recover(self) -> None:
        self.slot.require_path()
        self.store.read_new()
        self.store.require_here()
        self._recovery.run(self.looked_at, self.slot, self._held)

    def take_recovered(self) -> tuple[int, list[tuple[Row, states.State]]]:
        """Return how many jobs were recovered since the last call, and those that had started."""
        return self._recovery.take_recovered()

    def take_pulled_in(self) -> int:
        """Return how many jobs were pulled in since the last call.

        They were enqueued to run at once, but while the clock was ahead. Now they are due.
        """
        return self._recovery.take_pulled_in()

    # -- claiming them --

    def claim(self, most: int, now: float) -> list[Claim]:
        """Claim up to `most` due jobs, the highest priority and the earliest `run_at` first.

        On the disk on return. See `due` for which jobs those are.
        """
        while candidates := self._due.candidates(most, self._held, now):
            claims = self._claim(candidates)
            if claims:
                # A batch usually means quick jobs, and many such calls per second. Then fold only
                # if that takes less than SHARE_OF_TIME of the time since the last fold.
                self._fold(CHEAP_IN_A_PASS_SECONDS if len(claims) == 1 else 0.0)
                return claims
        return []

    @locked
    def _claim(self, candidates: list[Claim]) -> list[Claim]:
        """Claim the candidates that are still due; on the disk on return."""
        self.slot.require_path()
        self.store.read_new()
        self.store.require_here()
        claims = self._due.recheck(candidates)
        if claims:
            # In the order in which they will be started: recovery counts the first ones as started.
            # Those held before come last: running coroutines, or jobs that the ticker is about to
            # unclaim.
            self._held = {claim.key: claim for claim in claims} | self._held
            self._list()
            self.store.change([(c.key, c.state) for c in claims])
        return claims

    @locked
    def claim_job(self, job_id: str, now: float) -> Claim | None:
        """Claim one pending job, whether it is due or not; on the disk on return.

        Returns None if that isn't possible; see `DueJobs.claim_of`.
        """
        self.slot.require_path()
        self.store.read_new()
        self.store.require_here()
        claim = self._due.claim_of(job_id, now)
        if claim is not None:
            self._held = {claim.key: claim} | self._held
            self._list()
            self.store.change([(claim.key, claim.state)])
        return claim

    def _list(self) -> None:
        """Write the claims that are held to the slot's list. Call it under the lock."""
        self.slot.write([(c.row.id, c.row.state.attempts) for c in self._held.values()])

    def _fold(self, cheap_seconds: float) -> None:
        """Fold if that is cheap.

        The lock is released after the claim and acquired again for the fold, so that no process
        has to wait for both.
        """
        if self.store.is_fold_cheap(cheap_seconds, SHARE_OF_TIME):
            try:
                if self.slot.file.is_at_path():
                    self.lock.run(self.store.try_fold)
            except OSError:
                pass  # such as QueueBusy: the claimed jobs must run anyway

    # -- requests to stop them --

    def may_start(self, claim: Claim) -> bool:
        """Return False if the job's state has changed since the claim, as far as was read.

        Then a stop was requested, or the claim was returned by a call that raised.
        """
        return self.store.view.records.get(claim.key, claim.state) == claim.state

    @reading
    def is_to_stop(self, row: Row) -> bool:
        """Return whether a stop was requested for a claimed job. `row` is that of its claim.

        Returns False if the files can't be read now: the caller asks again.
        """
        try:
            self.store.view.refresh()
            return self._present(row.id.encode()) == _marked(row)
        except QueueError:
            return False

    # -- their outcomes --

    @locked
    @even_if_moved
    @with_spare_descriptors
    def record(self, claim: Claim, state: states.State) -> states.State | None:
        """Record an attempt's outcome; on the disk on return.

        Returns the recorded state. That is `cancelled` if a stop was requested and the job hasn't
        completed. If the disk is too full for the result, the outcome is recorded without it: the
        work is done and must not run again. Returns None, and records nothing, if a newer attempt
        has replaced this one.
        """
        self.store.catch_up()
        recorded = self._accepted(claim, state)
        if recorded is not None:
            try:
                self._write([(claim, recorded)], last=True)
            except StoreError as e:
                # If the disk is still full, although `_write` has freed the slot's reserved space,
                # do without the result.
                recorded = states.without_result(recorded, "result not kept: the disk is full")
                if recorded is None or not self._free_space_to_retry(e, [claim]):
                    raise
                self.store.change([(claim.key, encode_state(recorded))])
        self._forget(claim, recorded)
        return recorded

    def record_all(self, ended: list[tuple[Claim, states.State]]) -> list[states.State | None]:
        """Record several outcomes in one write; otherwise like `record`."""
        return self._record_all(ended) or [self.record(claim, state) for claim, state in ended]

    @locked
    @even_if_moved
    @with_spare_descriptors
    def _record_all(self, ended: list[tuple[Claim, states.State]]) -> list[states.State | None]:
        """Record all outcomes, and return the recorded states.

        Returns [], and records nothing, if the disk is too full even with the slot's reserved
        space. Then the caller records the outcomes one by one, without results if necessary.
        """
        self.store.catch_up()
        recorded = [self._accepted(claim, state) for claim, state in ended]
        current = [(c, s) for (c, _), s in zip(ended, recorded, strict=True) if s]
        try:
            self._write(current, last=True)
        except StoreError as e:
            if not self._free_space_to_retry(e, [c for c, _ in current]):
                raise
            return []
        for (claim, _), state in zip(ended, recorded, strict=True):
            self._forget(claim, state)
        return recorded

    def _forget(self, claim: Claim, recorded: states.State | None) -> None:
        if recorded is not None and recorded.status != states.COMPLETED:
            self._due.put_back.add(claim.key)
        self._held.pop(claim.key, None)

    @locked
    @even_if_moved
    @with_spare_descriptors
    def unclaim(self, claims: list[Claim], error: str = "") -> None:
        """Make claimed jobs pending again without counting their attempts; on the disk on return.

        A job for which a stop was requested is cancelled instead. `error`, if given, becomes the
        jobs' error. Also removes every job from the slot's list that isn't held any more. Otherwise
        another pass could claim such a job under the same attempt number, and die, and the job
        would seem to be this pass's.
        """
        self.store.catch_up()
        changes = []
        for claim in claims:
            state = states.unclaim(decode_state(claim.state), error)
            if state is not None and (state := self._accepted(claim, state)):
                changes.append((claim, state))
        if changes:
            self._write(changes)
        for claim in claims:
            self._held.pop(claim.key, None)
        if len(self._held) < self.slot.claim_count:
            try:
                self._list()
            except OSError:
                pass  # the jobs are pending again; a list that is too long can wait

    def _accepted(self, claim: Claim, state: states.State) -> states.State | None:
        """Return the state to record if an attempt ends in `state`; None if it was replaced."""
        present = self._present(claim.key)
        if present == claim.state:
            return state
        if present != _marked(claim.row):
            return None
        if state.status == states.COMPLETED:
            return state
        return states.stop(claim.row.state, state.attempts)

    def _present(self, key: bytes) -> bytes | None:
        """Return the present state of a job, encoded, as far as the files were read."""
        view = self.store.view
        state = view.records.get(key)
        if state is None:
            row = view.find(key)
            state = encode_state(row.state) if row else None
        return state

    def _write(self, ended: list[tuple[Claim, states.State]], *, last: bool = False) -> None:
        """Record new states. If the disk is full, free the slot's reserved space and try again."""
        changes = [(claim.key, encode_state(state)) for claim, state in ended]
        try:
            self.store.change(changes, last=last)
        except StoreError as e:
            if not self._free_space_to_retry(e, [claim for claim, _ in ended]):
                raise
            self.store.change(changes)

    def _free_space_to_retry(self, error: StoreError, claims: list[Claim]) -> bool:
        """Free the disk space that the slot reserves, if the disk is full.

        Returns True if the failed change left nothing behind and can be retried.
        """
        if error.errno not in NO_SPACE:
            return False
        self.slot.free_reserved_space()
        self.store.read_new()
        return all(self._present(c.key) in (c.state, _marked(c.row)) for c in claims)

    # -- showing what was done --

    def is_published(self) -> bool:
        """Return whether the queue's file shows what the journal says."""
        return self.store.view.journal.end == 0

    def publish(self) -> None:
        """Write the history, and fold if that is cheap, so that `cat` shows what is running."""
        self.history.flush()
        if not self.is_published():
            self._fold(CHEAP_IN_A_PASS_SECONDS)

    def idle(self) -> None:
        """Publish, and empty the slot's list. Called while no job is due or running.

        Otherwise another pass could claim a delayed or requeued job under an attempt number that
        the list still has, and die, and the job would seem to be this pass's.
        """
        self.publish()
        if self.slot.claim_count:
            self.lock.run(self._list)

    # -- the slot, and the end of the pass --

    def slot_fd(self) -> int:
        """Return the descriptor whose lock tells other passes that this one is alive."""
        return self.slot.file.fd

    def check_slot(self) -> None:
        """Raise StoreError if the slot's lock is lost: other passes may run the claimed jobs."""
        if not self.slot.file.is_ours():  # checked here, too, to save two calls per job
            self.slot.require_lock()

    def finish(self) -> Exception | None:
        """Fold and release the slot. Returns the error if the fold failed: nothing is lost then."""
        try:
            return self.lock.run(self.store.try_fold)
        finally:
            self.store.rescue()
            self.abandon()

    def abandon(self) -> None:
        """Release the slot. The next pass recovers the jobs that are still claimed."""
        self.history.close()
        self.slot.release(clear=self._lists_own and not self._held)


def _marked(row: Row) -> bytes:
    """Return the encoded state of a claimed job for which a stop was requested."""
    state = states.request_stop(row.state)
    assert state is not None
    return encode_state(state)
