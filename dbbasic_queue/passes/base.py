"""The frame of a pass: acquire a slot, recover the jobs of dead passes, run due jobs, fold.

The jobs are run by `sequential.Sequential` or `concurrent.Concurrent`. An idle pass needs neither
of them, nor the module `signals`: they are imported when there is work.
"""

from __future__ import annotations

import errno
import math
import os
import time

from dbbasic_queue.errors import StoreError
from dbbasic_queue.lazy import load
from dbbasic_queue.model import states
from dbbasic_queue.passes import log_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Protocol

    from dbbasic_queue.passes.hook_calls import HookCalls
    from dbbasic_queue.passes.policies import Policies
    from dbbasic_queue.passes.scheduled import Registry, Scheduler
    from dbbasic_queue.passes.signals import Interrupts
    from dbbasic_queue.store.protocol import Claims, Store

    class Work(Protocol):
        """Runs the jobs of a pass."""

        def run(self) -> None:
            """Claim and run jobs until no job is due and the pass no longer lingers.

            All jobs that it has claimed are recorded or unclaimed when it returns.
            """

        def close(self) -> None:
            """Close what the jobs needed; also called after an error."""

    StartWork = Callable[["Pass", Claims], Work]

_OUTCOMES_OF_DEAD = {
    states.PENDING: "retried",
    states.FAILED: "failed",
    states.CANCELLED: "stopped",
}
"""status after the recovery of a job that had started -> what happened to it"""
POLL_SECONDS = 0.05
COUNTS = ("completed", "failed", "retried", "delayed", "stopped", "recovered")


class Pass:
    """One run over the jobs that are due.

    `work` imports and returns the class that runs the jobs, `parallel` at a time. `max_result` is
    the most bytes of a result's JSON. `linger` is how many seconds to wait for more jobs; with
    `until_complete` the pass ends earlier, when no job is pending or running. `interrupts` is how
    the caller can ask the pass to end. `registry` is that of the handlers, if its schedules count.
    """

    def __init__(
        self,
        store: Store,
        policies: Policies,
        clock: Callable[[], float],
        max_result: int,
        work: Callable[[], StartWork],
        *,
        parallel: int = 1,
        linger: float = 0,
        until_complete: bool = False,
        interrupts: Interrupts | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.store = store
        self.policies = policies
        self.clock = clock
        self.max_result = max_result
        self.parallel = parallel
        self.linger = linger
        self.counts = dict.fromkeys(COUNTS, 0)
        self._work = work
        self._until_complete = until_complete
        self._interrupts = interrupts
        self._registry = registry
        self._scheduler: Scheduler | None = None
        self._has_schedules = True
        """False if none was recorded when the pass looked"""
        self._hook_calls: HookCalls | None = None
        self._removes_old_at = 0.0
        """when a pass that lingers forever removes old jobs again, on the monotonic clock"""

    @property
    def interrupts(self) -> Interrupts:
        """How the pass is asked to end; made on first use unless the caller has given it."""
        if self._interrupts is None:
            self._interrupts = load(_interrupts)()
        return self._interrupts

    def hook_calls(self) -> HookCalls | None:
        """Return the object that calls the registry's hooks, or None if it has no hooks."""
        if self._hook_calls is None and self.policies.hooks is not None:
            make = load(_hook_calls)
            self._hook_calls = make(self.policies.hooks, self.store.path, self.interrupts)
        return self._hook_calls

    def run(self) -> dict[str, int]:
        """Run the due jobs; return how many had each outcome."""
        started_at = time.monotonic()
        self.add_scheduled()
        now = self.clock()  # afterwards: a job that has just been added is due
        exists = self.store.exists()
        if not exists and (log := log_lines.logger()):
            log_lines.no_queue(log, self.store.path)
        if not self.linger and not (exists and self._has_work(now)):
            self._report_unreadable()
            if exists:
                self._note_end(started_at)
            return self.counts
        start_work, interrupts = load(self._work), self.interrupts
        try:
            with interrupts:
                if not exists:
                    if not self._wait_for_queue():
                        interrupts.forward_signals()
                        return self.counts
                    now = self.clock()
                fold_error = self._run(start_work, now)
                if self.policies.keep is not None and not interrupts.stop_requested():
                    load(_keeping).remove_old(self.store, self.policies, self.clock())
        except BaseException:
            is_worker = self.linger == math.inf and not self._until_complete
            if not is_worker:  # a worker's next pass must not wait, and its thread sends anyway
                self._flush_digests()
            raise
        self._flush_digests()
        self._report_unreadable()
        if fold_error is not None:
            if getattr(fold_error, "errno", None) == errno.EBUSY:
                raise fold_error  # the file itself is a mount point: no fold would ever succeed
            if log := log_lines.logger():
                log_lines.not_folded(log, fold_error)
        self._note_end(started_at)
        interrupts.forward_signals()
        return self.counts

    def _note_end(self, started_at: float) -> None:
        """Add this pass to the log of passes. `started_at` is on the monotonic clock."""
        seconds = time.monotonic() - started_at
        encode_row = load(_encode_row)
        self.store.note_pass(encode_row(self.clock(), seconds, self.policies.types(), self.counts))

    def _flush_digests(self) -> None:
        """Send the digests of the hooks. All is recorded by now, and the slot is released."""
        if self._hook_calls is not None:
            load(_digests).flush([self.store.path])

    def _run(self, start_work: StartWork, now: float) -> Exception | None:
        """Acquire a slot and run the jobs; return the error if the changes couldn't be folded."""
        process = os.getpid()
        claims: Claims = self.store.open_claims(self.policies, now, self.parallel)
        work = None
        try:
            self.report_recovered(claims)
            work = start_work(self, claims)
            work.run()
        except BaseException:
            if os.getpid() == process:  # a child that a handler has forked must not release it
                claims.abandon()
            raise
        finally:
            if work is not None:
                work.close()
        fold_error = claims.finish()
        self._report_lost_rows(claims)
        return fold_error

    def _wait_for_queue(self) -> bool:
        """Wait for the first job, which creates the queue file; False if the pass has to end first.

        The time that this takes is subtracted from `linger`.
        """
        end = time.monotonic() + self.linger
        while (
            not self._until_complete
            and not self.interrupts.stop_requested()
            and time.monotonic() < end
        ):
            time.sleep(POLL_SECONDS)
            self.add_scheduled()
            if self.store.exists():
                self.linger = end - time.monotonic()
                return True
        return False

    def add_scheduled(self) -> None:
        """Add the jobs of schedules that are due; on the disk on return.

        A registry that declares no schedules costs one look, once per pass, at whether any were
        ever recorded.
        """
        registry = self._registry
        if registry is None:
            return
        if self._scheduler is None:
            if not registry.schedules:
                self._has_schedules = self._has_schedules and self.store.has_schedules()
                if not self._has_schedules:
                    return
            self._scheduler = load(_scheduler)(self.store, registry)
        self._scheduler.add_due(self.clock())

    def add_scheduled_if_reachable(self) -> None:
        """Do the same while the pass goes on: later, if a server can't be reached now.

        If that lasts, the next look for due jobs raises the error.
        """
        try:
            self.add_scheduled()
        except StoreError as e:
            if not e.is_temporary:
                raise

    def _has_work(self, now: float) -> bool:
        """Return, without the lock, whether there is anything to do."""
        return self.store.has_work(now, self.policies.longest_wait)

    def count_due(self) -> int:
        """Return how many jobs are due now; at least 1 if there is other work, such as a fold."""
        self.add_scheduled()
        now = self.clock()
        if not self._has_work(now):
            return 0
        return max(self.store.count_due(now), 1)

    def is_complete(self) -> bool:
        """Return whether the pass may end now because no job is pending or running.

        Always False without `until_complete`. Jobs of paused types don't count, nor does a job
        that has called this pass.
        """
        if not self._until_complete:
            return False
        try:
            return self.store.is_complete(set(self.interrupts.enclosing_jobs()))
        except StoreError as e:
            if not e.is_temporary:
                raise
            return False

    def rest(self, claims: Claims) -> None:
        """Do what can be done while no job is due or running."""
        claims.idle()
        keeps = self.policies.keep is not None and self.linger == math.inf
        if keeps and time.monotonic() >= self._removes_old_at:
            self._removes_old_at = load(_keeping).remove_old_at_rest(
                self.store, self.policies, self.clock()
            )

    def report_recovered(self, claims: Claims) -> None:
        """Count and report what recovery has changed since the last call.

        The attempt of a job that a dead pass had started is added to the history as "died", and
        logged. If it was the job's last one, it is counted and logged as failed. Then its hooks are
        called. If a stop was requested, the attempt and the outcome are "stopped".
        """
        recovered, died = claims.take_recovered()
        self.counts["recovered"] += recovered
        log = log_lines.logger()
        for row, state in died:
            outcome = _OUTCOMES_OF_DEAD[state.status]
            ended = "stopped" if outcome == "stopped" else "died"
            claims.history.note(row, ended, state.error, claims.looked_at, None)
            if ended == "stopped":
                claims.progress.forget(row, claims.looked_at)
            if outcome != "retried":  # it is counted as recovered
                self.counts[outcome] += 1
            if log is not None and outcome == "retried":
                log_lines.died(log, row.id, row.type, state)
            elif log is not None:
                log_lines.outcome(log, outcome, row.id, row.type, state, None)
        if died and (hook_calls := self.hook_calls()) is not None:
            for row, state in died:
                hook_calls.ended(_OUTCOMES_OF_DEAD[state.status], row, state)
        ahead = claims.take_pulled_in()
        if ahead and (log := log_lines.logger()):
            log_lines.pulled_in(log, ahead)
        self._report_lost_rows(claims)

    def _report_lost_rows(self, claims: Claims) -> None:
        for what, file in (
            ("the attempt history", claims.history),
            ("what a job has printed", claims.output),
        ):
            if (error := file.take_error()) and (log := log_lines.logger()):
                log_lines.lost(log, what, error)

    def _report_unreadable(self) -> None:
        if log := log_lines.logger():
            log_lines.unreadable(log, self.store)


def _hook_calls() -> type[HookCalls]:
    from dbbasic_queue.passes.hook_calls import HookCalls

    return HookCalls


def _digests() -> ModuleType:
    from dbbasic_queue.passes import digests

    return digests


def _interrupts() -> type[Interrupts]:
    from dbbasic_queue.passes.signals import Interrupts

    return Interrupts


def _keeping() -> ModuleType:
    from dbbasic_queue.passes import keeping

    return keeping


def _encode_row() -> Callable[[float, float, str, dict[str, int]], str]:
    from dbbasic_queue.store.pass_log import encode_row

    return encode_row


def _scheduler() -> type[Scheduler]:
    from dbbasic_queue.passes.scheduled import Scheduler

    return Scheduler
