"""Which passes one call needs: one, one that runs coroutines together, or several processes."""

from __future__ import annotations

import math
import os

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.handlers import Handler
from dbbasic_queue.passes.base import ALL, COROUTINES, PLAIN, Pass, check, check_thread
from dbbasic_queue.store.claiming.slots import SLOTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.passes.base import AnyHandlers
    from dbbasic_queue.passes.supervisor import Crew
    from dbbasic_queue.store.protocol import Store


def plan(
    store: Store,
    handlers: AnyHandlers,
    max_attempts: int,
    workers: int,
    clock: Callable[[], float],
    max_result: int,
    *,
    here: bool = True,
    **how: Any,
) -> Pass | Crew:
    """Return a pass, or several, that run `workers` jobs at a time; call its `run`.

    It will run in this thread, unless it is not `here`. Raises InvalidHandlers for handlers and
    limits that can't work.
    """
    check(handlers, max_attempts, workers)
    if here:
        check_thread(handlers)
    _check_registry(handlers, store)
    settings = store, handlers, max_attempts, clock, max_result
    if workers == 1:
        return Pass(*settings, **how)
    return _several(workers, *settings, **how)


def _several(
    workers: int, store: Store, handlers: AnyHandlers, *settings: Any, linger: float = 0, **how: Any
) -> Pass | Crew:
    """Return what runs `workers` jobs at a time.

    Only as many processes are forked as there are due jobs, unless they are to linger. Jobs in
    memory can't be shared with other processes: their plain functions run one at a time.
    """

    def make(share: str, supervisor: int = 0) -> Pass:
        given = {**how, "linger": linger, "share": share, "supervisor": supervisor}
        if share == COROUTINES or not plain:
            from dbbasic_queue.passes.concurrent import Together

            return Together(store, handlers, *settings, parallel=workers, **given)
        return Pass(store, handlers, *settings, **given)

    functions = [Handler.of(h) for h in handlers.values() if h is not None]
    coroutines = any(handler.shares_loop for handler in functions)
    plain = not functions or any(not handler.shares_loop for handler in functions)
    one = make(ALL)
    if not plain or not store.is_shared:
        return one
    if workers > SLOTS:
        raise InvalidHandlers(
            f"invalid workers {workers}: must be 1 to {SLOTS}, as each is a process with a slot "
            "of its own (only coroutine functions, which share one, may have more)"
        )
    due = workers if linger else one.count_due()
    most = SLOTS - 1 if coroutines else SLOTS
    shares = [PLAIN if coroutines else ALL] * min(workers, due, most) + [COROUTINES] * coroutines
    stays = linger == math.inf and not how.get("until_complete")
    if len(shares) == 1:
        return one
    from dbbasic_queue.passes.supervisor import Crew

    return Crew(make, shares, stays=stays)


def _check_registry(handlers: object, store: Store) -> None:
    """Raise InvalidHandlers if the handlers are a registry that belongs to another queue."""
    its = getattr(getattr(handlers, "queue", None), "store", store)
    if its is store:
        return
    are_files = os.path.isabs(its.path) and os.path.isabs(store.path)
    if not are_files or os.path.realpath(its.path) != os.path.realpath(store.path):
        raise InvalidHandlers(
            f"invalid handlers: this registry enqueues into {its.path}, and this pass runs the "
            f"jobs of {store.path} (call process_jobs of the registry's queue)"
        )
