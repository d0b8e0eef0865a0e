"""Which passes one call needs: one, one that runs coroutines together, or several processes.

The modules that run jobs are imported when there is work, and before processes are forked.
"""

from __future__ import annotations

import math
import os

from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.lazy import load
from dbbasic_queue.passes.base import Pass
from dbbasic_queue.passes.policies import ALL, COROUTINES, PLAIN, Policies, check, check_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.passes.base import StartWork
    from dbbasic_queue.passes.policies import AnyHandlers, Kind
    from dbbasic_queue.passes.scheduled import Registry
    from dbbasic_queue.passes.signals import Interrupts
    from dbbasic_queue.passes.supervisor import Supervisor
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
    skip_unknown: bool = False,
    linger: float = 0,
    until_complete: bool = False,
    interrupts: Interrupts | None = None,
    with_schedules: bool = True,
) -> Pass | Supervisor:
    """Return a pass, or the supervisor of several, that runs `workers` jobs at a time.

    The caller calls its `run`. `here` is whether it will run in this thread. Without
    `with_schedules`, those of the handlers are ignored. The other arguments are those of `Pass` and
    `Policies`. To fork no more processes than there are due jobs, this counts them, unless the pass
    lingers.

    Jobs in memory can't be shared with other processes: unless all handlers are coroutine functions
    without a timeout, they run one at a time.

    Raises InvalidHandlers for handlers or limits that can't work, and StoreError or NotAQueue if
    the due jobs can't be counted.
    """
    checked = check(handlers, max_attempts, workers)
    if here:
        check_thread(checked)
    _check_registry(handlers, store)
    sharing = [handler.shares_loop for handler in checked.values()] if workers > 1 else []
    only_coroutines = bool(sharing) and all(sharing)

    def make(kind: Kind, interrupts: Interrupts | None) -> Pass:
        together = only_coroutines or kind == COROUTINES
        return Pass(
            store,
            Policies(handlers, max_attempts, skip_unknown=skip_unknown, kind=kind),
            clock,
            max_result,
            _concurrent if together else _sequential,
            parallel=workers if together else 1,
            linger=linger,
            until_complete=until_complete,
            interrupts=interrupts,
            registry=_scheduling(handlers) if with_schedules else None,
        )

    one = make(ALL, interrupts)
    if workers == 1 or only_coroutines or not store.is_shared:
        return one
    _check_workers(workers)
    kinds = _kinds(workers if linger else min(workers, one.count_due()), any(sharing))
    if len(kinds) < 2:
        return one
    load(_sequential)  # once here, instead of in each process
    stays = linger == math.inf and not until_complete
    return load(_supervisor)(make, kinds, interrupts, stays=stays)


def _kinds(processes: int, has_coroutines: bool) -> list[Kind]:
    """Return which functions each process runs, at most one process per slot.

    If there are coroutine functions, one more process runs all of them.
    """
    slots = load(_slots)
    if not has_coroutines:
        return [ALL] * min(processes, slots)
    return [PLAIN] * min(processes, slots - 1) + [COROUTINES]


def _check_workers(workers: int) -> None:
    slots = load(_slots)
    if workers > slots:
        raise InvalidHandlers(
            f"invalid workers {workers}: must be 1 to {slots}, as each is a process with a slot "
            "of its own (only coroutine functions, which share one, may have more)"
        )


def _check_registry(handlers: object, store: Store) -> None:
    """Raise InvalidHandlers if the handlers are a registry that belongs to another queue."""
    its = getattr(getattr(handlers, "queue", None), "store", store)
    if its is store or (its.is_shared and its.path == store.path):
        return
    are_files = os.path.isabs(its.path) and os.path.isabs(store.path)
    if not are_files or os.path.realpath(its.path) != os.path.realpath(store.path):
        raise InvalidHandlers(
            f"invalid handlers: this registry enqueues into {its.path}, and this pass runs the "
            f"jobs of {store.path} (call process_jobs of the registry's queue)"
        )


def _scheduling(handlers: Any) -> Registry | None:
    """Return the handlers if they are a registry that can declare schedules."""
    return handlers if getattr(handlers, "name", None) and hasattr(handlers, "retired") else None


def _sequential() -> StartWork:
    from dbbasic_queue.passes.sequential import Sequential

    return Sequential


def _concurrent() -> StartWork:
    from dbbasic_queue.passes.concurrent import Concurrent

    return Concurrent


def _supervisor() -> type[Supervisor]:
    from dbbasic_queue.passes.supervisor import Supervisor

    return Supervisor


def _slots() -> int:
    from dbbasic_queue.store.claiming.slots import SLOTS

    return SLOTS
