"""What runs: a function and its policy, and what it may raise.

What runs is declared beside the function; the queue's file stays nine columns. A policy says how
often and how soon a job is tried again; where it says nothing, the pass's own arguments count.
"""

from __future__ import annotations

from types import FunctionType, MethodType

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.job import LATEST, backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from logging import Logger
    from typing import Any


class Delay(Exception):
    """Raised by a handler to put its job back: pending, no attempt spent, the reason in `error`.

    `when` is how long to wait, in seconds, or an aware datetime; the job is not due before.
    """

    def __init__(self, when: float | datetime, reason: str = "") -> None:
        super().__init__(reason)
        self.when = when
        self.reason = reason


class Fail(Exception):
    """Raised by a handler whose job cannot succeed: `failed` at once, attempts left or not."""


class Backoff:
    """How long a job waits after attempt n failed: `base * factor ** n` seconds, at most `cap`.

    `jitter` adds up to that share of the wait at random, never takes from it: 0.1 makes 120
    seconds 120 to 132. The default is the plain `60 * 2 ** n`. Raises InvalidHandlers for numbers
    that are negative, not finite, or for a factor under 1.

    >>> [Backoff(base=10, factor=3, cap=100).seconds(n) for n in (1, 2, 3, 5000)]
    [30.0, 90.0, 100.0, 100.0]
    """

    def __init__(
        self, base: float = 60, factor: float = 2, cap: float = LATEST, jitter: float = 0
    ) -> None:
        for name, value, least in (
            ("base", base, 0),
            ("factor", factor, 1),
            ("cap", cap, 0),
            ("jitter", jitter, 0),
        ):
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not (least <= value <= LATEST)
            ):
                raise InvalidHandlers(
                    f"Backoff({name}={value!r}) is refused: it must be a number of {least} or more"
                )
        self.base = base
        self.factor = factor
        self.cap = cap
        self.jitter = jitter

    def seconds(self, attempt: int) -> float:
        """Return the wait without its jitter."""
        try:
            return float(min(self.base * float(self.factor) ** attempt, self.cap))
        except OverflowError:
            return float(self.cap)

    def longest(self, attempt: int) -> float:
        """Return the longest wait that is possible, in seconds."""
        return self.seconds(attempt) * (1 + self.jitter)

    def draw(self, attempt: int) -> float:
        """Return a wait with its jitter."""
        seconds = self.seconds(attempt)
        if not self.jitter:
            return seconds
        from random import random

        return seconds * (1 + self.jitter * random())


class Job:
    """What a handler is told of its job, if it takes a second argument.

    `id` is the same at every attempt: a key for what must not happen twice. `attempt` counts from
    1. `log` is a logger whose lines are marked with the job's type and id.
    """

    __slots__ = ("attempt", "created_at", "id", "type")

    def __init__(self, job_id: str, job_type: str, attempt: int, created_at: int) -> None:
        self.id = job_id
        self.type = job_type
        self.attempt = attempt
        self.created_at = created_at

    @property
    def log(self) -> Logger:
        """The logger `dbbasic_queue.job.TYPE`; its records carry `job_id` and `attempt`."""
        import logging

        logger = logging.getLogger(f"dbbasic_queue.job.{self.type}")
        adapter: Any = logging.LoggerAdapter(logger, {"job_id": self.id, "attempt": self.attempt})
        return adapter  # type: ignore[no-any-return]


class Handler:
    """A function and its policy; None leaves it to the pass.

    `max_attempts` counts from 1. Calling it calls the function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        if not callable(function):
            raise InvalidHandlers(
                f"{function!r} cannot be called: give a function that takes the payload"
            )
        if max_attempts is not None:
            check_max_attempts(max_attempts)
        self.function = function
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.takes_job = _takes_job(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt failed."""
        return backoff(attempt) if self.backoff is None else self.backoff.draw(attempt)

    def longest_wait(self, attempt: int) -> float:
        """Return the most seconds that `wait` can give."""
        return backoff(attempt) if self.backoff is None else self.backoff.longest(attempt)


def check_max_attempts(max_attempts: object) -> None:
    """Raise InvalidHandlers unless it is an int of 1 or more."""
    if type(max_attempts) is not int or max_attempts < 1:
        raise InvalidHandlers(
            f"max_attempts {max_attempts!r} is refused: it must be an int of 1 or more"
        )


def _takes_job(function: Callable[..., Any]) -> bool:
    """Tell whether a second argument is wanted: one without a default, or one named `job`."""
    bound = 0
    if isinstance(function, MethodType):
        function, bound = function.__func__, 1
    if not isinstance(function, FunctionType):
        call = type(function).__call__
        if not isinstance(call, FunctionType):
            return False
        function, bound = call, 1
    code = function.__code__
    names = code.co_varnames[bound : code.co_argcount]
    required = len(names) - len(function.__defaults__ or ())
    return len(names) >= 2 and (required >= 2 or names[1] == "job")
