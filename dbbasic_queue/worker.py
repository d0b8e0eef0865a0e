"""A pass: take a slot, recover, claim, run, record, fold.

Handlers run without the lock, one at a time; each outcome is on the disk before the next handler
begins. A batch of claims grows while jobs are quick and is one while they are slow; and while a
job takes long, a watcher gives back what its pass has not begun and folds, so that other passes
share the work and `cat` shows what is running.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections import deque
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from dbbasic_queue import job
from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.rows import MAX_ERROR, encode_json, escape
from dbbasic_queue.store.claims import Claim, Claims

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from logging import Logger
    from types import FrameType
    from typing import Any

    from dbbasic_queue.store.store import Store

    Handlers = Mapping[str, Callable[[Any], Any]]

_BATCH_SECONDS = 0.05
_BATCH_MOST = 1024
_BATCH_GROWTH = 8
_SLOW = 0.2
_WATCH = 0.1
_NOT_BEGUN = (AsyncGeneratorType, CoroutineType, GeneratorType)


def check(handlers: Handlers, max_attempts: int) -> None:
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
    if type(max_attempts) is not int or max_attempts < 1:
        raise InvalidHandlers(
            f"max_attempts {max_attempts!r} is refused: it must be an int of 1 or more"
        )


def describe(error: BaseException) -> str:
    """Return an exception as the `error` column holds it: one line, `ValueError: no such user`.

    A plain Exception gives its message alone, one without a message its type alone. At most
    500 characters of the message are kept. An exception whose text raises is told by its type.
    """
    name = type(error).__name__
    try:
        message = "".join((str(error),))[: MAX_ERROR + 1]  # a plain str, whatever it was
    except BaseException as e:  # noqa: BLE001 - whatever it is, the pass must go on
        message = f"(its text cannot be had: {type(e).__name__})"
    if len(message) > MAX_ERROR:
        message = message[: MAX_ERROR - 1] + "…"
    if not message:
        return escape(name)
    return escape(message if type(error) is Exception else f"{name}: {message}")


class Interrupts:
    """SIGTERM and Ctrl-C while a pass runs.

    The first SIGTERM lets the job in hand finish; Ctrl-C, or a second signal, interrupts it.
    Outside of a handler both only end the pass after what it is doing. Handlers that the program
    has installed itself are left alone, and so is every thread but the main one.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.in_handler = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that a handler has forked: as if we were not
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)
            return
        self.received.append(number)
        if self.in_handler and (number == signal.SIGINT or len(self.received) > 1):
            raise KeyboardInterrupt

    def pass_on(self) -> None:
        """After the pass: end the program as the signal asked."""
        if signal.SIGINT in self.received:
            raise KeyboardInterrupt
        if self.received:
            raise SystemExit(128 + self.received[0])


class Pass:
    """One run of a worker over what is due."""

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        max_attempts: int,
        clock: Callable[[], float],
        max_result: int,
    ) -> None:
        self.store = store
        self.handlers = handlers
        self.max_attempts = max_attempts
        self.max_result = max_result
        self.clock = clock
        self.process = os.getpid()
        self.interrupts = Interrupts()
        self.batch: deque[Claim] = deque()
        self.begun_at = math.inf
        self.log: Logger | None = None
        self.counts = dict.fromkeys(("completed", "failed", "retried", "delayed", "recovered"), 0)

    def run(self) -> dict[str, int]:
        """Work through what is due; return how many jobs ended how."""
        now = self.clock()
        if not self.store.has_work(now):
            self._report_unreadable()
            return self.counts
        with self.interrupts:
            claims = Claims(self.store, self.max_attempts, now)
            try:
                self._report_recovered(claims)
                self._work(claims)
            except BaseException:
                if os.getpid() == self.process:
                    claims.release()
                raise
            unfolded = claims.finish()
        self._report_unreadable()
        if unfolded is not None and (log := logger()):
            log.error("the journal could not be folded, and nothing is lost: %s", unfolded)
        self.interrupts.pass_on()
        return self.counts

    def _work(self, claims: Claims) -> None:
        watcher = Watcher(self, claims)
        size = 1
        try:
            while not self.interrupts.received and (batch := claims.claim(size)):
                began = time.monotonic()
                self.batch.extend(batch)
                self.log = logger()
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
        finally:
            watcher.stop()
        self.give_back(claims)

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
        before = claim.row.state
        self.begun_at = began = time.monotonic()
        try:
            after = self._call(claim)
        finally:
            self.begun_at = math.inf
        if after is None:
            claims.give_back([claim], "interrupted: the pass was stopped")
            return
        recorded = claims.settle(claim, after)
        if recorded is not None:
            self._report(claim, recorded, time.monotonic() - began)
        elif log := logger():
            log.warning(
                "%s %s: the outcome of attempt %d came too late and is not recorded",
                escape(claim.row.type),
                claim.row.id,
                before.attempts,
            )

    def _call(self, claim: Claim) -> job.State | None:
        """Run the handler; return the job's next state, None where the pass was interrupted."""
        row = claim.row
        handler = self.handlers.get(row.type)
        if handler is None:
            return self._failed(row.state, f"No handler for {escape(row.type)}")
        try:
            self.interrupts.in_handler = True
            try:
                result = handler(claim.payload)
            finally:
                self.interrupts.in_handler = False
                if os.getpid() != self.process:
                    _end_child(row.type)
            if isinstance(result, _NOT_BEGUN):
                if not isinstance(result, AsyncGeneratorType):
                    result.close()
                raise TypeError(
                    f"the handler returned a {type(result).__name__}, which has not begun: "
                    "give a plain function"
                )
        except BaseException as e:  # noqa: BLE001 - SystemExit, too, is the job's error
            if isinstance(e, KeyboardInterrupt) and self.interrupts.received:
                return None
            return self._failed(row.state, describe(e))
        return self._completed(row.state, result)

    def _failed(self, state: job.State, error: str) -> job.State | None:
        return job.fail(state, error, self.max_attempts, self.clock())

    def _completed(self, state: job.State, result: object) -> job.State | None:
        if result is None:
            return job.complete(state, "")
        try:
            return job.complete(state, encode_json(result, self.max_result))
        except BaseException as e:  # noqa: BLE001 - the work is done: it must not run again
            return job.complete(state, "", escape("result not kept: ") + describe(e))

    # -- reports: after the outcome is on the disk --

    def _report(self, claim: Claim, after: job.State, seconds: float) -> None:
        outcome = "retried" if after.status == job.PENDING else after.status
        self.counts[outcome] += 1
        if log := self.log:
            level = {"completed": 20, "retried": 30}.get(outcome, 40)
            if after.error and outcome == "completed":
                level = 30
            _log(log, level, claim.row.id, claim.row.type, after, seconds)

    def _report_recovered(self, claims: Claims) -> None:
        self.counts["recovered"] = claims.recovered
        self.counts["failed"] = len(claims.lost)
        if log := logger():
            for row in claims.lost:
                _log(log, 40, row.id, row.type, row.state, None)

    def _report_unreadable(self) -> None:
        rejected, self.store.rejected = self.store.rejected, 0
        if rejected and (log := logger()):
            log.warning(
                "%d lines with NULs and the like were moved to %s.rejected, and are no jobs",
                rejected,
                self.store.path,
            )
        lines = self.store.view.unreadable
        if lines and (log := logger()):
            shown = ", ".join(str(n + 2) for n in lines[:10]) + (" ..." if len(lines) > 10 else "")
            log.warning(
                "%d lines of %s are no jobs, and are kept as they are: line %s",
                len(lines),
                self.store.path,
                shown,
            )


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
        if self._thread is not None and os.getpid() == self._pass.process:
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


def _end_child(job_type: str) -> None:
    """End a process that a handler has forked and left: it must not become a second worker."""
    text = f"the handler for {escape(job_type)} came back in a forked child; it ends here\n"
    try:
        os.write(2, b"dbbasic_queue: " + text.encode())
    finally:
        os._exit(1)


def logger() -> Logger | None:
    """Return the package's logger; None where nobody has imported `logging`, so nobody listens."""
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    log: Logger = logging.getLogger("dbbasic_queue")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log


def _log(
    log: Logger, level: int, job_id: str, job_type: str, state: job.State, seconds: float | None
) -> None:
    if not log.isEnabledFor(level):
        return
    outcome = "retried" if state.status == job.PENDING else state.status
    log.log(
        level,
        "%s %s %s, attempt %d%s",
        escape(job_type),
        job_id,
        outcome,
        state.attempts,
        f": {state.error}" if state.error else "",
        extra={
            "job_id": job_id,
            "job_type": job_type,
            "status": state.status,
            "attempt": state.attempts,
            "seconds": seconds,
        },
    )
