"""A pass that runs coroutines together on one event loop, up to a number at a time.

Everything happens in one thread: while one job waits, others go on. What has ended in the same step
of the loop is recorded by one write. The pass claims only what it begins at once, so after a kill
every claim in its slot's list counts as an attempt.

The pass itself is not a task of the loop: it runs the loop, a step at a time. So whatever a job
does to the loop (`loop.stop()`, `sys.exit` in a task, cancelling all tasks) ends that step at most,
not the pass and the other jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from dbbasic_queue.errors import not_started
from dbbasic_queue.model import states
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.attempt import INTERRUPTED, describe
from dbbasic_queue.passes.base import LOOK, Pass
from dbbasic_queue.passes.event_loop import close, hide
from dbbasic_queue.passes.ticker import Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.handlers import Handler
    from dbbasic_queue.passes.attempt import Attempts, Outcome
    from dbbasic_queue.store.protocol import Claim, Claims


class Running:
    """An attempt that is running; `outcome` is None until its coroutine has returned one."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.outcome: Outcome | None = None
        self.began_at = time.monotonic()

    async def run(self, attempts: Attempts, handler: Handler) -> None:
        """Run the handler and keep the outcome."""
        claim = self.claim
        self.outcome = await attempts.run_coroutine(handler, claim.row, claim.payload)


class Together(Pass):
    """One run of a worker over what is due, `parallel` jobs at a time."""

    def __init__(self, *args: Any, parallel: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parallel = parallel
        self._running: dict[asyncio.Task[None], Running] = {}
        self._jobs: set[tuple[str, str]] = set()
        self._cancelled_for = 0
        self._lists_too_much = False

    def _work(self, claims: Claims) -> None:
        try:
            loop = asyncio.new_event_loop()
        except OSError as e:
            raise not_started("an event loop", e) from e
        try:
            self._work_together(claims, loop)
        finally:
            self.interrupts.cancelling = True
            close(loop, self._running)

    def _work_together(self, claims: Claims, loop: asyncio.AbstractEventLoop) -> None:
        end = time.monotonic() + self.linger
        refused: Exception | None = None
        while True:
            asked = self.interrupts.asked()
            staying = time.monotonic() < end and not asked
            if not asked and refused is None:
                refused = _error_of(self._begin_what_is_due, claims, loop, staying)
            if self.interrupts.at_once():
                self._cancel()
            if self._running:
                self.interrupts.jobs = self._jobs
                self._step(loop)
                refused = _error_of(self._settle_what_has_ended, claims) or refused
            elif refused is not None:
                raise refused
            elif not staying or self.is_complete():
                break
            else:
                claims.rest()
                self._step(loop)

    def _begin_what_is_due(
        self, claims: Claims, loop: asyncio.AbstractEventLoop, staying: bool
    ) -> None:
        """Begin as many of the due jobs as there is room for beside those that run."""
        free = self.parallel - len(self._running)
        if not free:
            return
        batch = deque(claims.claim(free))
        if not batch and staying and claims.renew(self.clock()):
            self._report_recovered(claims)
            batch = deque(claims.claim(free))
        self.log = log_lines.logger()
        try:
            while batch:
                self._begin(claims, loop, batch.popleft())
        except BaseException:
            claims.give_back(list(batch))
            raise

    def _begin(self, claims: Claims, loop: asyncio.AbstractEventLoop, claim: Claim) -> None:
        handler = self.handler(claim.row.type)
        if handler is None or not handler.shares_loop:
            self._execute(claims, Watcher(lambda: self.look(claims)), claim)
            return
        running = Running(claim)
        task = loop.create_task(running.run(self.attempts, handler))
        hide(task)
        task.add_done_callback(lambda _: loop.stop())
        self._running[task] = running
        self._jobs.add((self.store.path, claim.row.id))

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop until a job has ended, LOOK seconds at most."""
        timer = loop.call_later(LOOK, loop.stop)
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as e:
            # Of a task or callback that some job has left to the loop; the signals are held back.
            if log := log_lines.logger():
                log_lines.exit_held(log, e)
        finally:
            timer.cancel()

    def _settle_what_has_ended(self, claims: Claims) -> None:
        done = [task for task in self._running if task.done()]
        if not done:
            claims.show()
            if self._lists_too_much:
                claims.give_back([])  # which lists what is still held
                self._lists_too_much = False
        ended: list[tuple[Claim, states.State]] = []
        outcomes: list[tuple[str, str, float]] = []
        for task in done:
            running = self._running.pop(task)
            claim = running.claim
            self._jobs.discard((self.store.path, claim.row.id))
            seconds = time.monotonic() - running.began_at
            outcome, after, trace = running.outcome or self._without_outcome(task, claim)
            if outcome == INTERRUPTED or after is None:
                self.interrupted(claims, claim, seconds)
            else:
                ended.append((claim, after))
                outcomes.append((outcome, trace, seconds))
        if not ended:
            return
        recorded = claims.settle_all(ended)
        for (claim, after), state, (outcome, trace, seconds) in zip(
            ended, recorded, outcomes, strict=True
        ):
            self.note(claims, claim, outcome, after, trace, seconds, state)
        self._lists_too_much = True

    def _without_outcome(self, task: asyncio.Task[None], claim: Claim) -> Outcome:
        """Return the outcome of a task that was cancelled before it began, or at its end."""
        if self.interrupts.cancelling:
            return INTERRUPTED, None, ""
        error = "CancelledError" if task.cancelled() else describe(task.exception() or Exception())
        return self.attempts.failed(self.handler(claim.row.type), claim.row.state, error)

    def _cancel(self) -> None:
        """Cancel what runs: once for each signal, so that a job may clean up in peace."""
        self.interrupts.cancelling = True
        if self._cancelled_for < len(self.interrupts.received):
            self._cancelled_for = len(self.interrupts.received)
            for task in self._running:
                task.cancel()


def _error_of(function: Callable[..., None], *arguments: Any) -> Exception | None:
    """Call it; return what it raises: the running jobs are to finish, and be recorded, first."""
    try:
        function(*arguments)
    except Exception as e:  # noqa: BLE001 - it is raised when they have ended
        return e
    return None
