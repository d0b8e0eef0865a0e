"""Makes a forked child forget its parent's state, whether or not the fork ran Python's hooks.

uWSGI forks in C, and so may any extension: then no hook runs. So the process id is compared before
a lock is acquired.

A lock that a before-fork hook waits for is never held while a module is imported, nor while code
of the program runs. Otherwise a fork could wait for an import, and the import for the fork.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

process = os.getpid()
"""The id of the process that the package's state belongs to."""

opening = threading.RLock()
"""Held while a file that will be locked is opened and registered, and during each fork: a child
that inherits it unregistered would keep its lock. Reentrant, because signal handlers may fork."""

_forget: list[Callable[[], None]] = []
_forgetting = threading.Lock()


def in_child(forget: Callable[[], None]) -> None:
    """Register a function that makes a forked child forget its parent's state.

    The function may be called more than once in a child.
    """
    _forget.append(forget)


def notice() -> None:
    """Forget the parent's state if this process was forked without hooks.

    Call it before acquiring a lock.
    """
    if os.getpid() != process:
        with _forgetting:
            if os.getpid() != process:
                _after_in_child()


def while_opening(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function while no other thread can fork; return what it returns."""
    lock = opening
    try:
        lock.acquire()  # not in a `with`: see QueueLock
        return function(*args, **kwargs)
    finally:
        try:  # noqa: SIM105 - a signal handler could raise in the call
            lock.release()
        except RuntimeError:
            pass  # a signal handler has raised before it was acquired


def _before() -> None:
    opening.acquire()


def _after_in_parent() -> None:
    opening.release()


def _after_in_child() -> None:
    global opening, process
    opening = threading.RLock()
    for forget in _forget:
        forget()
    process = os.getpid()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
