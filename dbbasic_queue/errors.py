"""The exceptions that calls raise on purpose, and the advice for errors of the system.

All derive from `QueueError`. Each is also the built-in exception that a caller would expect, so
`except ValueError` and `except OSError` catch them, too. The module `pickles` adds one of its own.
"""

from __future__ import annotations

import errno
import os
import stat


class QueueError(Exception):
    """The base class of all errors of this package."""


class InvalidJob(QueueError, ValueError):
    """Raised for an invalid job type, payload, `run_at` or job id. Nothing was written."""


class DuplicateJob(InvalidJob):
    """Raised if the `job_id` that the caller has chosen is already in use. Nothing was written."""


class InvalidArgument(QueueError, ValueError):
    """Raised for any other invalid argument, such as a timeout or a status. Nothing was done."""


class JobNotFound(QueueError, LookupError):
    """Raised by calls that need an existing job if no job has the id. Nothing was done."""


class InvalidHandlers(QueueError, TypeError):
    """Raised for handlers or limits that can't work. No job was started."""


class QueueBusy(QueueError, OSError):
    """Raised if all 64 slots for passes are held, or if a lock stays held for a minute.

    The lock is that of the queue, or of an archive.
    """


class NotAQueue(QueueError, OSError):
    """Raised for a file or directory that can't be used as a queue. It was left untouched.

    Also raised for a file that `purge` or `write_metrics` would damage, and for a URL or a setting
    that names no queue.
    """


class QueueDamaged(NotAQueue):
    """Raised if a file of the queue is too damaged to be read. It was left untouched.

    An invalid line doesn't raise: it is kept, reported and skipped.
    """


class QueueMoved(QueueError, OSError):
    """Raised by all calls of a queue that `dbbasic-queue move` has moved. Nothing was done.

    `address` is the path or URL that it was moved to, without a password. To look at what is left,
    open the queue with `even_if_moved=True`.
    """

    address = ""


class StoreError(QueueError, OSError):
    """Raised if the system refuses a read or a write, a process or a thread.

    `errno` is the system's. `filename` is None if the error isn't about a file.

    The message states what happened to the change. Unless it says otherwise, the change isn't in
    the queue. `is_temporary` is True if a server can't be reached, or has closed the connection:
    the same call may succeed soon.
    """

    is_temporary = False


_TOO_MANY_FILES = {
    errno.EMFILE: "this process has too many open files: raise ulimit -n",
    errno.ENFILE: "the machine has too many open files: raise fs.file-max",
}
_FILE_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EBUSY: "is this file a mount point, as in a container? Mount its directory instead",
    errno.EROFS: "the file system is mounted read-only: make it writable",
    errno.EIO: "the disk reports an error: check dmesg and the disk's health",
    **_TOO_MANY_FILES,
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        "does this file system, such as NFS or FUSE, support flock? Put the queue on a local one",
    ),
}
_PROCESS_ADVICE = {
    errno.EAGAIN: "too many processes and threads: raise ulimit -u, or the container's pids.max",
    errno.ENOMEM: "not enough memory: add some, or run fewer processes",
    **_TOO_MANY_FILES,
}


def store_error(e: OSError, path: str, consequence: str) -> StoreError:
    """Return the error to raise if the system refuses a read or a write of a file.

    `consequence` is what happened to the change, such as "nothing was added".

    >>> print(store_error(OSError(errno.ENOSPC, "No space left"), "queue.tsv", "nothing was added"))
    [Errno 28] No space left (nothing was added; the disk is full: free some space): 'queue.tsv'
    """
    advice = _FILE_ADVICE.get(e.errno or 0)
    if e.errno in (errno.EACCES, errno.EPERM):
        advice = _advice_for_permissions(path)
    details = f"{consequence}; {advice}" if advice else consequence
    return StoreError(e.errno, f"{e.strerror or e} ({details})", path)


def _advice_for_permissions(path: str) -> str:
    """Return who may use a file that this user can't use, and how to share its directory."""
    directory = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    try:
        found = os.stat(path if os.path.exists(path) else directory)
    except OSError:
        return "this user has no permission: run as the owner of the directory"
    try:
        import grp
        import pwd

        owner, group = pwd.getpwuid(found.st_uid)[0], grp.getgrgid(found.st_gid)[0]
    except (ImportError, KeyError):  # not even Python's own files can be read; no such user
        owner, group = f"user {found.st_uid}", str(found.st_gid)
    if found.st_mode & stat.S_IWGRP:
        return f"this user has no permission: run as {owner}, or add this user to the group {group}"
    share = f"chgrp -R GROUP {directory}; chmod -R g+rw {directory}; chmod g+ws {directory}"
    return f"this user has no permission: run as {owner}, or share the directory: {share}"


def queue_moved(queue: str, address: str) -> QueueMoved:
    """Return the error to raise for a queue that was moved to another address.

    >>> print(queue_moved("queue.tsv", "/srv/new.tsv"))
    queue.tsv was moved to /srv/new.tsv: nothing was done (use that path or URL)
    """
    error = QueueMoved(f"{queue} was moved to {address}: nothing was done (use that path or URL)")
    error.address = address
    return error


def no_transaction(queue: str) -> InvalidArgument:
    """Return the error to raise for a `connection` if the queue isn't in PostgreSQL."""
    return InvalidArgument(
        f"invalid connection: the jobs of {queue} aren't in a database, so they can't be part of "
        "its transaction (open the queue with its postgresql:// URL, or leave the connection out)"
    )


def not_started(what: str, error: BaseException) -> StoreError:
    """Return the error to raise if the system refuses a thread, a process or a pipe.

    `what` begins the message, such as "the worker's thread".
    """
    number = getattr(error, "errno", None) or errno.EAGAIN
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    advice = _PROCESS_ADVICE.get(number)
    details = f" ({advice})" if advice else ""
    return StoreError(number, f"{what} could not be started: {reason}{details}")
