"""`dbbasic-queue run --job ID`: one job, in the foreground, to debug it.

It is a pass that claims only this job, due or not, so no other pass can run it at the same time. If
it doesn't run, or is interrupted, it has the state that it had before.

A server's claims are made by its own rules: there, the job becomes due at the second 1 of Unix time
until it is claimed, and another pass may be faster.

A handler with a `timeout` runs without it, in this process: so what it prints appears at once, and
`breakpoint()` works.
"""

from __future__ import annotations

from dbbasic_queue.cli.messages import (
    DONE,
    INTERRUPTED,
    JOB_FAILED,
    NOT_DONE,
    PROGRAM,
    complain,
    with_file,
)
from dbbasic_queue.cli.terminal import Terminal, wrapped
from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.handlers import Handler
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.rows import has_json
from dbbasic_queue.model.states import FINISHED, PENDING, State
from dbbasic_queue.monitoring.durations import relative
from dbbasic_queue.monitoring.selecting import LEAST_PREFIX, find_id
from dbbasic_queue.monitoring.why import why
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.base import COUNTS, Pass
from dbbasic_queue.passes.executor import Executor
from dbbasic_queue.passes.policies import Policies, check, check_thread, hooks_of
from dbbasic_queue.passes.ticker import Ticker
from dbbasic_queue.store.claiming.claims import Claims as FileClaims

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.jobdict import JobDict
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.store.protocol import Claim, Claims

_FIRST = 1
"""when a server's job is due, so that it is the first: no other job has so early an instant"""
_LATER_SECONDS = 1.0
_MOST_OTHERS = 1000
_ANY_SECONDS = 1e-9
"""A pass that lingers, however briefly, doesn't look first whether a job is due."""


def run_job(queue: Queue, handlers: Any, arguments: Namespace) -> int:
    """Run one pending job now, and print how it ended; return the exit code."""
    job_id = find_id(queue.store, arguments.job, LEAST_PREFIX)
    row = queue.store.find(job_id) if is_id(job_id) else None
    if row is None or not has_json(row):
        return complain(f"there is no job {job_id}")
    if row.state.status != PENDING:
        return complain(
            f"{job_id} was not run: it is {row.state.status} (to run it again: "
            f"{with_file(f'{PROGRAM} requeue {job_id}', arguments.file)})"
        )
    handler = check(handlers, arguments.max_attempts).get(row.type)
    if handler is None:
        raise InvalidHandlers(f"{arguments.handlers} has no handler for {row.type}")
    check_thread({row.type: handler})
    policies = Policies(
        {row.type: _in_this_process(handler)}, arguments.max_attempts, skip_unknown=True
    )
    policies.hooks = hooks_of(handlers)
    work = _Work(row)
    try:
        Pass(
            queue.store,
            policies,
            queue.now,
            queue.max_payload,
            lambda: work.start,
            linger=_ANY_SECONDS,
        ).run()
    except KeyboardInterrupt:
        return INTERRUPTED
    if not work.has_run:
        now_row = queue.store.find(row.id) or row
        reason = why(queue.store, now_row, queue.now())
        next_ = f" ({with_file(reason.command, arguments.file)})" if reason.command else ""
        return complain(f"{job_id} was not run: {reason.text}{next_}")
    return _report(queue, job_id)


def _in_this_process(handler: Handler) -> Handler:
    """Return the handler without its time limit. A command, another program, keeps it."""
    if handler.timeout is None or handler.is_command:
        return handler
    return Handler(
        handler.function,
        max_attempts=handler.max_attempts,
        backoff=handler.backoff,
        concurrency=handler.concurrency,
        unpack=handler.unpack,
    )


def _report(queue: Queue, job_id: str) -> int:
    job = queue.get_job(job_id)
    attempts = queue.history(job_id)
    last = attempts[-1] if attempts else None
    if output := queue.output(job_id, last["attempt"] if last else None):
        from dbbasic_queue.cli.output import safe

        print(safe(output).rstrip("\n"))
    if last is not None and last["traceback"]:
        for line in last["traceback"].splitlines():
            print(printable(line))
    outcome = last["outcome"] if last else "unknown"
    error = printable(unescape(job["error"] or "")) if job else ""
    if (terminal := Terminal()).is_screen:
        print(*wrapped(terminal, _sentence(queue, job, job_id, outcome)), sep="\n")
    else:
        print(f"{outcome}\t{job_id}" + (f"\t{error}" if error else ""))
    return {"completed": DONE, "delayed": NOT_DONE}.get(outcome, JOB_FAILED)


def _sentence(queue: Queue, job: JobDict | None, job_id: str, outcome: str) -> str:
    """Return how the job ended, for a person, who has just seen the traceback."""
    text = f"{job_id}: {outcome}"
    if job is None:
        return text
    if job["status"] == PENDING:
        due, now = job["run_at"], queue.now()
        return f"{text}; " + (f"due again {relative(due, now)}" if due > now else "due again now")
    if job["error"]:
        return f"{text}: {printable(unescape(job['error']))}"
    return text


class _Work:
    """Runs the job, if the pass can claim it."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self.has_run = False

    def start(self, pass_: Pass, claims: Claims) -> _Work:
        self._pass = pass_
        self._claims = claims
        self._executor = Executor(pass_, claims)
        return self

    def run(self) -> None:
        """Claim the job and run it; all other jobs stay as they are.

        Signals raise nothing here, except while the handler runs.
        """
        if (claim := self._claim()) is None:
            return
        self.has_run = True
        self._executor.log = log_lines.logger()
        try:
            self._executor.run(claim, Ticker(lambda: None))
            self._claims.history.flush()
        finally:
            self._restore()

    def _claim(self) -> Claim | None:
        if self._pass.interrupts.stop_requested():
            return None
        if isinstance(self._claims, FileClaims):
            return self._claims.claim_job(self._row.id, self._pass.clock())
        return self._claim_first()

    def _claim_first(self) -> Claim | None:
        """Make the job the first one that is due, and claim it; if that fails, restore it."""
        store, claims, state = self._pass.store, self._claims, self._row.state
        # Without its error: a job that may have killed its pass would come after all others.
        first = State(PENDING, state.created_at, _FIRST, state.attempts, "", "")
        if store.exchange([(self._row, first)]) == [None]:
            return None
        found: Claim | None = None
        others: list[Claim] = []
        try:
            # A server isn't asked again within half a second.
            claims.find_due(self._pass.clock() + _LATER_SECONDS)
            while found is None and len(others) < _MOST_OTHERS:
                claimed = claims.claim(1, self._pass.clock())
                if not claimed:
                    break
                for claim in claimed:
                    if claim.row.id == self._row.id:
                        found = claim
                    else:  # a server returns the jobs in the order of enqueueing
                        others.append(claim)
        finally:
            if others:
                claims.unclaim(others)
            if found is None:
                self._restore()
        return found

    def _restore(self) -> None:
        """Give the job its old state if it wasn't run, or was interrupted.

        A job that has run was due at its own time, or now if that is later.
        """
        store, before = self._pass.store, self._row.state
        present = store.find(self._row.id)
        if present is None:
            return
        state = present.state
        has_ended = any(self._pass.counts[name] for name in COUNTS if name != "recovered")
        if not has_ended and (state.status, state.attempts) == (PENDING, before.attempts):
            store.exchange([(present, before)])
        elif state.status in FINISHED and state.run_at == _FIRST:
            due = min(before.run_at, int(self._pass.clock()))
            after = State(
                state.status, state.created_at, due, state.attempts, state.error, state.result
            )
            store.exchange([(present, after)])

    def close(self) -> None:
        """Close the event loop, if the handler needed one."""
        self._executor.attempts.close()
