"""What runs: a function and its policy, and what it may raise.

What runs is declared beside the function; the queue's file stays nine columns. A policy says how
often and how soon a job is tried again; where it says nothing, the pass's own arguments count.
"""

from __future__ import annotations

import sys
from types import FunctionType, MethodType

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.job import LATEST, backoff

CO_VARARGS, CO_COROUTINE = 4, 128  # of the module `inspect`, which takes long to load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from logging import Logger
    from typing import Any

    from dbbasic_queue.rows import Row


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
                    f"Backoff({name}={value!r}) is refused: it must be a number from {least} to "
                    f"{LATEST}"
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
            return float(self.cap if self.base else 0)

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

    def __init__(self, row: Row) -> None:
        self.id = row.id
        self.type = row.type
        self.attempt = row.state.attempts
        self.created_at = row.state.created_at

    @property
    def log(self) -> Logger:
        """The logger `dbbasic_queue.job.TYPE`; its records carry `job_id` and `attempt`."""
        import logging

        logger = logging.getLogger(f"dbbasic_queue.job.{self.type}")
        adapter: Any = logging.LoggerAdapter(logger, {"job_id": self.id, "attempt": self.attempt})
        return adapter  # type: ignore[no-any-return]


class Handler:
    """A function, or coroutine function, and its policy; None leaves it to the pass.

    `max_attempts` counts from 1. `timeout` is in seconds, over 0: each attempt runs in a process
    of its own, which is killed with all that it has started when the time is up, and when its pass
    dies; so what it changes in memory is not seen by the pass. `concurrency` is how many jobs of
    the type may be `processing` at once, over all passes and processes. With `unpack` the payload
    is a JSON object whose members become the function's keyword arguments. Calling the Handler
    calls the function.

    Raises InvalidHandlers for what cannot work.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        unpack: bool = False,
    ) -> None:
        if not callable(function):
            raise InvalidHandlers(
                f"{function!r} cannot be called: give a function that takes the payload"
            )
        if max_attempts is not None:
            check_count(max_attempts, "max_attempts")
        if concurrency is not None:
            check_count(concurrency, "concurrency")
        if backoff is not None and not isinstance(backoff, Backoff):
            raise InvalidHandlers(f"backoff {backoff!r} is refused: give a Backoff(...)")
        if timeout is not None and not is_seconds(timeout, above=0):
            raise InvalidHandlers(f"timeout {timeout!r} is refused: it must be seconds, over 0")
        self.function = function
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.timeout = timeout
        self.concurrency = concurrency
        self.unpack = unpack
        self.takes_job, self.is_coroutine = _look_at(function, unpack)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Handler:
        """Return a handler as it is, and a function as a handler without a policy."""
        return function if isinstance(function, Handler) else cls(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def shares_loop(self) -> bool:
        """Whether its jobs may run beside others on one event loop: a limit of time needs more."""
        return self.is_coroutine and self.timeout is None

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt failed."""
        return backoff(attempt) if self.backoff is None else self.backoff.draw(attempt)

    def longest_wait(self, attempt: int) -> float:
        """Return the most seconds that `wait` can give."""
        return backoff(attempt) if self.backoff is None else self.backoff.longest(attempt)


def check_count(count: object, name: str) -> None:
    """Raise InvalidHandlers unless it is an int of 1 or more."""
    if type(count) is not int or count < 1:
        raise InvalidHandlers(f"{name} {count!r} is refused: it must be an int of 1 or more")


def is_seconds(seconds: object, *, above: float | None = None) -> bool:
    """Tell whether it is a number of seconds: 0 or more, or more than `above`; never NaN."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return False
    return seconds >= 0 if above is None else seconds > above


def _look_at(function: Callable[..., Any], unpack: bool) -> tuple[bool, bool]:
    """Tell whether a function wants the `Job`, and whether it is a coroutine function.

    It wants the job in a second argument: one without a default, or one named `job`; of unpacked
    arguments, in the one with that name. Behind a decorator that passes on whatever it is given
    (functools.wraps), only the name tells: another argument may be the decorator's to give.
    """
    given = 0
    named: set[str] = set()
    functools = sys.modules.get("functools")  # who has made a partial has loaded it
    while not isinstance(function, FunctionType):
        if isinstance(function, Handler):
            return function.takes_job, function.is_coroutine
        if functools and hasattr(functools, "partial") and isinstance(function, functools.partial):
            given += len(function.args)
            named.update(function.keywords)
            function = function.func
        elif isinstance(function, MethodType):
            given += 1
            function = function.__func__
        elif isinstance(type(function).__call__, FunctionType):
            given += 1
            function = type(function).__call__
        else:
            return False, False
    is_coroutine = bool(function.__code__.co_flags & CO_COROUTINE)
    by_name_alone = False
    while function.__code__.co_flags & CO_VARARGS and isinstance(
        inner := getattr(function, "__wrapped__", None), FunctionType
    ):
        by_name_alone = True
        function = inner
    code = function.__code__
    last = code.co_argcount + (code.co_kwonlyargcount if unpack else 0)
    names = code.co_varnames[given:last]
    if unpack:
        return "job" in names and "job" not in named, is_coroutine
    if len(names) < 2 or names[1] in named:
        return False, is_coroutine
    required = code.co_argcount - len(function.__defaults__ or ())
    return names[1] == "job" or (given + 1 < required and not by_name_alone), is_coroutine
