"""Runs the due jobs of a pass one after the other, in batches of claims.

- Handlers run without the lock. Each outcome is on the disk before the next handler starts.
- A batch grows while jobs are quick, and is one job while they are slow.
- While a job takes long, a ticker unclaims the jobs of the batch that haven't started, and folds:
  other passes can run them, and `cat` shows what is running.
"""

from __future__ import annotations

import time
from collections import deque

from dbbasic_queue.errors import StoreError
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.base import POLL_SECONDS
from dbbasic_queue.passes.executor import Executor
from dbbasic_queue.passes.ticker import Ticker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.passes.base import Pass
    from dbbasic_queue.store.protocol import Claim, Claims

_BATCH_SECONDS = 0.05
"""how long the jobs of a batch should take together, judged by the last batch"""
_LARGEST_BATCH = 256
_BATCH_GROWTH = 8
"""a batch is at most this many times as large as the one before"""


class Sequential:
    """Runs the jobs of one pass, one at a time."""

    def __init__(self, pass_: Pass, claims: Claims) -> None:
        self._pass = pass_
        self._claims = claims
        self._executor = Executor(pass_, claims)
        self._interrupts = pass_.interrupts
        self._can_tick = True
        """whether the system has a thread for the ticker"""
        self._batch: deque[Claim] = deque()
        """the claimed jobs that haven't started"""

    def run(self) -> None:
        """Run jobs until no job is due and the pass no longer lingers."""
        end = time.monotonic() + self._pass.linger
        ticker = Ticker(self._share_if_slow)  # as an attribute, it would be a reference cycle
        try:
            self._run_due(ticker)
            while not self._interrupts.stop_requested() and time.monotonic() < end:
                if self._pass.is_complete():
                    break
                self._pass.add_scheduled_if_reachable()
                if self._claims.find_due(self._pass.clock()):
                    self._pass.report_recovered(self._claims)
                    self._run_due(ticker)
                else:
                    self._pass.rest(self._claims)
                    time.sleep(POLL_SECONDS)
        finally:
            ticker.stop()
        self._unclaim()

    def close(self) -> None:
        """Close the event loop, if a handler needed one."""
        self._executor.attempts.close()

    def _run_due(self, ticker: Ticker) -> None:
        """Claim and run batches until no due job is left, or the pass is asked to end."""
        size = 1
        self._can_tick = True
        while not self._interrupts.stop_requested() and (
            batch := self._claims.claim(size, self._pass.clock())
        ):
            started_at = time.monotonic()
            self._run_batch(batch, ticker)
            seconds = max(time.monotonic() - started_at, 1e-6) / len(batch)
            most = min(_LARGEST_BATCH, size * _BATCH_GROWTH)
            size = max(1, min(int(_BATCH_SECONDS / seconds), most)) if self._can_tick else 1
            self._pass.report_recovered(self._claims)  # a store may recover jobs at each claim
            self._pass.add_scheduled_if_reachable()

    def _run_batch(self, batch: list[Claim], ticker: Ticker) -> None:
        self._batch.extend(batch)
        self._executor.log = log_lines.logger()
        ticks = self._can_tick and (len(batch) > 1 or not self._claims.is_published())
        if not ticks:
            self._claims.history.flush()  # no ticker does it if this job is slow
        while self._batch and not self._interrupts.stop_requested():
            try:
                claim = self._batch.popleft()
            except IndexError:  # the ticker has just unclaimed it
                return
            if ticks and not ticker.is_started and not self._start_ticker(ticker):
                self._unclaim()  # otherwise the rest would wait for this job, if it is slow
                ticks = self._can_tick = False
            self._executor.run(claim, ticker)

    def _start_ticker(self, ticker: Ticker) -> bool:
        """Start the ticker; log it and return False if the system has no thread for it."""
        try:
            ticker.start_once()
        except StoreError as e:
            self._executor.report_refused(e)
            return False
        return True

    def _share_if_slow(self) -> None:
        """If the running job takes long: unclaim those that haven't started, and fold.

        The ticker's thread calls it or, for a job with a time limit, the pass's own thread.
        """
        if self._executor.is_slow():
            self._unclaim()
            self._claims.publish()

    def _unclaim(self) -> None:
        """Make the claimed jobs that haven't started pending again; on the disk on return.

        Two threads may call it at once. If it raises, the jobs are still in `_batch`, although some
        may be pending again: `Executor.run` doesn't start those.
        """
        not_started = []
        while self._batch:
            try:
                not_started.append(self._batch.popleft())
            except IndexError:
                break
        try:
            self._claims.unclaim(not_started)
        except BaseException:
            self._batch.extendleft(reversed(not_started))
            raise
