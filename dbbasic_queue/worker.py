"""A pass: take a slot, recover, claim, run, record, fold.

Handlers run without the lock, one at a time; each outcome is on the disk before the next handler
begins. A batch of claims grows while jobs are quick and is one while they are slow; and while a
job takes long, a watcher gives back what its pass has not begun and folds, so that other passes
share the work and `cat` shows what is running.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque

from dbbasic_queue import job, reports
from dbbasic_queue.attempt import INTERRUPTED, Attempts
from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.handlers import Handler, check_max_attempts
from dbbasic_queue.interrupts import Interrupts
from dbbasic_queue.store.claims import Claim, Claims, Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from logging import Logger
    from typing import Any

    from dbbasic_queue.store.store import Store

    AnyHandlers = Mapping[str, Callable[..., Any]]

_BATCH_SECONDS = 0.05
_BATCH_MOST = 1024
_BATCH_GROWTH = 8
_SLOW = 0.2
_WATCH = 0.1
_LOOK = 0.05


def check(handlers: AnyHandlers, max_attempts: int) -> None:
    """Raise InvalidHandlers if a pass could not work with these."""
    if not hasattr(handlers, "get") or not hasattr(handlers, "items"):
        raise InvalidHandlers(
            f"handlers must map job types to callables, and {type(handlers).__name__} does not: "
            'give a dict such as {"send_email": send_email}'
        )
    for job_type, handler in handlers.items():
        if handler is not None and not callable(handler):
            raise InvalidHandlers(
                f"the handler for {job_type!r} is {type(handler).__name__}, which cannot be "
                "called: give a function that takes the payload"
            )
    check_max_attempts(max_attempts)


class Pass:
    """One run of a worker over what is due."""

    def __init__(
        self,
        store: Store,
        handlers: AnyHandlers,
        max_attempts: int,
        clock: Callable[[], float],
        max_result: int,
        *,
        only: bool = False,
        linger: float = 0,
        until_complete: bool = False,
    ) -> None:
        self.store = store
        self.clock = clock
        self.linger = linger
        self.until_complete = until_complete
        self.interrupts = Interrupts()
        self.attempts = Attempts(self.interrupts, max_attempts, max_result, clock)
        self.batch: deque[Claim] = deque()
        self.begun_at = math.inf
        self.log: Logger | None = None
        self.counts = dict.fromkeys(("completed", "failed", "retried", "delayed", "recovered"), 0)
        self._handlers = handlers
        self._policies: dict[str, Handler | None] = {}
        self._only = only

    # -- what the store has to know of the handlers --

    def handler(self, job_type: str) -> Handler | None:
        """Return the handler of a type with its policy, or None."""
        if job_type not in self._policies:
            found = self._handlers.get(job_type)
            handler = found if isinstance(found, Handler) or found is None else Handler(found)
            self._policies[job_type] = handler
        return self._policies[job_type]

    def _limit(self, job_type: str) -> int:
        return self.attempts.limit(self.handler(job_type))

    def _longest_wait(self, job_type: str, attempt: int) -> float:
        handler = self.handler(job_type)
        if handler is None:  # what another worker's policy explains is not ours to say
            return job.LATEST if self._only else job.backoff(attempt)
        return handler.longest_wait(attempt)

    def _wants(self, job_type: str) -> bool:
        return not self._only or self.handler(job_type) is not None

    # -- the pass --

    def run(self) -> dict[str, int]:
        """Work through what is due; return how many jobs ended how."""
        terms = Terms(self._limit, self._longest_wait, self._wants)
        now = self.clock()
        if not self.linger and not self.store.has_work(now, self._longest_wait):
            self._report_unreadable()
            return self.counts
        with self.interrupts:
            claims = Claims(self.store, terms, now)
            try:
                self._report_recovered(claims)
                self._work(claims)
            except BaseException:
                if os.getpid() == self.attempts.process:
                    claims.release()
                raise
            unfolded = claims.finish()
        self._report_unreadable()
        if unfolded is not None and (log := reports.logger()):
            reports.not_folded(log, unfolded)
        self.interrupts.pass_on()
        return self.counts

    def _work(self, claims: Claims) -> None:
        end = time.monotonic() + self.linger
        watcher = Watcher(self, claims)
        try:
            self._work_off(claims, watcher)
            while not self.interrupts.received and time.monotonic() < end:
                if self.until_complete and self.store.is_complete():
                    break
                if claims.renew(self.clock()):
                    self._report_recovered(claims)
                    self._work_off(claims, watcher)
                else:
                    claims.rest()
                    time.sleep(_LOOK)
        finally:
            watcher.stop()
        self.give_back(claims)

    def _work_off(self, claims: Claims, watcher: Watcher) -> None:
        """Claim and run until nothing that was due is left."""
        size = 1
        while not self.interrupts.received and (batch := claims.claim(size)):
            began = time.monotonic()
            self.batch.extend(batch)
            self.log = reports.logger()
            if len(batch) > 1 or not claims.is_shown():
                watcher.start_once()
            while self.batch and not self.interrupts.received:
                try:
                    claim = self.batch.popleft()
                except IndexError:  # the watcher has just given it back
                    break
                self._execute(claims, claim)
            seconds = max(time.monotonic() - began, 1e-6) / len(batch)
            most = min(_BATCH_MOST, size * _BATCH_GROWTH)
            size = max(1, min(int(_BATCH_SECONDS / seconds), most))

    def give_back(self, claims: Claims) -> None:
        """Give back the claims that have not been begun."""
        unbegun = []
        while self.batch:
            try:
                unbegun.append(self.batch.popleft())
            except IndexError:
                break
        try:
            claims.give_back(unbegun)
        except BaseException:
            self.batch.extendleft(reversed(unbegun))
            raise

    def _execute(self, claims: Claims, claim: Claim) -> None:
        row = claim.row
        self.begun_at = began = time.monotonic()
        try:
            outcome, after = self.attempts.run(self.handler(row.type), row, claim.payload)
        finally:
            self.begun_at = math.inf
        if outcome == INTERRUPTED or after is None:
            claims.give_back([claim], "interrupted: the pass was stopped")
            return
        recorded = claims.settle(claim, after)
        if recorded is not None:
            self.counts[outcome] += 1
            if self.log is not None:
                seconds = time.monotonic() - began
                reports.outcome(self.log, outcome, row.id, row.type, recorded, seconds)
        elif self.log is not None:
            reports.late(self.log, row.id, row.type, row.state.attempts)

    def _report_recovered(self, claims: Claims) -> None:
        recovered, lost = claims.take_recovered()
        self.counts["recovered"] += recovered
        self.counts["failed"] += len(lost)
        if lost and (log := reports.logger()):
            for row in lost:
                reports.outcome(log, "failed", row.id, row.type, row.state, None)

    def _report_unreadable(self) -> None:
        if log := reports.logger():
            reports.unreadable(log, self.store)


class Watcher:
    """While a job takes long: gives back what its pass has not begun, and folds."""

    def __init__(self, running: Pass, claims: Claims) -> None:
        self._pass = running
        self._claims = claims
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start_once(self) -> None:
        """Begin to watch, at the first batch."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="queue-watcher", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch; nothing is done in its name afterwards."""
        self._stopped.set()
        if self._thread is not None and os.getpid() == self._pass.attempts.process:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_WATCH):
            if time.monotonic() - self._pass.begun_at < _SLOW:
                continue
            try:
                self._pass.give_back(self._claims)
                self._claims.show()
            except OSError:
                return  # the pass meets the same error itself, where it can be raised
