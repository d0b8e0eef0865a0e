"""A pass that runs coroutines together on one event loop, up to a number at a time.

Everything happens in one thread: while one job waits, others go on. What has ended meanwhile is
recorded by one write. The pass claims only what it begins at once, so after a kill every claim in
its slot's list counts as an attempt.
"""

from __future__ import annotations

import asyncio
import time

from dbbasic_queue import job, reports
from dbbasic_queue.attempt import INTERRUPTED
from dbbasic_queue.event_loop import cancel_all
from dbbasic_queue.watcher import Watcher
from dbbasic_queue.worker import LOOK, Pass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dbbasic_queue.attempt import Outcome
    from dbbasic_queue.store.claims import Claim, Claims


class Together(Pass):
    """One run of a worker over what is due, `parallel` jobs at a time."""

    def __init__(self, *args: Any, parallel: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parallel = parallel
        self._running: dict[asyncio.Task[Outcome], tuple[Claim, float]] = {}

    def _work(self, claims: Claims) -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._work_together(claims))
        finally:
            self.interrupts.cancelling = True
            cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _work_together(self, claims: Claims) -> None:
        end = time.monotonic() + self.linger
        while True:
            staying = time.monotonic() < end and not self.interrupts.asked()
            if not self.interrupts.asked():
                self._begin_what_is_due(claims, staying)
            if self.interrupts.at_once():
                self._cancel()
            if self._running:
                await self._settle_what_has_ended(claims)
            elif not staying or (self.until_complete and self.store.is_complete()):
                break
            else:
                claims.rest()
                await asyncio.sleep(LOOK)

    def _begin_what_is_due(self, claims: Claims, staying: bool) -> None:
        """Begin as many of the due jobs as there is room for beside those that run."""
        free = self.parallel - len(self._running)
        if not free:
            return
        batch = claims.claim(free)
        if not batch and staying and claims.renew(self.clock()):
            self._report_recovered(claims)
            batch = claims.claim(free)
        self.log = reports.logger()
        for claim in batch:
            handler = self.handler(claim.row.type)
            if handler is not None and handler.shares_loop:
                run = self.attempts.run_coroutine(handler, claim.row, claim.payload)
                self._running[asyncio.ensure_future(run)] = claim, time.monotonic()
            else:
                self._execute(claims, Watcher(lambda: self.look(claims)), claim)

    async def _settle_what_has_ended(self, claims: Claims) -> None:
        done, _ = await asyncio.wait(
            self._running, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            claims.show()
        ended: list[tuple[Claim, job.State]] = []
        outcomes: list[tuple[str, str, float]] = []
        for task in done:
            claim, began = self._running.pop(task)
            seconds = time.monotonic() - began
            outcome, after, trace = task.result()
            if outcome == INTERRUPTED or after is None:
                self.interrupted(claims, claim, seconds)
            else:
                ended.append((claim, after))
                outcomes.append((outcome, trace, seconds))
        if ended:
            recorded = claims.settle_all(ended)
            for (claim, after), state, (outcome, trace, seconds) in zip(
                ended, recorded, outcomes, strict=True
            ):
                self.note(claims, claim, outcome, after, trace, seconds, state)

    def _cancel(self) -> None:
        self.interrupts.cancelling = True
        for task in self._running:
            task.cancel()
