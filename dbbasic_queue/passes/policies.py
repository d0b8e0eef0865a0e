"""The policies of a pass: which job types it runs, with how many attempts and which waits.

Handlers are checked before a pass starts: if one is invalid, no job has run.
"""

from __future__ import annotations

import sys

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.handlers import Handler
from dbbasic_queue.lazy import load
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import check_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Literal

    from dbbasic_queue.passes.hooks import Hooks

    AnyHandlers = Mapping[str, Callable[..., Any]]
    Kind = Literal["all", "plain", "coroutines"]

ALL: Kind = "all"
PLAIN: Kind = "plain"
COROUTINES: Kind = "coroutines"
"""only functions that may share an event loop; a coroutine function with a timeout is PLAIN"""


def check(handlers: AnyHandlers, max_attempts: int, workers: int = 1) -> dict[str, Handler]:
    """Return each job type's Handler; types whose handler is None are left out.

    Raises InvalidHandlers if a pass couldn't run the handlers, or if `max_attempts` or `workers` is
    invalid.
    """
    if not hasattr(handlers, "get") or not hasattr(handlers, "items"):
        raise InvalidHandlers(
            f"invalid handlers of type {type(handlers).__name__}: must map job types to callables "
            '(give a dict such as {"send_email": send_email})'
        )
    checked = {}
    for job_type, handler in handlers.items():
        if handler is None:
            continue
        if not callable(handler):
            raise InvalidHandlers(
                f"invalid handler for {job_type!r}: {type(handler).__name__} can't be called "
                "(give a function that takes the payload)"
            )
        checked[job_type] = Handler.of(handler)
    check_count(max_attempts, "max_attempts")
    check_count(workers, "workers")
    if (hooks := hooks_of(handlers)) is not None:
        hooks.check(checked)
    return checked


def hooks_of(handlers: object) -> Hooks | None:
    """Return the hooks of a registry; None if it has none, or for a plain dict."""
    return getattr(handlers, "hooks", None)


def check_thread(handlers: Mapping[str, Handler]) -> None:
    """Raise InvalidHandlers for a coroutine function if an event loop is running in this thread."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return
    for job_type, handler in handlers.items():
        if handler.is_coroutine:
            raise InvalidHandlers(
                f"invalid handler for {job_type!r}: it is a coroutine function, and an event "
                "loop is already running in this thread "
                "(await asyncio.to_thread(process_jobs, handlers))"
            )


class Policies:
    """The handlers of one pass, and their policies.

    `max_attempts` applies to handlers that have no limit of their own. With `skip_unknown` the pass
    leaves jobs of types without a handler alone. `kind` is for a call that needs several passes and
    divides the handlers among them: ALL, PLAIN (jobs without a handler, too) or COROUTINES.
    """

    def __init__(
        self,
        handlers: AnyHandlers,
        max_attempts: int,
        *,
        skip_unknown: bool = False,
        kind: Kind = ALL,
    ) -> None:
        self.concurrency: dict[str, int] = {}
        """job type -> its limit, for the types with one that were looked up so far"""
        self.hooks = hooks_of(handlers)
        self.keep: float | None = getattr(handlers, "keep", None)
        """for how many seconds finished jobs are kept; None if no pass removes them"""
        self._handlers = handlers
        self._max_attempts = max_attempts
        self._skip_unknown = skip_unknown
        self._kind = kind
        self._known: dict[str, Handler] = {}

    def handler(self, job_type: str) -> Handler | None:
        """Return the handler of a type, or None.

        A missing one is looked up again the next time: the program may register it later.
        """
        known = self._known.get(job_type)
        if known is None and (found := self._handlers.get(job_type)) is not None:
            known = self._known[job_type] = Handler.of(found)
            if known.concurrency is not None:
                self.concurrency[job_type] = known.concurrency
        return known

    def count(self) -> int:
        """Return how many types have a handler; 0 if the handlers have no length."""
        count: Callable[[], int] = getattr(self._handlers, "__len__", lambda: 0)
        return count()

    def names(self) -> list[str]:
        """Return the types that have a handler."""
        return list(self._handlers)

    def types(self) -> str:
        """Return the types that a pass runs, with their limits, as in the log of passes."""
        found = []
        for name, function in self._handlers.items():
            if function is not None and self._is_of_kind(handler := Handler.of(function)):
                found.append((name, handler.concurrency))
        tries_others = not self._skip_unknown and self._kind != COROUTINES
        return load(_format_types)([*found, ("*", None)] if tries_others else found)

    def _is_of_kind(self, handler: Handler) -> bool:
        return self._kind == ALL or handler.shares_loop == (self._kind == COROUTINES)

    def wants(self, job_type: str) -> bool:
        """Return whether the pass runs jobs of a type."""
        handler = self.handler(job_type)
        if handler is None:
            return not self._skip_unknown and self._kind != COROUTINES
        return self._is_of_kind(handler)

    def limit_of(self, handler: Handler | None) -> int:
        """Return how many attempts a job of this handler has; None stands for a missing one."""
        return (handler and handler.max_attempts) or self._max_attempts

    def limit(self, job_type: str) -> int:
        """Return how many attempts a job of a type has."""
        return self.limit_of(self.handler(job_type))

    def wait(self, job_type: str, attempt: int) -> float:
        """Return the backoff of a type after this attempt, in seconds."""
        return self.wait_of(self.handler(job_type), attempt)

    def wait_of(self, handler: Handler | None, attempt: int) -> float:
        """Return the backoff of this handler, in seconds; None stands for a missing one."""
        return handler.wait(attempt) if handler else states.backoff(attempt)

    def priority(self, job_type: str) -> int:
        """Return the priority of a type's jobs; 0 without a handler."""
        handler = self.handler(job_type)
        return handler.priority if handler else 0

    def prioritizes(self) -> bool:
        """Return whether a handler has another priority than 0."""
        return any(getattr(handler, "priority", 0) for _, handler in self._handlers.items())

    def longest_wait(self, job_type: str, attempt: int) -> float:
        """Return the most seconds that a job of a type waits after this attempt has failed."""
        handler = self.handler(job_type)
        if handler is None:  # with `skip_unknown`, another worker may have any backoff for the type
            return states.LATEST if self._skip_unknown else states.backoff(attempt)
        return handler.longest_wait(attempt)


def _format_types() -> Callable[[Iterable[tuple[str, int | None]]], str]:
    from dbbasic_queue.store.pass_log import format_types

    return format_types
