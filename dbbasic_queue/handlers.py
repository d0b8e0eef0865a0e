"""What runs: a function and its policy, and what it may raise.

What runs is declared beside the function; the queue's file stays nine columns. A policy says how
often and how soon a job is tried again; where it says nothing, the pass's own arguments count.
"""

from __future__ import annotations

import sys
from types import FunctionType, MethodType

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.model.checks import check_count, check_seconds
from dbbasic_queue.model.states import LATEST, backoff

# Of the module `inspect`, which takes long to load.
CO_VARARGS, CO_VARKEYWORDS, CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR = 4, 8, 32, 128, 512

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from logging import Logger
    from typing import Any

    from dbbasic_queue.model.rows import Row


class Delay(Exception):
    """Raised by a handler to put its job back: pending, no attempt spent, the reason in `error`.

    `when` is how long to wait (seconds, or a `timedelta`) or until when (an aware datetime).
    """

    def __init__(self, when: float | timedelta | datetime, reason: str = "") -> None:
        super().__init__(reason)
        self.when = when
        self.reason = reason

    def __repr__(self) -> str:
        reason = f", {self.reason!r}" if self.reason else ""
        return f"{type(self).__name__}({self.when!r}{reason})"


class Fail(Exception):
    """Raised by a handler whose job cannot succeed: `failed` at once, attempts left or not."""


class Backoff:
    """How long a job waits after a failed attempt: `first` seconds after the first one.

    Each further wait is `factor` times as long, up to `cap`: after attempt n the job waits
    `min(first * factor ** (n - 1), cap)`. `first` and `cap` are seconds or a `timedelta`. `jitter`
    makes each wait longer by a random share of up to `jitter`, never shorter: with 0.1, a wait of
    120 seconds takes 120 to 132. The default waits are 120, 240, 480 seconds and so on.

    Raises InvalidHandlers for numbers that are negative or not finite, and a factor below 1.

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
        """Return a wait with its jitter."""
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

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.type}, attempt {self.attempt}>"

    @property
    def log(self) -> Logger:
        """The logger `dbbasic_queue.job.TYPE`; its records carry `job_id` and `attempt`."""
        import logging

        logger = logging.getLogger(f"dbbasic_queue.job.{self.type}")
        adapter: Any = logging.LoggerAdapter(logger, {"job_id": self.id, "attempt": self.attempt})
        return adapter  # type: ignore[no-any-return]


JOB_IN_PAYLOAD = (
    "the payload has a member named job, but that argument gets the Job (rename the member)"
)


class Handler:
    """A function, or coroutine function, and its policy; None leaves it to the pass.

    `max_attempts` counts from 1. `timeout` is in seconds, over 0: each attempt runs in a process
    of its own, which is killed with all that it has started when the time is up, and when its pass
    dies; so what it changes in memory is not seen by the pass. `math.inf` sets no limit, and gives
    the job its process. `concurrency` is how many jobs of
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
        timeout: float | timedelta | None = None,
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
            raise InvalidHandlers(f"invalid backoff {backoff!r}: must be a Backoff(...)")
        if timeout is not None:
            timeout = check_seconds(timeout, "timeout", above=0, error=InvalidHandlers)
        self.function = function
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.timeout = timeout
        self.concurrency = concurrency
        self.unpack = unpack
        signature = _Signature(function, unpack)
        self.takes_job = signature.takes_job
        self._job_by_name = signature.job_by_name
        self.is_coroutine = signature.is_coroutine

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Handler:
        """Return a handler as it is, and a function as a handler without a policy."""
        return function if isinstance(function, Handler) else cls(function)

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        policy = {
            "max_attempts": self.max_attempts,
            "backoff": self.backoff,
            "timeout": self.timeout,
            "concurrency": self.concurrency,
            "unpack": self.unpack or None,
        }
        given = [f", {key}={value!r}" for key, value in policy.items() if value is not None]
        return f"<{type(self).__name__} {name}{''.join(given)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def start(self, payload: Any, job: Job | None) -> Any:
        """Call the function with a job's payload, and with the `job` if it takes one.

        A coroutine function has not run when this returns.
        """
        if self.unpack:
            if not isinstance(payload, dict):
                raise TypeError(f"the payload is a {type(payload).__name__}, no object to unpack")
            if self.takes_job:
                if "job" in payload:
                    raise TypeError(JOB_IN_PAYLOAD)
                payload = payload | {"job": job}
            return self.function(**payload)
        if not self.takes_job:
            return self.function(payload)
        if self._job_by_name:
            return self.function(payload, job=job)
        return self.function(payload, job)

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


class _Signature:
    """What a function takes, as far as that can be told without calling it.

    It takes the job in a second argument: one without a default, or one named `job`, which may be
    keyword-only; of unpacked arguments, in the one with that name. Behind a decorator that passes
    on what it is given (functools.wraps), only the name tells: another argument may be the
    decorator's to give. A built-in or a class is taken to want the payload only.

    Raises InvalidHandlers for a function that no pass could call.
    """

    def __init__(self, function: Callable[..., Any], unpack: bool) -> None:
        self.takes_job = self.job_by_name = self.is_coroutine = False
        given = 0
        named: set[str] = set()
        functools = sys.modules.get("functools")  # loaded if the program has made a partial
        while not isinstance(function, FunctionType):
            if isinstance(function, Handler):
                self.takes_job = function.takes_job
                self.job_by_name = function._job_by_name
                self.is_coroutine = function.is_coroutine
                return
            if (
                functools
                and hasattr(functools, "partial")
                and isinstance(function, functools.partial)
            ):
                given += len(function.args)
                named.update(function.keywords)
                function = function.func
            elif isinstance(function, MethodType):
                given += 1
                function = function.__func__
            elif isinstance(function, staticmethod):
                function = function.__func__
            elif isinstance(type(function).__call__, FunctionType):
                given += 1
                function = type(function).__call__
            else:
                return
        self.is_coroutine = bool(function.__code__.co_flags & CO_COROUTINE)
        wrapped = False
        passes_names = True
        while function.__code__.co_flags & CO_VARARGS and isinstance(
            inner := getattr(function, "__wrapped__", None), FunctionType
        ):
            wrapped = True
            passes_names = passes_names and bool(function.__code__.co_flags & CO_VARKEYWORDS)
            function = inner
        code = function.__code__
        positional = code.co_varnames[given : code.co_argcount]
        by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        if not wrapped:
            _check_callable(function, given, named, unpack)
        if unpack:
            self.takes_job = "job" in (*positional, *by_name) and "job" not in named
        elif len(positional) > 1 and positional[1] not in named:
            required = code.co_argcount - len(function.__defaults__ or ())
            self.takes_job = positional[1] == "job" or (given + 1 < required and not wrapped)
        if not unpack and not self.takes_job and passes_names:
            self.takes_job = self.job_by_name = "job" in by_name and "job" not in named


def _check_callable(function: FunctionType, given: int, named: set[str], unpack: bool) -> None:
    """Raise InvalidHandlers if no pass could call it; a partial has `given` and `named` some."""
    code = function.__code__
    arguments = code.co_varnames[: code.co_argcount]
    first_default = code.co_argcount - len(function.__defaults__ or ())
    required = [name for name in arguments[given:first_default] if name not in named]
    by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    defaults = function.__kwdefaults__ or {}
    why = ""
    if code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR):
        why = "is a generator function (use return instead of yield)"
    elif not given and arguments[:1] == ("self",):
        why = "is a method without its object (register a bound method, such as mailer.send)"
    elif unpack:
        for name in required:
            if name in arguments[: code.co_posonlyargcount]:
                why = f"takes {name!r} by position only, and unpack gives arguments by name"
    elif not (arguments[given:] or code.co_flags & CO_VARARGS):
        why = "takes no payload (give it an argument for the payload)"
    elif arguments[given:] and arguments[given] in named:
        why = f"is given its first argument, {arguments[given]!r}, which is the payload's"
    elif len(required) > 2:
        why = (
            f"requires {len(required)} arguments, but gets only the payload and, as a second one, "
            "the job (bind the others with functools.partial)"
        )
    else:
        missing = {*by_name} - {*defaults} - named - {"job"}
        if missing:
            why = (
                f"requires the argument {min(missing)!r} by name, but gets only the job by name "
                "(give it a default, or use unpack=True)"
            )
    if why:
        raise InvalidHandlers(f"invalid handler {function.__qualname__}: it {why}")
