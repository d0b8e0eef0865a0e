"""Runs the coroutines of a pass together on one event loop, up to `parallel` at a time.

- Everything happens in one thread: while one job waits, others go on. Jobs that end in the same
  step of the loop are recorded by one write.
- The pass claims only jobs that it starts immediately. So after a kill, every claim in its slot's
  list counts as an attempt.
- The pass isn't a task of the loop: it runs the loop, one step at a time. So whatever a job does to
  the loop (`loop.stop()`, `sys.exit` in a task, cancelling all tasks) ends only that step, not the
  pass or other jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from dbbasic_queue.errors import not_started
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.attempt import INTERRUPTED, NO_DETAILS, describe
from dbbasic_queue.passes.base import POLL_SECONDS
from dbbasic_queue.passes.event_loop import close, hide
from dbbasic_queue.passes.executor import Executor
from dbbasic_queue.passes.ticker import Ticker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.handlers import Handler
    from dbbasic_queue.model.states import State
    from dbbasic_queue.passes.attempt import Attempts, Details, Outcome
    from dbbasic_queue.passes.base import Pass
    from dbbasic_queue.store.protocol import Claim, Claims


class Running:
    """An attempt that is running; `outcome` is None until its coroutine has returned one.

    `started_at` is on the monotonic clock.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.outcome: Outcome | None = None
        self.started_at = time.monotonic()

    async def run(self, attempts: Attempts, handler: Handler) -> None:
        """Run the handler and keep the outcome."""
        claim = self.claim
        self.outcome = await attempts.run_coroutine(handler, claim.row, claim.payload)


class Concurrent:
    """Runs the jobs of one pass, `parallel` coroutines at a time."""

    def __init__(self, pass_: Pass, claims: Claims) -> None:
        self._pass = pass_
        self._claims = claims
        self._executor = Executor(pass_, claims)
        self._policies = pass_.policies
        self._interrupts = pass_.interrupts
        self._running: dict[asyncio.Task[None], Running] = {}
        self._jobs: set[tuple[str, str]] = set()
        """path and id of each running job"""
        self._cancelled_for = 0
        """how many signals have cancelled the running jobs"""
        self._list_is_stale = False
        """whether the slot's list names jobs that have ended"""

    def run(self) -> None:
        """Run jobs until no job is due and the pass no longer lingers.

        If a claim or a record fails, no further job is started, and the error is raised when the
        running jobs have ended. Raises StoreError if the system refuses an event loop.
        """
        try:
            loop = asyncio.new_event_loop()
        except OSError as e:
            raise not_started("an event loop", e) from e
        try:
            self._run_on(loop)
        finally:
            self._interrupts.cancelling = True
            close(loop, self._running)

    def close(self) -> None:
        """Close the second event loop, if a plain handler returned a coroutine."""
        self._executor.attempts.close()

    def _run_on(self, loop: asyncio.AbstractEventLoop) -> None:
        end = time.monotonic() + self._pass.linger
        error: Exception | None = None
        while True:
            stops = self._interrupts.stop_requested()
            lingers = time.monotonic() < end and not stops
            if not stops and error is None:
                error = _error_of(self._start_due, loop, lingers)
            if self._interrupts.stop_at_once():
                self._cancel()
            if self._running:
                self._interrupts.jobs = self._jobs
                self._step(loop)
                error = _error_of(self._record_ended) or error
            elif error is not None:
                raise error
            elif not lingers or self._pass.is_complete():
                break
            else:
                self._pass.rest(self._claims)
                self._step(loop)

    def _start_due(self, loop: asyncio.AbstractEventLoop, lingers: bool) -> None:
        """Start due jobs, until `parallel` jobs are running.

        If the pass `lingers`, jobs that have become due since the last look are started, too.
        """
        free = self._pass.parallel - len(self._running)
        if not free:
            return
        self._pass.add_scheduled_if_reachable()
        now = self._pass.clock()
        batch = deque(self._claims.claim(free, now))
        if not batch and lingers and self._claims.find_due(now):
            self._pass.report_recovered(self._claims)
            batch = deque(self._claims.claim(free, now))
        self._executor.log = log_lines.logger()
        try:
            while batch:
                self._start(loop, batch.popleft())
        except BaseException:
            self._claims.unclaim(list(batch))
            raise

    def _start(self, loop: asyncio.AbstractEventLoop, claim: Claim) -> None:
        """Start a coroutine. A job that can't share the loop runs here; the coroutines wait."""
        handler = self._policies.handler(claim.row.type)
        if handler is None or not handler.shares_loop:
            self._executor.run(claim, Ticker(self._publish_if_slow))
            return
        running = Running(claim)
        task = loop.create_task(running.run(self._executor.attempts, handler))
        hide(task)
        task.add_done_callback(lambda _: loop.stop())
        self._running[task] = running
        self._jobs.add((self._pass.store.path, claim.row.id))

    def _publish_if_slow(self) -> None:
        """If a job that doesn't share the loop takes long: fold, so that `cat` shows it."""
        if self._executor.is_slow():
            self._claims.unclaim([])  # the slot's list must match the claims that are left
            self._claims.publish()

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop until a job has ended, for at most POLL_SECONDS."""
        timer = loop.call_later(POLL_SECONDS, loop.stop)
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as e:
            # Raised by a task or callback that a job has left on the loop. A signal doesn't raise.
            if log := log_lines.logger():
                log_lines.exit_ignored(log, e)
        finally:
            timer.cancel()

    def _record_ended(self) -> None:
        """Record the outcomes of the tasks that have ended, by one write.

        If none has ended, fold if that is cheap, and remove the jobs that ended earlier from the
        slot's list.
        """
        done = [task for task in self._running if task.done()]
        if not done:
            self._claims.publish()
            if self._list_is_stale:
                self._claims.unclaim([])  # the list must match the running jobs
                self._list_is_stale = False
        ended: list[tuple[Claim, State]] = []
        outcomes: list[tuple[str, Details, float]] = []
        for task in done:
            running = self._running.pop(task)
            claim = running.claim
            self._jobs.discard((self._pass.store.path, claim.row.id))
            seconds = time.monotonic() - running.started_at
            outcome, after, details = running.outcome or self._without_outcome(task, claim)
            if outcome == INTERRUPTED or after is None:
                self._executor.interrupted(claim, seconds, details)
            else:
                ended.append((claim, after))
                outcomes.append((outcome, details, seconds))
        if not ended:
            return
        recorded = self._claims.record_all(ended)
        for (claim, after), state, (outcome, details, seconds) in zip(
            ended, recorded, outcomes, strict=True
        ):
            self._executor.report(claim, outcome, after, details, seconds, state)
        self._list_is_stale = True

    def _without_outcome(self, task: asyncio.Task[None], claim: Claim) -> Outcome:
        """Return the outcome of a task without one: cancelled before its start, or at its end."""
        if self._interrupts.cancelling:
            return INTERRUPTED, None, NO_DETAILS
        error = "CancelledError" if task.cancelled() else describe(task.exception() or Exception())
        handler = self._policies.handler(claim.row.type)
        return self._executor.attempts.failed(handler, claim.row.state, error)

    def _cancel(self) -> None:
        """Cancel the running jobs, once per signal: a job may need time to clean up."""
        self._interrupts.cancelling = True
        if self._cancelled_for < len(self._interrupts.received):
            self._cancelled_for = len(self._interrupts.received)
            for task in self._running:
                task.cancel()


def _error_of(function: Callable[..., None], *arguments: Any) -> Exception | None:
    """Call a function; return the exception that it raises, or None."""
    try:
        function(*arguments)
    except Exception as e:  # noqa: BLE001 - the caller raises it when the running jobs are recorded
        return e
    return None
