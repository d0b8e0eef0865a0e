"""A handler: a function and its policy, and the exceptions that it may raise.

- Policies are declared in code, not in the queue's file, which keeps its nine columns.
- A policy sets retries, a time limit and a concurrency. If it has no `max_attempts`, the pass's
  argument of that name applies.
"""

from __future__ import annotations

import math
import time

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.model.checks import check_amount, check_count, check_seconds, check_text
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.states import LATEST, backoff
from dbbasic_queue.signatures import HasSignature, read_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from logging import Logger
    from typing import Any, Protocol

    from dbbasic_queue.model.rows import Row

    class Link(Protocol):
        """What a running job reports to its pass."""

        now: Callable[[], float]
        """returns the time in Unix seconds"""

        def report_progress(
            self, job: Job, at: float, done: float, total: float | None, note: str
        ) -> None:
            """Keep how far the job is at the instant `at`. `note` is escaped.

            No error of the disk is raised.
            """

        def is_to_stop(self, row: Row) -> bool:
            """Return whether someone has called `stop_job` for the job; `row` is as claimed."""


class Delay(Exception):
    """Raised by a handler to run its job later, without counting the attempt.

    The job is pending again, with the reason in `error`. `when` is how long to wait (seconds, or a
    `timedelta`) or until when (an aware datetime). An invalid one counts as an error of the job.
    """

    def __init__(self, when: float | timedelta | datetime, reason: str = "") -> None:
        super().__init__(reason)
        self.when = when
        self.reason = reason

    def __repr__(self) -> str:
        reason = f", {self.reason!r}" if self.reason else ""
        return f"{type(self).__name__}({self.when!r}{reason})"


class Fail(Exception):
    """Raised by a handler whose job can't succeed: it is `failed` now, without further attempts."""


class JobStopped(Exception):
    """Raised by `Job.check_stop` if someone has called `stop_job` for the job."""


class Backoff:
    """How long a job waits after a failed attempt: `first` seconds after the first one.

    Each further wait is `factor` times as long, up to `cap`: after attempt n the job waits
    `min(first * factor ** (n - 1), cap)`. `first` and `cap` are seconds or a `timedelta`. `jitter`
    makes each wait longer, also beyond `cap`, by a random part of up to `jitter`: with 0.1, a wait
    of 120 seconds takes 120 to 132. The default waits are 120, 240, 480 seconds and so on.

    Raises InvalidHandlers for numbers that are negative or not finite, and for a factor below 1.

    >>> [Backoff(first=10, factor=3, cap=100).seconds(n) for n in (1, 2, 3, 5000)]
    [10.0, 30.0, 90.0, 100.0]
    """

    def __init__(
        self,
        first: float | timedelta = 120,
        factor: float = 2,
        cap: float | timedelta = LATEST,
        jitter: float = 0,
    ) -> None:
        self.first = _number("first", check_seconds(first, "first", error=InvalidHandlers), 0)
        self.factor = _number("factor", factor, 1)
        self.cap = _number("cap", check_seconds(cap, "cap", error=InvalidHandlers), 0)
        self.jitter = _number("jitter", jitter, 0)

    def __repr__(self) -> str:
        cap = "" if self.cap == LATEST else f", cap={self.cap!r}"
        return f"Backoff(first={self.first!r}, factor={self.factor!r}{cap}, jitter={self.jitter!r})"

    def seconds(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt` failed, without jitter."""
        try:
            return float(min(self.first * float(self.factor) ** (attempt - 1), self.cap))
        except OverflowError:
            return float(self.cap if self.first else 0)

    def longest(self, attempt: int) -> float:
        """Return the longest wait that is possible, in seconds."""
        return self.seconds(attempt) * (1 + self.jitter)

    def draw(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt, with a random jitter."""
        seconds = self.seconds(attempt)
        if not self.jitter:
            return seconds
        from random import random

        return seconds * (1 + self.jitter * random())


def _number(name: str, value: object, least: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value:
        raise InvalidHandlers(f"invalid {name} {value!r}: must be a number, {least} or more")
    if value > LATEST:
        raise InvalidHandlers(f"invalid {name} {value!r}: must be at most {LATEST}")
    return value


_PROGRESS_SECONDS = 1.0
"""how often a job's progress is written, at most"""
_LONGEST_NOTE = 200


class Job:
    """What hooks get, and a handler that takes a second argument: the job that is run.

    `id` is the same in every attempt: use it as the key for work that must not be done twice.
    `attempt` counts from 1. `created_at` is in Unix seconds. `payload` is a copy of the payload.
    `log` is a logger whose records carry the job's id. `progress` reports how far the job is.
    `stop_requested` and `check_stop` tell it to stop.
    """

    __slots__ = (
        "_link",
        "_next_look_at",
        "_queue",
        "_reported",
        "_row",
        "attempt",
        "created_at",
        "id",
        "started_at",
        "type",
    )

    def __init__(self, row: Row, link: Link | None = None, queue: str = "") -> None:
        self._row = row
        self._queue = queue
        """the queue's path or URL, for the digests of `notify`"""
        self._next_look_at = 0.0
        """when to look again for a request to stop, on the monotonic clock; infinite if there was
        one"""
        self.id = row.id
        self.type = row.type
        self.attempt = row.state.attempts
        self.created_at = row.state.created_at
        self._link = link
        self.started_at = link.now() if link else 0.0
        """when this attempt was started, in Unix seconds; 0 in the hooks called after it"""
        self._reported: tuple[float, float, float | None] | None = None
        """when progress was last reported, and what: `done` and `total`"""

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.type}, attempt {self.attempt}>"

    @property
    def payload(self) -> Any:
        """The payload; each time a new copy, which the handler hasn't changed."""
        return decode_json(self._row.payload) if self._row.payload else {}

    @property
    def stop_requested(self) -> bool:
        """Whether someone has called `stop_job` for this job. Looks at most ten times a second.

        Always False in a process of its own (a handler with a `timeout`): that gets SIGTERM.
        """
        now = time.monotonic()
        if now >= self._next_look_at and self._link is not None:
            is_to_stop = self._link.is_to_stop(self._row)
            self._next_look_at = math.inf if is_to_stop else now + _LOOK_SECONDS
        return self._next_look_at == math.inf

    def check_stop(self) -> None:
        """Raise JobStopped if someone has called `stop_job` for this job."""
        if self.stop_requested:
            raise JobStopped(f"job {self.id} is to stop: someone has called stop_job")

    @property
    def log(self) -> Logger:
        """The logger `dbbasic_queue.job.TYPE`; its records carry `job_id` and `attempt`."""
        import logging

        logger = logging.getLogger(f"dbbasic_queue.job.{self.type}")
        adapter: Any = logging.LoggerAdapter(logger, {"job_id": self.id, "attempt": self.attempt})
        return adapter  # type: ignore[no-any-return]

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report how far the job is: `done` of `total` units, numbers of 0 or more.

        `note` says what it is doing; 200 characters of it are kept. `queue.progress(job_id)`,
        `dbbasic-queue status` and `show` show the last report until the attempt ends. Call it as
        often as you like: a report is written to `queue.tsv.progress`, unsynced, if the last one
        was written a second ago or longer, or if `done` has just reached `total`. Others are
        dropped.

        Raises InvalidArgument for an invalid argument. If the report can't be written, that is
        logged, and the job goes on.
        """
        done = check_amount(done, "done")
        if total is not None:
            total = check_amount(total, "total", above=0)
        note = check_text(note, "note", _LONGEST_NOTE)
        if self._link is None:
            return
        now = self._link.now()
        if self._reported is not None:
            at, *last = self._reported
            is_last = done == total and last != [done, total]
            if 0 <= now - at < _PROGRESS_SECONDS and not is_last:
                return
        self._reported = now, done, total
        self._link.report_progress(self, now, done, total, note)


_LOOK_SECONDS = 0.1
"""how often `Job.stop_requested` looks"""
JOB_IN_PAYLOAD = (
    "the payload has a member named job, but that argument gets the Job (rename the member)"
)


class Handler(HasSignature):
    """A function or coroutine function, and its policy. Calling the Handler calls the function.

    - `max_attempts`: how many attempts a job has, 1 or more; by default that of the pass.
    - `backoff`: how long to wait after a failed attempt; by default 120, 240, 480 seconds and so
      on.
    - `timeout`: seconds, or a `timedelta`, over 0. Each attempt runs in a process of its own, which
      is killed with all that it has started when the time is up, or when its pass dies. So the
      pass doesn't see changes that the handler makes in memory. `math.inf` means such a process
      without a limit. By default there is no limit, and no such process.
    - `concurrency`: how many jobs of the type may be `processing` at once, 1 or more, across all
      passes and processes.
    - `priority`: an int; due jobs of types with a higher priority run first. By default 0.
    - `unpack`: the payload is a JSON object whose members are the function's keyword arguments.

    Raises InvalidHandlers for an invalid argument, and for a function that no pass could call.
    """

    is_command = False
    """whether it runs a program, instead of a function"""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: float | timedelta | None = None,
        concurrency: int | None = None,
        priority: int = 0,
        unpack: bool = False,
    ) -> None:
        if not callable(function):
            raise InvalidHandlers(
                f"invalid handler {function!r}: it can't be called (give a function that takes the "
                "payload)"
            )
        if max_attempts is not None:
            check_count(max_attempts, "max_attempts")
        if concurrency is not None:
            check_count(concurrency, "concurrency")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidHandlers(f"invalid priority {priority!r}: must be an int")
        if backoff is not None and not isinstance(backoff, Backoff):
            raise InvalidHandlers(f"invalid backoff {backoff!r}: must be a Backoff(...)")
        if timeout is not None:
            timeout = check_seconds(timeout, "timeout", above=0, error=InvalidHandlers)
        self.function = function
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.timeout = timeout
        self.concurrency = concurrency
        self.priority = priority
        self.unpack = unpack
        self._signature = signature = read_signature(function, unpack=unpack)
        self.takes_job = signature.takes_job
        self.is_coroutine = signature.is_coroutine

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Handler:
        """Return a Handler unchanged, and a function as a Handler without a policy."""
        return function if isinstance(function, Handler) else cls(function)

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        policy = {
            "max_attempts": self.max_attempts,
            "backoff": self.backoff,
            "timeout": self.timeout,
            "concurrency": self.concurrency,
            "priority": self.priority or None,
            "unpack": self.unpack or None,
        }
        given = [f", {key}={value!r}" for key, value in policy.items() if value is not None]
        return f"<{type(self).__name__} {name}{''.join(given)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def start(self, payload: Any, job: Job | None) -> Any:
        """Call the function with a job's payload, and with the `job` if it takes one.

        A coroutine function hasn't run any code when this returns. Raises TypeError for a payload
        that can't be unpacked.
        """
        if self.unpack:
            if not isinstance(payload, dict):
                raise TypeError(
                    f"invalid payload of type {type(payload).__name__}: must be a JSON object, "
                    "because the handler unpacks it"
                )
            if self.takes_job:
                if "job" in payload:
                    raise TypeError(JOB_IN_PAYLOAD)
                payload = payload | {"job": job}
            return self.function(**payload)
        if not self.takes_job:
            return self.function(payload)
        if self._signature.job_by_name:
            return self.function(payload, job=job)
        return self.function(payload, job)

    def enter_process(self, queue: str, max_result: int) -> None:
        """Prepare for one attempt, in the process of its own that a handler with a timeout has.

        `queue` is the queue's path or URL, `max_result` how many bytes its JSON result may have.
        """

    @property
    def shares_loop(self) -> bool:
        """Whether its jobs may run next to others on one event loop; not with a timeout."""
        return self.is_coroutine and self.timeout is None

    def wait(self, attempt: int) -> float:
        """Return how many seconds to wait after this attempt has failed."""
        return backoff(attempt) if self.backoff is None else self.backoff.draw(attempt)

    def longest_wait(self, attempt: int) -> float:
        """Return the most seconds that `wait` can return."""
        return backoff(attempt) if self.backoff is None else self.backoff.longest(attempt)
