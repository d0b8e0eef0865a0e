"""Runs the claimed jobs of a pass: one attempt each, its outcome recorded, then reported.

The outcome is on the disk before it is counted, logged or kept in the history.
"""

from __future__ import annotations

import math
import time

from dbbasic_queue.lazy import load
from dbbasic_queue.model import states
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.attempt import INTERRUPTED, NO_DETAILS, Attempts
from dbbasic_queue.passes.link import PassLink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger
    from types import ModuleType

    from dbbasic_queue.errors import StoreError
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.passes.attempt import Details
    from dbbasic_queue.passes.base import Pass
    from dbbasic_queue.passes.ticker import Ticker
    from dbbasic_queue.store.protocol import Claim, Claims

_INTERRUPTED = "interrupted: the pass was stopped"
"""the error of an interrupted job"""
_QUIET_SECONDS = 60.0
_SLOW_SECONDS = 0.2


class Executor:
    """Runs the jobs of one pass."""

    def __init__(self, pass_: Pass, claims: Claims) -> None:
        link = PassLink(claims, pass_.clock)
        self.attempts = Attempts(
            pass_.interrupts,
            pass_.policies,
            pass_.max_result,
            pass_.clock,
            pass_.store.address,
            link,
        )
        self.log: Logger | None = None
        """the package's logger, or None; the caller looks it up once per batch"""
        self._claims = claims
        self._clock = pass_.clock
        self._counts = pass_.counts
        self._hook_calls = pass_.hook_calls()
        self._interrupts = pass_.interrupts
        self._policies = pass_.policies
        self._path = pass_.store.path
        self._started_at = math.inf
        """when the running job, or its hooks, were started, on the monotonic clock, or infinity"""
        self._quiet_until = 0.0

    def run(self, claim: Claim, ticker: Ticker) -> None:
        """Run a claimed job; on return its outcome is on the disk, or it was unclaimed.

        The caller starts `ticker` if it is needed. For a job with a time limit it is stopped, and
        this thread calls `ticker.tick` while it waits. Raises StoreError, before the job is
        started, if the pass has lost its slot.
        """
        self._claims.check_slot()
        row = claim.row
        if not self._claims.may_start(claim):
            self._stop(claim)
            return
        handler = self._policies.handler(row.type)
        self._interrupts.jobs = ((self._path, row.id),)
        self._started_at = started_at = time.monotonic()
        try:
            if handler is not None and handler.timeout is not None:
                if handler.is_command:
                    load(_program)  # once here, instead of in each job's process
                ticker.stop()  # fork without other threads: this thread ticks while it waits
                outcome, after, details = self.attempts.run_limited(
                    handler,
                    row,
                    claim.payload,
                    handler.timeout,
                    ticker.tick,
                    self._claims.slot_fd(),
                )
            else:
                outcome, after, details = self.attempts.run(handler, row, claim.payload)
        finally:
            self._started_at = math.inf
            self._interrupts.jobs = ()
        seconds = time.monotonic() - started_at
        if self.attempts.refused is not None:
            self.report_refused(self.attempts.refused)
            self.attempts.refused = None
        if outcome == INTERRUPTED or after is None:
            self.interrupted(claim, seconds, details)
            return
        recorded = self._claims.record(claim, after)
        self.report(claim, outcome, after, details, seconds, recorded)

    def _stop(self, claim: Claim) -> None:
        """Record a job for which a stop was requested before it was started.

        A job whose claim was returned, by a call that raised, is left alone.
        """
        after = states.unclaim(claim.row.state)
        assert after is not None
        stopped = self._claims.record(claim, after)
        if stopped is not None:
            self.report(claim, "stopped", after, NO_DETAILS, 0, stopped)

    def is_slow(self) -> bool:
        """Return whether a job, or its hooks, have been running for 0.2 s.

        Other jobs shouldn't wait for it.
        """
        return time.monotonic() - self._started_at >= _SLOW_SECONDS

    def interrupted(self, claim: Claim, seconds: float, details: Details) -> None:
        """Unclaim a job that was interrupted after `seconds`; its attempt isn't counted.

        The attempt is added to the history.
        """
        self._claims.progress.forget(claim.row, self._clock())
        self._claims.unclaim([claim], _INTERRUPTED)
        self._note(claim.row, INTERRUPTED, _INTERRUPTED, seconds, details)

    def _note(self, row: Row, ended: str, error: str, seconds: float, details: Details) -> None:
        """Keep what an attempt has printed, and add the attempt to the history."""
        claims, now, printed = self._claims, self._clock(), details.printed
        trace, exception = details.traceback, details.exception
        offset = None
        if printed is not None:
            offset = claims.output.keep(row, now, printed.kept, printed.left_out)
        claims.history.note(row, ended, error, now, seconds, trace, exception, offset)
        if details.own_process:  # its hooks find it there, and its output as soon as it has ended
            claims.history.flush()

    def report(
        self,
        claim: Claim,
        outcome: str,
        after: State,
        details: Details,
        seconds: float,
        recorded: State | None,
    ) -> None:
        """Count, log and add to the history how an attempt ended, then call the hooks.

        `after` is the state that was to be recorded, `recorded` the one that was. `recorded` is
        None if a newer attempt has replaced this one: then the attempt is "late", and not counted.
        If a stop was requested, `recorded` may be cancelled: then the outcome is "stopped".
        """
        row = claim.row
        if recorded is not None and recorded.status == states.CANCELLED:
            outcome = "stopped"
            self._claims.progress.forget(row, self._clock())
        ended, state = ("late", after) if recorded is None else (outcome, recorded)
        self._note(row, ended, state.error, seconds, details)
        if recorded is not None:
            self._counts[outcome] += 1
            if self.log is not None:
                log_lines.outcome(self.log, outcome, row.id, row.type, recorded, seconds)
            if self._hook_calls is not None:
                self._started_at = time.monotonic()  # others shouldn't wait for a slow hook either
                self._hook_calls.ended(outcome, row, recorded)
                self._started_at = math.inf
        elif self.log is not None:
            log_lines.late(self.log, row.id, row.type, row.state.attempts)

    def report_refused(self, error: StoreError) -> None:
        """Log, at most once a minute, that the system refuses a thread or a process."""
        now = time.monotonic()
        if now >= self._quiet_until and (log := log_lines.logger()):
            self._quiet_until = now + _QUIET_SECONDS
            log_lines.refused(log, error)


def _program() -> ModuleType:
    from dbbasic_queue.passes import program

    return program
