"""Modules that an idle pass doesn't need are imported on first use.

If another thread is importing the module, Python waits for it. Two cases need more than that:

- If a signal handler uses the queue while its own thread is importing, it finds a half-imported
  module. So the main thread, where signal handlers run, lets another thread import, and waits.
- A child that is forked while another thread is importing inherits the half-imported module and
  its import lock, and would wait forever when it imports the module. So the child forgets both,
  whatever the module is: a job may import it, too.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading

from dbbasic_queue import forks
from dbbasic_queue.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

_POLL_SECONDS = 0.1
_IMPORT_SYSTEM_FILE = "<frozen importlib._bootstrap>"

_loaded: dict[Callable[[], Any], Any] = {}
_importing: set[int] = set()
"""The threads that are importing for `load`, by their idents."""


def load(imports: Callable[[], T]) -> T:
    """Return what a function that imports modules returns; it is called on first use only.

    Give a function of a module, not a lambda: it is recognized by its identity.

    Raises QueueError if this thread is already importing for `load`: the caller is a signal
    handler or a finalizer.
    """
    loaded: T
    if imports in _loaded:
        loaded = _loaded[imports]
        return loaded
    if "signal" in sys.modules and _in_main_thread() and not _inside_an_import():
        _in_another_thread(lambda: _load(imports))
    if imports not in _loaded:
        _load(imports)
    loaded = _loaded[imports]
    return loaded


def _load(imports: Callable[[], object]) -> None:
    me = threading.get_ident()
    if me in _importing:
        raise QueueError(
            "called from a signal handler, or a finalizer such as __del__, while this thread was "
            "importing a module of the queue: nothing was done (call it again later)"
        )
    try:
        _importing.add(me)
        _loaded[imports] = imports()
    finally:
        _importing.discard(me)


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _inside_an_import() -> bool:
    """Return whether this thread is importing a module: another thread might wait for it."""
    frame = sys._getframe()
    while frame.f_back is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM_FILE:
            return True
        frame = frame.f_back
    return False


def _in_another_thread(work: Callable[[], None]) -> None:
    """Wait until another thread has done the work; do nothing if no thread can be started.

    It isn't a `threading.Thread`, which has locks that the code interrupted by a signal may hold.
    """
    done = _thread.allocate_lock()
    done.acquire()
    me = os.getpid()

    def do() -> None:
        try:
            work()
        except BaseException:  # noqa: BLE001, S110 - the caller tries again, and gets the error
            pass
        finally:
            done.release()

    try:
        _thread.start_new_thread(do, ())
    except RuntimeError:
        return
    while not done.acquire(timeout=_POLL_SECONDS) and os.getpid() == me:
        pass  # a signal handler may fork and return in the child, which has no such thread


def _forget_half_imported() -> None:
    """In a forked child: forget all modules that threads of the parent were importing."""
    me = threading.get_ident()
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    for name, reference in list(locks.items()):
        lock = reference()
        if getattr(lock, "owner", None) not in (None, me):
            locks.pop(name, None)
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if getattr(spec, "_initializing", False):
                sys.modules.pop(name, None)
    _importing.intersection_update((me,))


forks.in_child(_forget_half_imported)
