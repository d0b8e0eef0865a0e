"""Forked processes: which descriptors they inherit, and how they end.

- Every pipe is registered here, and a child closes all of them, no matter which code forks it with
  `os.fork`. A child that is started here keeps the ends that it needs. If another process kept the
  writing end open, the reader would never see the end of the pipe: a job would outlive its dead
  pass.
- A child that is started here ends like a program, but within a second: it waits for its threads,
  runs the atexit callbacks that it registered itself, and closes its log handlers. The program's
  own callbacks don't run in it: one may remove a file that is still in use.
"""

from __future__ import annotations

import atexit
import io
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

_LONGEST_END_SECONDS = 1.0

_pipes: set[int] = set()
"""Descriptors that a forked child closes: ends of pipes, and duplicates of a slot's."""
_locked: list[object] = []
"""the parent's stdout and stderr: to drop them would close them, and wait for their locks"""
_kept = threading.local()
"""`fds`: those that the child keeps which this thread is forking"""


def pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a new pipe.

    Every forked process closes both, except the ends that `start` keeps for it.
    """
    return forks.while_opening(_pipe)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    _pipes.update(ends)
    return ends


def duplicate(fd: int) -> int:
    """Return a second descriptor of an open file, which forked processes close like a pipe."""
    return forks.while_opening(_duplicate, fd)


def _duplicate(fd: int) -> int:
    second = os.dup(fd)
    _pipes.add(second)
    return second


def close(*fds: int) -> None:
    """Close ends of pipes; skip those that are closed already, or never were open."""
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
    """Run `work` in a forked process that keeps the descriptors in `keep`; return its process id.

    `work` should call `end`. If it returns or raises, the process ends at once with exit code 1.
    Raises OSError or RuntimeError if the system refuses a new process.
    """
    flush_output()  # otherwise buffered text would be written twice
    has_threads = threading.active_count() > 1
    _kept.fds = keep
    try:
        pid = os.fork()
    finally:
        _kept.fds = ()
    if pid == 0:
        try:
            if has_threads:
                _renew_output()
            _forget_exit_callbacks()
            work()
        finally:
            os._exit(1)
    return pid


def _renew_output() -> None:
    """Print through buffers of our own: a thread of the parent may have been printing at the fork.

    Then it holds the lock of its buffer, and in this process nobody releases that.
    """
    for name in ("stdout", "stderr"):
        with suppress(Exception):  # it is closed or detached
            _renew(name, getattr(sys, name))


def _renew(name: str, old: Any) -> None:
    if type(old) is not io.TextIOWrapper or type(old.buffer) is not io.BufferedWriter:
        return  # None, or replaced by the program
    new = io.TextIOWrapper(
        io.BufferedWriter(old.buffer.raw),
        encoding=old.encoding,
        errors=old.errors,
        newline="\n",
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )
    _locked.append(old)
    setattr(sys, name, new)
    for reference in getattr(sys.modules.get("logging"), "_handlerList", ()):
        if getattr(handler := reference(), "stream", None) is old:
            handler.stream = new


def _forget_exit_callbacks() -> None:
    """Forget the program's own exit callbacks, as `multiprocessing` does.

    Those of `logging` and `multiprocessing` are kept, without the parent's records and processes.
    """
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
    """End this process like a program, but within a second.

    Waits for threads that aren't daemons, then runs the atexit callbacks that this process has
    registered (those of `logging` and `multiprocessing` are among them). The exit code is 0. If it
    takes longer than a second, SIGALRM kills the process.
    """
    flush_output()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_END_SECONDS)
    join_threads: Callable[[], None] = threading._shutdown  # type: ignore[attr-defined]
    for step in (join_threads, atexit._run_exitfuncs, flush_output):
        with suppress(BaseException):
            step()
    os._exit(0)


def flush_output() -> None:
    """Write buffered text to stdout and stderr, before a fork and before `os._exit`."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # None, or closed: code that prints gets the error
            stream.flush()


def print_to(fd: int) -> None:
    """Make this process print to a pipe: what it, or Python, writes to stdout and stderr."""
    for standard in (1, 2):
        os.dup2(fd, standard)
    close(fd)
    # A pipe isn't a terminal, so lines would stay in Python's buffer, and be lost by a kill.
    with suppress(Exception):  # None, closed, or replaced by the program
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def signal_name(number: int) -> str:
    """Return a signal's name, or its number if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
