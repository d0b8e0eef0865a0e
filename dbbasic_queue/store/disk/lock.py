"""The queue's one lock: `flock` on a file that is never renamed and never deleted.

It is held for microseconds, by one thread of one process. After locking, the path is looked at
again: if somebody has deleted the lock file, another process may hold the lock of a new one.

Whatever a signal handler raises, and wherever, the lock is free afterwards. Python calls handlers
when a Python function starts and after each call, so no Python function starts between the end of
the work and the call that unlocks. That is why the work is a function that `run` calls, not the
block of a `with` statement: its `__exit__` would be a Python function.

A forked child closes the lock file and does not unlock it: the lock belongs to the open file,
which both share, so unlocking would free the parent's lock.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import threading
import time

from dbbasic_queue import forks
from dbbasic_queue.errors import QueueBusy, QueueError, StoreError
from dbbasic_queue.store.disk.files import (
    OpenFile,
    open_or_create,
    prepare_directory,
    store_error,
    unstable_inodes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, Protocol, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

    class Locked(Protocol):
        """What `locked` and `reading` need of an object."""

        @property
        def lock(self) -> QueueLock:
            """The lock of its queue."""

    L = TypeVar("L", bound=Locked)

PATIENCE = 60.0
"""Seconds after which a lock that is still taken is an error; its holder is stopped or hangs."""

# Most holders are done within microseconds. Others do something long, such as a fold, and many
# processes that poll for it would keep them from the processor.
_SHORTEST_PAUSE = 0.00005
_LONGEST_PAUSE = 0.01
_PAUSE_SHARE = 0.05
# After holding the lock for that long, sleep until waiting processes have polled again. Otherwise
# a pass would grab it back before they get a chance.
_TURN = 0.004
_TRIES = 100
_NEVER = math.inf
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
_TURNS_OF_OTHERS = 20

_getpid, _get_ident, _now = os.getpid, threading.get_ident, time.monotonic
_let_others_run = getattr(os, "sched_yield", lambda: time.sleep(0))


def locked(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Make a method hold the lock, `self.lock`, while it runs."""

    def call(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.lock.run(method, self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


def reading(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Make a method keep this process's other threads out while it runs; the lock is not taken."""

    def call(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.lock.read(method, self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


def though_moved(method: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that may hold the lock of the files that are open, wherever they are now.

    If the queue's directory was moved, an outcome that they wait for is still legal. A method that
    needs the files at the path calls `check_path` or `take_again` first. So the ordinary call takes
    less time: it asks for the open file alone, which may not be deleted.
    """
    method.__dict__["though_moved"] = True
    return method


def try_lock(fd: int) -> bool:
    """Lock an open file; False if another one holds its lock."""
    try:
        fcntl.flock(fd, _TRY)
    except BlockingIOError:
        return False
    return True


def unlock(file: OpenFile) -> None:
    """Free a lock before its file is closed: a child may have inherited the open file."""
    if file.is_ours():
        fcntl.flock(file.fd, fcntl.LOCK_UN)


class QueueLock:
    """Only what `run` calls changes the queue's files.

    `closing` are files that have been replaced: they are closed when the lock is free again, for
    closing one frees its blocks on the disk, which takes a while. `check` is called before the
    lock file is opened or created, with whether the directory is known: it raises an error if that
    must not happen.
    """

    def __init__(self, path: str, check: Callable[[bool], None]) -> None:
        self.path = path
        self._check = check
        self.directory: tuple[int, int] | None = None
        """the directory in which the lock file was opened last"""
        self.moved = False
        """whether the lock that is held is that of files whose directory was moved"""
        self.path_checked = False
        """whether the path was looked at since the lock was acquired"""
        self.closing: list[OpenFile | None] = []
        self._file: OpenFile | None = None
        self._held_since = _NEVER
        # Reentrant, so that a call by a signal handler never waits for its own thread. Never in a
        # `with`: Python 3.14 runs signal handlers between a lock's `__enter__` and the block.
        self._mutex = threading.RLock()
        self._owner = 0

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function while this thread holds the lock; return what it returns.

        Raises QueueError if this thread is inside another call of the same queue, QueueBusy if
        another process holds the lock for a minute. An OSError of the function becomes a
        StoreError that says that nothing was done: code that makes a change, or runs after one,
        must raise its own.
        """
        if _getpid() != forks.process:
            forks.notice()
        me = _get_ident()
        if self._owner == me:
            raise _called_inside()
        replaced = None
        try:
            try:
                self._mutex.acquire()
                self._owner = me
                try:
                    self._acquire(hasattr(function, "though_moved"))
                    result = function(*args, **kwargs)
                finally:
                    try:
                        if self._file is not None:
                            fcntl.flock(self._file.fd, fcntl.LOCK_UN)
                    except OSError:
                        pass  # it was not held
                    finally:
                        since, self._held_since = self._held_since, _NEVER
                        if self.closing:
                            replaced, self.closing = self.closing, []
                        self._owner = 0
            finally:
                try:
                    self._mutex.release()
                except RuntimeError:
                    pass  # a signal handler raised before it was acquired
        except OSError as e:
            self._name(e)
            raise
        finally:
            if replaced:
                replaced.clear()
        held = _now() - since
        if held > _TURN:
            time.sleep(_pause(held) + _SHORTEST_PAUSE)
        return result

    def read(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function while this process's other threads stay out; the lock is not taken.

        Otherwise as `run`.
        """
        if _getpid() != forks.process:
            forks.notice()
        me = _get_ident()
        if self._owner == me:
            raise _called_inside()
        try:
            try:
                self._mutex.acquire()
                self._owner = me
                try:
                    return function(*args, **kwargs)
                finally:
                    self._owner = 0
            finally:
                try:
                    self._mutex.release()
                except RuntimeError:
                    pass  # a signal handler raised before it was acquired
        except OSError as e:
            self._name(e)
            raise

    def _name(self, error: OSError) -> None:
        if not isinstance(error, QueueError):
            raise store_error(error, error.filename or self.path, "nothing was done") from error

    def let_go(self) -> None:
        """Free the lock before the function ends, for what is left to do needs no lock.

        This process's other threads stay out until its end.
        """
        if self._file is not None:
            unlock(self._file)
        self._held_since = _NEVER

    def take_again(self) -> None:
        """Take the lock that was let go of; others may have changed everything since."""
        self._acquire_at_path(though_moved=False)

    def check_path(self) -> None:
        """Look at the path, if that was put off; take the lock that is there, or set `moved`."""
        if not self.path_checked:
            self._acquire_at_path(though_moved=True)

    def _acquire(self, though_moved: bool) -> None:
        """Acquire the lock; look at the path, unless the files that are open may be used anyway."""
        file = self._file
        if though_moved and file is not None and file.is_untouched() and try_lock(file.fd):
            self.path_checked = False
            self._held_since = _now()
        else:
            self._acquire_at_path(though_moved)

    def _acquire_at_path(self, though_moved: bool) -> None:
        for _ in range(_TRIES):
            file = self._file
            if file is None or not file.is_ours():
                file = self._open()
            if not try_lock(file.fd):
                self._wait(file.fd)
            if though_moved:
                file.remember_names()
            is_there = file.is_at_path()
            self.moved = not is_there and though_moved and self._is_moved(file)
            if is_there or self.moved:
                self.path_checked = True
                self._held_since = _now()
                return
            unlock(file)
            self._file = None
        raise unstable_inodes(self.path)

    def _is_moved(self, file: OpenFile) -> bool:
        """Return whether the lock file is in the directory where it was, and that was moved."""
        return os.fstat(file.fd).st_nlink > 0 and self._directory_now() != self.directory

    def _directory_now(self) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.dirname(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino

    def _open(self) -> OpenFile:
        """Open the lock file; where its new directory was replaced meanwhile, in that one."""
        self._check(self.directory is not None)
        for _ in range(_TRIES):
            prepare_directory(os.path.dirname(self.path))
            try:
                file = open_or_create(self.path, os.O_RDWR, to_lock=True)
            except StoreError as e:
                if e.errno != errno.ENOENT:
                    raise
            else:
                file.unique = file.mark()
                self._file = file
                self.directory = self._directory_now()
                return file
        raise unstable_inodes(self.path)

    def _wait(self, fd: int) -> None:
        for _ in range(_TURNS_OF_OTHERS):
            _let_others_run()
            if try_lock(fd):
                return
        begun = time.monotonic()
        while not try_lock(fd):
            waited = time.monotonic() - begun
            if waited > PATIENCE:
                raise QueueBusy(
                    errno.EAGAIN,
                    f"the lock has been taken for {PATIENCE:.0f} seconds; nothing was done "
                    f"(fuser -v {self.path} shows who holds it: a stopped process?)",
                    self.path,
                )
            time.sleep(_pause(waited))

    def touch(self) -> None:
        """Note in the lock file's times that a fold has been made now."""
        assert self._file is not None
        try:
            os.utime(self._file.fd)
        except OSError:
            pass  # only the file's owner may; then folds come a little oftener

    def touched_at(self) -> float:
        """Return when a fold was last made, by whomever, in Unix seconds."""
        try:
            return os.stat(self.path).st_mtime
        except OSError:
            return 0.0

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file = None

    def after_fork(self) -> None:
        """In a forked child: forget what is the parent's; its file is closed, not unlocked."""
        self._file = None
        self.closing = []
        self._held_since = _NEVER
        self._mutex = threading.RLock()
        self._owner = 0


def _called_inside() -> QueueError:
    return QueueError(
        "called inside another call of the same queue, by a signal handler or a finalizer such as "
        "__del__: nothing was done (note it there, and make the call later)"
    )


def _pause(waited: float) -> float:
    """Return how long to sleep before the next look, after that many seconds of waiting."""
    return min(max(waited * _PAUSE_SHARE, _SHORTEST_PAUSE), _LONGEST_PAUSE)
