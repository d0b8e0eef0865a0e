"""Makes the jobs of dead passes pending again, and corrects times that a wrong clock has set.

A `processing` job is recovered if no live pass lists its attempt. The attempt counts: the job runs
again after its backoff, or fails if that was its last attempt. If the dead pass's list shows that
the job had not started, it is returned, and due at once. A job that was to be stopped is cancelled.
"""

from __future__ import annotations

import os
import time

from dbbasic_queue.model import states
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.store import clocks
from dbbasic_queue.store.claiming import slots
from dbbasic_queue.store.claiming.slots import Slot, open_slot, read_claims
from dbbasic_queue.store.disk.lock import try_lock, unlock
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.store.protocol import Terms
    from dbbasic_queue.store.writing.queue_files import QueueFiles

_SURVEY_SECONDS = 1.0


class Recovery:
    """Recovers jobs for one pass, and counts them until the pass reports them."""

    def __init__(self, store: QueueFiles, terms: Terms) -> None:
        self._store = store
        self._terms = terms
        self._recovered = 0
        self._died: list[tuple[Row, State]] = []
        """the recovered jobs that had started or were to be stopped, with their new states"""
        self._pulled_in = 0
        self._next_survey_at = 0.0  # on the monotonic clock

    def is_needed(self, now: float) -> bool:
        """Return whether to acquire the lock to find dead passes, correct times or end a torn row.

        While jobs are processing, dead passes are looked for once a second. `now` is in Unix
        seconds. Call it through `lock.read`.
        """
        view = self._store.view
        return bool(
            (view.processing and time.monotonic() >= self._next_survey_at)
            or view.latest_created > now + states.CLOCK_TOLERANCE_SECONDS
            or view.has_torn_row()
        )

    def run(self, now: float, slot: Slot, held: Container[bytes]) -> None:
        """Recover the jobs of dead passes, and correct times; on the disk on return.

        Call it under the lock, after reading what is new. `slot` is the pass's own, and `held`
        contains the ids of the jobs that it has claimed. How many attempts a job has depends on its
        handler. So a started job of a type that this pass doesn't want is left to a pass that does.
        """
        self._next_survey_at = time.monotonic() + _SURVEY_SECONDS
        view = self._store.view
        rows = {row.id: row for n in sorted(view.processing) if (row := view.row(n))}

        def is_open(job_id: str, attempt: int) -> bool:
            return job_id in rows and rows[job_id].state.attempts == attempt

        survey = Survey(self._store.path, slot, is_open)
        try:
            self._change_all(survey, rows, held, now)
            survey.clear()
        finally:
            survey.release()

    def _change_all(
        self, survey: Survey, rows: dict[str, Row], held: Container[bytes], now: float
    ) -> None:
        view = self._store.view
        changes = clocks.enqueued_ahead(view, now)
        self._pulled_in += len(changes)
        changes += clocks.retries_ahead(view, now, self._terms.longest_wait)
        for row in rows.values():
            claim = (row.id, row.state.attempts)
            if claim in survey.alive or row.id.encode() in held:
                continue
            was_started = claim in survey.started or claim not in survey.not_started
            if states.is_to_stop(row.state):
                attempts = row.state.attempts - (not was_started)
                state = states.stop(row.state, attempts)
            elif not was_started:
                state = states.unclaim(row.state)
            elif self._terms.wants(row.type):
                seconds = self._terms.wait(row.type, row.state.attempts)
                retry_at = states.retry_at(now, seconds)
                state = states.recover(row.state, self._terms.limit(row.type), retry_at)
            else:
                continue
            assert state is not None
            if was_started or state.status == states.CANCELLED:
                self._died.append((row, state))
            changes.append((row.id.encode(), encode_state(state)))
            self._recovered += 1
        if changes:
            self._store.change(changes)

    def take_recovered(self) -> tuple[int, list[tuple[Row, State]]]:
        """Return how many jobs were recovered since the last call, and those that had started.

        Each of the latter is its row as claimed, and its new state: pending, failed if no attempt
        is left, or cancelled if a stop was requested.
        """
        taken = self._recovered, self._died
        self._recovered, self._died = 0, []
        return taken

    def take_pulled_in(self) -> int:
        """Return how many jobs were pulled in since the last call.

        They were enqueued to run at once, but while the clock was ahead. Now they are due.
        """
        taken, self._pulled_in = self._pulled_in, 0
        return taken


class Survey:
    """What the slots list. Create it under the queue's lock, so that every list is complete.

    Claims are (job id, attempt). Those of dead passes count only if they are open, that is if the
    job is still processing this attempt. The slots of dead passes stay locked until `release`.

    `alive`       the claims of the other live passes
    `started`     claims that dead passes may have started: of each, the first `parallel` open ones
    `not_started` the other open claims of dead passes
    """

    def __init__(self, queue: str, own: Slot, is_open: Callable[[str, int], bool]) -> None:
        self.alive: set[tuple[str, int]] = set()
        self.started: set[tuple[str, int]] = set()
        self.not_started: set[tuple[str, int]] = set()
        self._is_open = is_open
        self._dead: list[OpenFile] = []
        # Until this pass has written its own list, its slot has that of a dead pass. Later, the
        # open claims in it are those that this pass holds: recovery skips them.
        self._add_dead(*read_claims(own.file))
        try:
            for number in range(1, slots.SLOTS + 1):
                file = open_slot(queue, number, os.O_RDWR)
                if file is not None and file.identity != own.file.identity:
                    self._read(file)
        except BaseException:
            self.release()
            raise

    def _read(self, file: OpenFile) -> None:
        if not try_lock(file.fd):
            self.alive.update(read_claims(file)[0])
            return
        self._dead.append(file)  # first, so that `release` unlocks it even after an error
        claims, parallel = read_claims(file)
        if claims:
            self._add_dead(claims, parallel)
        else:
            self._dead.pop()
            unlock(file)

    def _add_dead(self, claims: list[tuple[str, int]], parallel: int) -> None:
        still_open = [claim for claim in claims if self._is_open(*claim)]
        self.started.update(still_open[:parallel])
        self.not_started.update(still_open[parallel:])

    def clear(self) -> None:
        """Empty the lists of dead passes: their jobs were recovered, and that is on the disk."""
        for file in self._dead:
            os.ftruncate(file.fd, 0)

    def release(self) -> None:
        """Release the slots of dead passes, whether or not their jobs were recovered."""
        while self._dead:
            unlock(self._dead.pop())
