"""A pass: take a slot, recover, claim, run, record, fold.

Handlers run without the lock, one at a time; each outcome is on the disk before the next handler
begins. A batch of claims grows while jobs are quick and is one while they are slow; and while a
job takes long, a watcher gives back what its pass has not started and folds, so that other passes
share the work and `cat` shows what is running.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections import deque

from dbbasic_queue.errors import InvalidHandlers, StoreError
from dbbasic_queue.handlers import Handler
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import check_count
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.attempt import INTERRUPTED, Attempts
from dbbasic_queue.passes.signals import Interrupts
from dbbasic_queue.passes.ticker import Ticker
from dbbasic_queue.store.protocol import Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from logging import Logger
    from typing import Any

    from dbbasic_queue.store.protocol import Claim, Claims, Store

    AnyHandlers = Mapping[str, Callable[..., Any]]

_BATCH_SECONDS = 0.05
_BATCH_MOST = 256
_BATCH_GROWTH = 8
POLL_SECONDS = 0.05
_SLOW = 0.2
_QUIET = 60.0
STOPPED = "interrupted: the pass was stopped"

ALL, PLAIN, COROUTINES = "all", "plain", "coroutines"
COUNTS = ("completed", "failed", "retried", "delayed", "recovered")


def check(handlers: AnyHandlers, max_attempts: int, workers: int = 1) -> None:
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
        if handler is not None:
            Handler.of(handler)
    check_count(max_attempts, "max_attempts")
    check_count(workers, "workers")


def check_thread(handlers: AnyHandlers) -> None:
    """Raise InvalidHandlers if a pass with these cannot run in this thread."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return
    for job_type, handler in handlers.items():
        if handler is not None and Handler.of(handler).is_coroutine:
            raise InvalidHandlers(
                f"the handler for {job_type!r} is a coroutine function, and an event loop runs in "
                "this thread already: await asyncio.to_thread(process_jobs, handlers)"
            )


class Pass:
    """One run of a worker over what is due.

    `share` is which of the jobs it takes where several passes of one call divide them: all, those
    of plain functions, or those of coroutine functions. `supervisor` is the process that has
    forked this one for the pass, or 0.
    """

    parallel = 1

    def __init__(
        self,
        store: Store,
        handlers: AnyHandlers,
        max_attempts: int,
        clock: Callable[[], float],
        max_result: int,
        *,
        skip_unknown: bool = False,
        linger: float = 0,
        until_complete: bool = False,
        share: str = ALL,
        supervisor: int = 0,
    ) -> None:
        self.store = store
        self.clock = clock
        self.linger = linger
        self.until_complete = until_complete
        self.interrupts = Interrupts(supervisor)
        self.attempts = Attempts(self.interrupts, max_attempts, max_result, clock)
        self.batch: deque[Claim] = deque()
        self.started_at = math.inf
        self.in_doubt = False
        """whether the batch was to be given back, and the system refused: a part may be so"""
        self.log: Logger | None = None
        self.counts = dict.fromkeys(COUNTS, 0)
        self._quiet_until = 0.0
        self._handlers = handlers
        self._policies: dict[str, Handler] = {}
        self._concurrency: dict[str, int] = {}
        self._skip_unknown = skip_unknown
        self._share = share

    # -- what the store has to know of the handlers --

    def handler(self, job_type: str) -> Handler | None:
        """Return the handler of a type with its policy, or None.

        That there is none is not remembered: the program may register it later.
        """
        policy = self._policies.get(job_type)
        if policy is None and (found := self._handlers.get(job_type)) is not None:
            policy = self._policies[job_type] = Handler.of(found)
            if policy.concurrency is not None:
                self._concurrency[job_type] = policy.concurrency
        return policy

    def _limit(self, job_type: str) -> int:
        return self.attempts.limit(self.handler(job_type))

    def _longest_wait(self, job_type: str, attempt: int) -> float:
        handler = self.handler(job_type)
        if handler is None:  # what another worker's policy explains is not ours to say
            return states.LATEST if self._skip_unknown else states.backoff(attempt)
        return handler.longest_wait(attempt)

    def _wants(self, job_type: str) -> bool:
        handler = self.handler(job_type)
        if handler is None:
            return not self._skip_unknown and self._share != COROUTINES
        return self._share == ALL or handler.shares_loop == (self._share == COROUTINES)

    # -- the pass --

    def run(self) -> dict[str, int]:
        """Work through what is due; return how many jobs ended how."""
        count = getattr(self._handlers, "__len__", lambda: 0)
        terms = Terms(self._limit, self._longest_wait, self._wants, self._concurrency, count)
        now = self.clock()
        exists = self.store.exists()
        if not exists and (log := log_lines.logger()):
            log_lines.no_queue(log, self.store.path)
        if not self.linger and not (exists and self.has_work(now)):
            self._report_unreadable()
            return self.counts
        with self.interrupts:
            if not exists:
                if not self._wait_for_queue():
                    self.interrupts.forward_signals()
                    return self.counts
                now = self.clock()
            claims: Claims = self.store.open_claims(terms, now, self.parallel)
            try:
                self._report_recovered(claims)
                self._work(claims)
            except BaseException:
                if os.getpid() == self.attempts.process:
                    claims.abandon()
                raise
            finally:
                self.attempts.close()
            unfolded = claims.finish()
            self._report_lost_history(claims)
        self._report_unreadable()
        if unfolded is not None:
            if getattr(unfolded, "errno", None) == errno.EBUSY:
                raise unfolded  # the file is mounted by itself: it would never be up to date
            if log := log_lines.logger():
                log_lines.not_folded(log, unfolded)
        self.interrupts.forward_signals()
        return self.counts

    def _wait_for_queue(self) -> bool:
        """Wait as long as the pass lingers for the first job, which creates the queue's file."""
        end = time.monotonic() + self.linger
        while (
            not self.until_complete
            and not self.interrupts.stop_requested()
            and time.monotonic() < end
        ):
            time.sleep(POLL_SECONDS)
            if self.store.exists():
                self.linger = end - time.monotonic()
                return True
        return False

    def has_work(self, now: float) -> bool:
        """Tell, without the lock, whether there is anything to do."""
        return self.store.has_work(now, self._longest_wait)

    def count_due(self) -> int:
        """Return how many jobs are due now; 1 where there is none, but something else to do."""
        now = self.clock()
        if not self.has_work(now):
            return 0
        return max(self.store.count_due(now), 1)

    def is_complete(self) -> bool:
        """Tell whether a pass that runs until all is complete may end."""
        if not self.until_complete:
            return False
        return self.store.is_complete(set(self.interrupts.enclosing_jobs()))

    def _work(self, claims: Claims) -> None:
        end = time.monotonic() + self.linger
        watcher = Ticker(lambda: self.look(claims))
        try:
            self._work_off(claims, watcher)
            while not self.interrupts.stop_requested() and time.monotonic() < end:
                if self.is_complete():
                    break
                if claims.find_due(self.clock()):
                    self._report_recovered(claims)
                    self._work_off(claims, watcher)
                else:
                    claims.idle()
                    time.sleep(POLL_SECONDS)
        finally:
            watcher.stop()
        self.unclaim(claims)

    def _work_off(self, claims: Claims, watcher: Ticker) -> None:
        """Claim and run until nothing that was due is left."""
        size = 1
        can_watch = True
        while not self.interrupts.stop_requested() and (batch := claims.claim(size)):
            began = time.monotonic()
            self.batch.extend(batch)
            self.log = log_lines.logger()
            watched = can_watch and (len(batch) > 1 or not claims.is_published())
            if not watched:
                claims.history.flush()  # what ended before may be looked at, as in the queue
            while self.batch and not self.interrupts.stop_requested():
                if self.in_doubt:
                    self.unclaim(claims)
                    break
                try:
                    claim = self.batch.popleft()
                except IndexError:  # the watcher has just given it back
                    break
                if watched and not watcher.is_started and not self._start_watcher(watcher):
                    self.unclaim(claims)  # nobody else would, if this job takes long
                    watched, can_watch = False, False
                self._execute(claims, watcher, claim)
            seconds = max(time.monotonic() - began, 1e-6) / len(batch)
            most = min(_BATCH_MOST, size * _BATCH_GROWTH)
            size = max(1, min(int(_BATCH_SECONDS / seconds), most)) if can_watch else 1

    def _start_watcher(self, watcher: Ticker) -> bool:
        """Have the next job watched; returns False if the system has no thread for that."""
        try:
            watcher.start_once()
        except StoreError as e:
            self._report_refused(e)
            return False
        return True

    def look(self, claims: Claims) -> None:
        """While a job takes long: give back what has not been started, and fold.

        So other passes share the work, and `cat` shows what is running.
        """
        if time.monotonic() - self.started_at >= _SLOW:
            self.unclaim(claims)
            claims.publish()

    def unclaim(self, claims: Claims) -> None:
        """Give back the claims that have not been started."""
        not_started = []
        while self.batch:
            try:
                not_started.append(self.batch.popleft())
            except IndexError:
                break
        try:
            claims.unclaim(not_started)
        except BaseException:
            self.batch.extendleft(reversed(not_started))
            self.in_doubt = True
            raise
        self.in_doubt = False

    def _execute(self, claims: Claims, watcher: Ticker, claim: Claim) -> None:
        claims.check_slot()
        row = claim.row
        handler = self.handler(row.type)
        self.interrupts.jobs = ((self.store.path, row.id),)
        self.started_at = began = time.monotonic()
        try:
            if handler is not None and handler.timeout is not None:
                watcher.stop()  # no thread beside a fork: we watch ourselves
                outcome, after, trace = self.attempts.run_limited(
                    handler, row, claim.payload, handler.timeout, watcher.look, claims.slot_fd()
                )
            else:
                outcome, after, trace = self.attempts.run(handler, row, claim.payload)
        finally:
            self.started_at = math.inf
            self.interrupts.jobs = ()
        took = time.monotonic() - began
        if self.attempts.refused is not None:
            self._report_refused(self.attempts.refused)
            self.attempts.refused = None
        if outcome == INTERRUPTED or after is None:
            self.interrupted(claims, claim, took)
            return
        self.note(claims, claim, outcome, after, trace, took, claims.record(claim, after))

    def interrupted(self, claims: Claims, claim: Claim, seconds: float) -> None:
        """Give back a job that was not allowed to end."""
        claims.unclaim([claim], STOPPED)
        claims.history.note(claim.row, INTERRUPTED, STOPPED, self.clock(), seconds)

    def note(
        self,
        claims: Claims,
        claim: Claim,
        outcome: str,
        after: states.State,
        trace: str,
        seconds: float,
        recorded: states.State | None,
    ) -> None:
        """Count, log and keep in the history how an attempt ended.

        Nothing was recorded where it came too late.
        """
        row = claim.row
        ended, state = ("late", after) if recorded is None else (outcome, recorded)
        claims.history.note(row, ended, state.error, self.clock(), seconds, trace)
        if recorded is not None:
            self.counts[outcome] += 1
            if self.log is not None:
                log_lines.outcome(self.log, outcome, row.id, row.type, recorded, seconds)
        elif self.log is not None:
            log_lines.late(self.log, row.id, row.type, row.state.attempts)

    def _report_recovered(self, claims: Claims) -> None:
        recovered, died = claims.take_recovered()
        self.counts["recovered"] += recovered
        for row in died:
            claims.history.note(row, "died", row.state.error, claims.started_at, None)
        lost = [row for row in died if row.state.status == states.FAILED]
        self.counts["failed"] += len(lost)
        if lost and (log := log_lines.logger()):
            for row in lost:
                log_lines.outcome(log, "failed", row.id, row.type, row.state, None)
        ahead = claims.take_pulled_in()
        if ahead and (log := log_lines.logger()):
            log_lines.pulled_in(log, ahead)
        self._report_lost_history(claims)

    def _report_lost_history(self, claims: Claims) -> None:
        if (error := claims.history.take_error()) and (log := log_lines.logger()):
            log_lines.history_lost(log, error)

    def _report_refused(self, error: StoreError) -> None:
        """Log, once a minute at the most, that the system refuses a thread or a process."""
        now = time.monotonic()
        if now >= self._quiet_until and (log := log_lines.logger()):
            self._quiet_until = now + _QUIET
            log_lines.refused(log, error)

    def _report_unreadable(self) -> None:
        if log := log_lines.logger():
            log_lines.unreadable(log, self.store)
