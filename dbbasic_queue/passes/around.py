"""Calls a handler within the `around` hooks of its registry.

- They are entered in the order of registration, and left in the reverse order, in the process and
  the context that run the handler.
- What they raise is the job's error, as if the handler had raised it: before it, because the job
  lacks its database connection; after it, because a commit may have failed.
- A hook that swallows the handler's exception doesn't turn the job into a completed one. It may
  raise another exception instead, such as Delay.
"""

from __future__ import annotations

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.passes.hooks import name_of, needs_coroutines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from dbbasic_queue.handlers import Job

    Arounds = list[Callable[..., Any]]


def call(arounds: Arounds, job: Job, handler: Callable[[], Any]) -> Any:
    """Return what a plain handler returns."""
    if not arounds:
        return handler()
    around, *inner = arounds
    manager = _manager(around, job)
    if not hasattr(manager, "__enter__"):
        raise needs_coroutines(around, job.type)
    with manager:
        try:
            return call(inner, job, handler)
        except BaseException as e:
            error = e
            raise
    try:
        raise error  # the hook has swallowed it
    finally:
        del error


async def call_async(arounds: Arounds, job: Job, handler: Callable[[], Awaitable[Any]]) -> Any:
    """Return what a coroutine function returns. Plain hooks are entered like async ones."""
    if not arounds:
        return await handler()
    around, *inner = arounds
    manager = _manager(around, job)
    if not hasattr(manager, "__aenter__"):
        with manager:
            try:
                return await call_async(inner, job, handler)
            except BaseException as e:
                error = e
                raise
    else:
        async with manager:
            try:
                return await call_async(inner, job, handler)
            except BaseException as e:
                error = e
                raise
    try:
        raise error
    finally:
        del error


def _manager(around: Callable[..., Any], job: Job) -> Any:
    """Return the context manager for a job; raises InvalidHandlers if the hook returned none."""
    manager = around(job)
    if hasattr(manager, "__enter__") or hasattr(manager, "__aenter__"):
        return manager
    raise InvalidHandlers(
        f"invalid around hook {name_of(around)}: it returned a {type(manager).__name__}, and not a "
        "context manager (decorate a generator function with contextlib.contextmanager)"
    )
