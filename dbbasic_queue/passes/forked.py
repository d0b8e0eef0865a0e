"""Processes that we fork: what they inherit, and how they end.

A pipe's end that stays open in one process too many is never noticed as closed: the pipe that ends
a job when its pass dies would not. So every pipe of ours is registered, and a forked child closes
them all, whoever forks it; a child of ours keeps those that it is given.

A child of ours ends as a program does (its threads, the atexit callbacks that it registered
itself, its log handlers), but within a second. The callbacks of the program stay the program's:
one may remove a file that is still in use.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress

from dbbasic_queue import forks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_LONGEST_END = 1.0

_pipes: set[int] = set()
"""Descriptors that a forked child closes: ends of pipes, and second ones of a slot."""
_kept = threading.local()


def pipe() -> tuple[int, int]:
    """Return a new pipe, which is closed in every process that is forked without keeping it."""
    return forks.while_opening(_pipe)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    _pipes.update(ends)
    return ends


def duplicate(fd: int) -> int:
    """Return a second descriptor of an open file, which is closed as a pipe is."""
    return forks.while_opening(_duplicate, fd)


def _duplicate(fd: int) -> int:
    second = os.dup(fd)
    _pipes.add(second)
    return second


def close(*fds: int) -> None:
    """Close ends of pipes; those that are closed already, or never were open, are passed over."""
    for fd in fds:
        forks.while_opening(_close, fd)


def _close(fd: int) -> None:
    if fd in _pipes:
        _pipes.discard(fd)
        os.close(fd)


def _close_all() -> None:
    for fd in _pipes.difference(getattr(_kept, "fds", ())):
        _pipes.discard(fd)
        with suppress(OSError):
            os.close(fd)


forks.in_child(_close_all)


def start(work: Callable[[], object], keep: tuple[int, ...]) -> int:
    """Run `work` in a forked process; return its id. Of our pipes it has those in `keep`.

    `work` ends the process itself; if it raises or returns, the exit code is 1. Raises OSError, or
    RuntimeError, if the system refuses a new process.
    """
    flush_output()  # otherwise what is buffered would be written twice
    _kept.fds = keep
    try:
        pid = os.fork()
    finally:
        _kept.fds = ()
    if pid == 0:
        try:
            _leave_the_programs_end_to_it()
            work()
        finally:
            os._exit(1)
    return pid


def _leave_the_programs_end_to_it() -> None:
    """Forget what the program has registered for its own end, as `multiprocessing` does."""
    atexit._clear()
    modules: dict[str, Any] = sys.modules
    if shutdown := getattr(modules.get("logging"), "shutdown", None):
        atexit.register(shutdown)
    if kind := getattr(modules.get("logging.handlers"), "BufferingHandler", None):
        for reference in modules["logging"]._handlerList:
            if isinstance(handler := reference(), kind):
                handler.buffer = []  # the program writes these records itself
    if end_processes := getattr(modules.get("multiprocessing.util"), "_exit_function", None):
        modules["multiprocessing.process"]._children = set()
        modules["multiprocessing.util"]._finalizer_registry.clear()
        atexit.register(end_processes)


def end() -> NoReturn:
    """End this process as a program ends, but within a second.

    Threads that are no daemons are waited for, then the atexit callbacks run that this process has
    registered (those of `logging` and `multiprocessing` are among them).
    """
    flush_output()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_END)
    join_threads: Callable[[], None] = threading._shutdown  # type: ignore[attr-defined]
    for step in (join_threads, atexit._run_exitfuncs, flush_output):
        with suppress(BaseException):
            step()
    os._exit(0)


def flush_output() -> None:
    """Write what is buffered: before a fork, and before an end that does not."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # none, or closed: whoever prints finds out
            stream.flush()


def signal_name(number: int) -> str:
    """Return a signal's name, or its number if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
