"""The queue's one lock: `flock` on a file that is never renamed and never deleted.

- It is held by one thread of one process, mostly for microseconds.
- After locking, the path is checked again: if somebody has deleted the lock file, another process
  may hold the lock of a new one. A method that is marked `even_if_moved` puts that check off.
- Whatever a signal handler raises, and wherever, the lock is free afterwards. Python calls handlers
  when a Python function starts and after each call. So no Python function starts between the end
  of the work and the call that unlocks. That is why the work is a function that `run` calls, not
  the block of a `with` statement: its `__exit__` would be a Python function.
- A forked child closes the lock file and doesn't unlock it: the lock belongs to the open file,
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
from dbbasic_queue.errors import QueueBusy, QueueError, StoreError, store_error
from dbbasic_queue.store.disk.access import prepare_directory
from dbbasic_queue.store.disk.files import open_or_create, unstable_inodes
from dbbasic_queue.store.disk.openfile import OpenFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, ParamSpec, Protocol, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

    class Locked(Protocol):
        """What `locked` and `reading` need from an object."""

        @property
        def lock(self) -> QueueLock:
            """The lock of its queue."""

    L = TypeVar("L", bound=Locked)

PATIENCE_SECONDS = 60.0
"""How long to wait for the lock before raising QueueBusy: its holder is stopped or hangs."""

# Most processes hold the lock for microseconds. Others do something long, such as a fold: many
# processes that poll quickly would keep them off the CPU. So a waiting process first yields the
# CPU a few times, and then sleeps between its tries for a share of the time that it has waited.
_YIELDS = 20
_PAUSE_SHARE = 0.05
_SHORTEST_PAUSE_SECONDS = 0.00005
_LONGEST_PAUSE_SECONDS = 0.01

_LONG_HOLD_SECONDS = 0.004
"""After holding the lock for that long, sleep until waiting processes have polled again. Otherwise
a pass would grab it back before they get a chance."""

_TRIES = 100
_NOT_HELD = math.inf
_LOCK_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB

_getpid, _get_ident, _now = os.getpid, threading.get_ident, time.monotonic
_yield_cpu = getattr(os, "sched_yield", lambda: time.sleep(0))


def locked(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Make a method hold the lock, `self.lock`, while it runs."""

    def call(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.lock.run(method, self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


def reading(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Make a method keep this process's other threads out while it runs; no lock is acquired."""

    def call(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.lock.read(method, self, *args, **kwargs)

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


def even_if_moved(method: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that may run under the lock of the open lock file even if that file was moved.

    If the queue's directory is moved while a job runs, the job's outcome can still be recorded in
    it. A method that needs the files at the path calls `check_path` or `reacquire` first. Most
    calls don't, and take less time: they only check that the open lock file is untouched. With
    `locked`, this is the inner decorator.
    """
    method.__dict__["even_if_moved"] = True
    return method


def try_lock(fd: int) -> bool:
    """Lock an open file without waiting; return False if another open file has its lock.

    Locking the same open file again succeeds.
    """
    try:
        fcntl.flock(fd, _LOCK_NOW)
    except BlockingIOError:
        return False
    return True


def unlock(file: OpenFile) -> None:
    """Release a file's lock. Closing isn't enough: a child may have inherited the open file."""
    if file.is_ours():
        fcntl.flock(file.fd, fcntl.LOCK_UN)


class QueueLock:
    """The lock of one queue, shared by all threads of this process.

    Only functions that `run` calls change the queue file and the journal.

    `closing`       files that were replaced: they are closed when the lock is free again, because
                    closing one frees its blocks on the disk, which takes a while
    `directory`     device and inode number of the directory in which the lock file was opened last;
                    None if it never was
    `moved`         whether the lock that is held belongs to files whose directory was moved; only
                    valid if the path was checked
    `path_checked`  whether the path was checked since the lock was acquired
    """

    def __init__(self, path: str, check: Callable[[bool], None]) -> None:
        """`check` is called before the lock file is opened or created.

        It gets True if the queue's directory was there before, and raises an error if the lock
        file must not be created.
        """
        self.path = path
        self._check = check
        self.directory: tuple[int, int] | None = None
        self.moved = False
        self.path_checked = False
        self.closing: list[OpenFile | None] = []
        self._file: OpenFile | None = None
        self._held_since = _NOT_HELD
        """when the lock was acquired, on the monotonic clock"""
        # Reentrant, so that a call by a signal handler never waits for its own thread. Never in a
        # `with`: Python 3.14 runs signal handlers between a lock's `__enter__` and the block.
        self._mutex = threading.RLock()
        self._owner = 0
        """the thread that is inside `run` or `read`, or 0"""

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function while this thread holds the lock; return what it returns.

        Raises QueueError if this thread is inside another call of the same queue, QueueBusy if
        another process holds the lock for a minute. A bare OSError of the function becomes a
        StoreError that says that nothing was done. Code that makes a change, or runs after one,
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
                    self._acquire(hasattr(function, "even_if_moved"))
                    result = function(*args, **kwargs)
                finally:
                    try:
                        if self._file is not None:
                            fcntl.flock(self._file.fd, fcntl.LOCK_UN)
                    except OSError:
                        pass  # the descriptor is closed: nothing is held through it
                    finally:
                        since, self._held_since = self._held_since, _NOT_HELD
                        if self.closing:
                            replaced, self.closing = self.closing, []
                        self._owner = 0
            finally:
                try:
                    self._mutex.release()
                except RuntimeError:
                    pass  # a signal handler raised before it was acquired
        except OSError as e:
            self._raise_store_error(e)
            raise
        finally:
            if replaced:
                replaced.clear()
        held = _now() - since
        if held > _LONG_HOLD_SECONDS:
            time.sleep(_pause(held) + _SHORTEST_PAUSE_SECONDS)
        return result

    def read(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function while this process's other threads stay out, without the lock.

        Returns and raises what `run` does, except QueueBusy.
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
            self._raise_store_error(e)
            raise

    def _raise_store_error(self, error: OSError) -> None:
        """Raise a StoreError for a bare OSError; do nothing if it is one of our own errors."""
        if not isinstance(error, QueueError):
            raise store_error(error, error.filename or self.path, "nothing was done") from error

    def release_early(self) -> None:
        """Release the lock before the function ends, if the rest of it needs no lock.

        This process's other threads stay out until the function ends.
        """
        if self._file is not None:
            unlock(self._file)
        self._held_since = _NOT_HELD

    def reacquire(self) -> None:
        """Acquire the lock of the lock file that is at the path now.

        Call it after `release_early`, or if the path wasn't checked yet. Other processes may have
        changed everything in between.
        """
        self._acquire_at_path(even_if_moved=False)

    def check_path(self) -> None:
        """Check the path, if that was put off.

        If the lock file was deleted, acquire the lock of the one at the path. If its directory was
        moved, set `moved`.
        """
        if not self.path_checked:
            self._acquire_at_path(even_if_moved=True)

    def _acquire(self, even_if_moved: bool) -> None:
        """Acquire the lock and check the path.

        With `even_if_moved`, the check is put off if the open lock file is untouched and free.
        """
        file = self._file
        if even_if_moved and file is not None and file.is_untouched() and try_lock(file.fd):
            self.path_checked = False
            self._held_since = _now()
        else:
            self._acquire_at_path(even_if_moved)

    def _acquire_at_path(self, even_if_moved: bool) -> None:
        """Acquire the lock of the lock file at the path, which is created if there is none.

        With `even_if_moved`, the open one will do if its directory was moved: then set `moved`.
        """
        for _ in range(_TRIES):
            file = self._file
            if file is None or not file.is_ours():
                file = self._open()
            if not try_lock(file.fd):
                self._wait(file.fd)
            if even_if_moved:
                file.remember_names()
            is_there = file.is_at_path()
            self.moved = not is_there and even_if_moved and self._is_moved(file)
            if is_there or self.moved:
                self.path_checked = True
                self._held_since = _now()
                return
            unlock(file)
            self._file = None
        raise unstable_inodes(self.path)

    def _is_moved(self, file: OpenFile) -> bool:
        """Return whether the lock file wasn't deleted, but its directory was moved or replaced."""
        return os.fstat(file.fd).st_nlink > 0 and self._directory_now() != self.directory

    def _directory_now(self) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.dirname(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino

    def _open(self) -> OpenFile:
        """Open or create the lock file; try again if its new directory was removed."""
        self._check(self.directory is not None)
        for _ in range(_TRIES):
            prepare_directory(os.path.dirname(self.path))
            try:
                file = open_or_create(self.path, self._flags(), to_lock=True)
            except StoreError as e:
                if e.errno != errno.ENOENT:
                    raise
            else:
                file.needs_mark = file.set_mark()
                self._file = file
                self.directory = self._directory_now()
                return file
        raise unstable_inodes(self.path)

    def _flags(self) -> int:
        """Return how to open the lock file.

        Nothing is ever written to it. So a user with read permission only opens it for reading: on
        a local file system, flock works with that, too. On NFS it would not.
        """
        may_only_read = not os.access(self.path, os.W_OK) and os.access(self.path, os.R_OK)
        return os.O_RDONLY if may_only_read else os.O_RDWR

    def _wait(self, fd: int) -> None:
        """Try to lock the file until that succeeds; raise QueueBusy after a minute."""
        for _ in range(_YIELDS):
            _yield_cpu()
            if try_lock(fd):
                return
        started = time.monotonic()
        while not try_lock(fd):
            waited = time.monotonic() - started
            if waited > PATIENCE_SECONDS:
                raise QueueBusy(
                    errno.EAGAIN,
                    f"another process has held the lock for {PATIENCE_SECONDS:.0f} seconds; "
                    f"nothing was done (fuser -v {self.path} shows which: is it stopped?)",
                    self.path,
                )
            time.sleep(_pause(waited))

    def record_fold(self) -> None:
        """Set the lock file's mtime, which is the time of the last fold, to now."""
        assert self._file is not None
        try:
            os.utime(self._file.fd)
        except OSError:
            pass  # then folds come a little more often

    def folded_at(self) -> float:
        """Return when any process last folded, in Unix seconds; 0 if that can't be known.

        Before the first fold, it is when the lock file was created.
        """
        try:
            return os.stat(self.path).st_mtime
        except OSError:
            return 0.0

    def close(self) -> None:
        """Close the lock file; the next call opens it again."""
        self._file = None

    def after_fork(self) -> None:
        """In a forked child: forget the parent's file, which is closed and not unlocked."""
        self._file = None
        self.closing = []
        self._held_since = _NOT_HELD
        self._mutex = threading.RLock()
        self._owner = 0


def _called_inside() -> QueueError:
    return QueueError(
        "called inside another call of the same queue, by a signal handler or a finalizer such as "
        "__del__: nothing was done (only set a flag there, and make the call later)"
    )


def _pause(waited: float) -> float:
    """Return how many seconds to sleep before the next try, after waiting for `waited` seconds."""
    return min(max(waited * _PAUSE_SHARE, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
