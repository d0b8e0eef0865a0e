"""The queue's one lock: `flock` on a file that is never renamed and never deleted.

It is held for microseconds, by one thread of one process. Whoever gets it checks that the path
still leads to the locked inode: a person who deletes the lock file must not make two holders.
After a fork the child only closes the descriptor: the lock belongs to the open file description,
which both share, so an unlock by the child would free its parent's.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time

from dbbasic_queue.errors import QueueBusy, QueueError, StoreError
from dbbasic_queue.loading import loading
from dbbasic_queue.store.files import (
    OpenFile,
    close_after_fork,
    open_or_create,
    prepare_directory,
    store_error,
)

PATIENCE = 60.0
"""Seconds after which a lock that is still taken is an error; its holder is stopped or hangs."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Most holders are done within microseconds. One that is not after 20 ms does something else, such
# as a fold.
_PAUSE = 0.00005
_LONG = 0.02
_LONG_PAUSE = 0.0005
# Who has held the lock for so long leaves it free until whoever waits has looked again: a pass
# would be back before.
_TURN = 0.004
_TRIES = 10
_TURNS_OF_OTHERS = 20

_let_others_run = getattr(os, "sched_yield", lambda: time.sleep(0))


def name_error(error: BaseException, path: str) -> None:
    """Raise the system's bare error as a StoreError; what it says is true as long as the change
    itself, and all behind it, raise their own."""
    if isinstance(error, OSError) and not isinstance(error, QueueError):
        raise store_error(error, error.filename or path, "nothing was done") from error


class Reading:
    """`with reading:` keeps other threads out; the lock is not taken."""

    def __init__(self, lock: QueueLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.mutex.acquire()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._lock.mutex.release()
        if error is not None:
            name_error(error, self._lock.path)


class QueueLock:
    """`with lock:` is the only time when the queue's files change.

    `closing` are files that have been replaced: they are let go of when the lock is free again, for
    to close one frees its blocks on the disk, which takes a while. `check` is called before the
    lock file is opened or created; it raises an error if that must not happen.
    """

    def __init__(self, path: str, check: Callable[[], None]) -> None:
        self.path = path
        self._check = check
        self.mutex = threading.Lock()
        self.reading = Reading(self)
        self.closing: list[OpenFile | None] = []
        self._file: OpenFile | None = None
        self._held_since = 0.0

    def __enter__(self) -> None:
        self.mutex.acquire()
        try:
            self._acquire()
        except BaseException as e:
            self._release()
            name_error(e, self.path)
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._release()
        if error is not None:
            name_error(error, self.path)

    def let_go(self) -> None:
        """Free the lock before the block ends, for what is left to do needs no lock.

        This process's other threads stay out until the block's end.
        """
        if self._file is not None:
            self._unlock(self._file.fd)
        self._held_since = math.inf

    def take_again(self) -> None:
        """Take the lock that was let go of; others may have changed everything since."""
        self._acquire()

    def _acquire(self) -> None:
        file = self._file or self._open()
        while True:
            if not self._try_lock(file.fd, blocking=False):
                self._wait(file.fd)
            if file.is_at_path():
                self._held_since = time.monotonic()
                return
            file = self._open()

    def _release(self) -> None:
        try:
            held = time.monotonic() - self._held_since
            replaced = self.closing
            if self._file is not None:
                self._unlock(self._file.fd)  # harmless where it is not held
            if replaced:
                self.closing = []
        finally:
            self.mutex.release()
        # Only now, with the lock free again, may the files that were replaced be let go of.
        del replaced
        if held > _TURN:
            time.sleep(_PAUSE if held < _LONG else 2 * _LONG_PAUSE)

    def _open(self) -> OpenFile:
        # Loading filelock takes longer than an idle pass: only when a lock is really taken.
        with loading:
            from filelock import lock_descriptor, unlock_descriptor

        self._try_lock = lock_descriptor
        self._unlock = unlock_descriptor
        self._check()
        self._file = self._open_in_directory()
        close_after_fork(self._file)
        return self._file

    def _open_in_directory(self) -> OpenFile:
        """Open the lock file; where its new directory was replaced meanwhile, in that one."""
        for _ in range(_TRIES):
            prepare_directory(os.path.dirname(self.path))
            try:
                return open_or_create(self.path, os.O_RDWR)
            except StoreError as e:
                if e.errno != errno.ENOENT:
                    raise
        return open_or_create(self.path, os.O_RDWR)

    def _wait(self, fd: int) -> None:
        for _ in range(_TURNS_OF_OTHERS):
            _let_others_run()
            if self._try_lock(fd, blocking=False):
                return
        begun = time.monotonic()
        while not self._try_lock(fd, blocking=False):
            waited = time.monotonic() - begun
            if waited > PATIENCE:
                raise QueueBusy(
                    errno.EAGAIN,
                    f"the lock has been taken for {PATIENCE:.0f} seconds; nothing was done "
                    f"(fuser -v {self.path} shows who holds it: a stopped process?)",
                    self.path,
                )
            time.sleep(_PAUSE if waited < _LONG else _LONG_PAUSE)

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
        """Let go of the file; the next use opens it anew."""
        self._file = None

    def after_fork(self) -> None:
        """In a forked child: forget what is the parent's; its file is closed, not unlocked."""
        self._file = None
        self.closing = []
        self.mutex = threading.Lock()
