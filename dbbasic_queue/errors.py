"""Every exception that is raised on purpose.

All are `QueueError`; each is also the built-in exception that a caller would expect, so that
`except ValueError` and `except OSError` go on working.
"""

from __future__ import annotations

import errno

_LIMITS = {
    errno.EAGAIN: "too many processes and threads: raise ulimit -u, or the container's pids.max",
    errno.ENOMEM: "too little memory: add some, or run fewer processes",
    errno.EMFILE: "this process has too many open files: raise ulimit -n",
    errno.ENFILE: "the machine has too many open files: raise fs.file-max",
}


class QueueError(Exception):
    """The base of all errors of this package."""


class InvalidJob(QueueError, ValueError):
    """Raised if a job's type, payload, `run_at` or id is refused; nothing has been written."""


class DuplicateJob(InvalidJob):
    """Raised if the caller's own `job_id` is in the queue already; nothing has been written."""


class InvalidArgument(QueueError, ValueError):
    """Raised if any other argument is invalid, such as a timeout or a status; nothing was done."""


class JobNotFound(QueueError, LookupError):
    """Raised by calls that need a job if no job has the id; nothing was done."""


class InvalidHandlers(QueueError, TypeError):
    """Raised if `process_jobs` is given handlers or limits that cannot work; nothing has run."""


class QueueBusy(QueueError, OSError):
    """Raised if the lock stays taken for a minute, or if all pass slots are held."""


class NotAQueue(QueueError, OSError):
    """Raised if a file or directory is not one that the queue may use; it has not been touched.

    Also raised for a URL with an unknown scheme.
    """


class QueueDamaged(NotAQueue):
    """Raised if a file of the queue has been damaged beyond reading; it has not been touched.

    A damaged line is no reason: it is kept, reported and passed over.
    """


class StoreError(QueueError, OSError):
    """Raised if the system refuses a read or a write; `errno` and `filename` are the system's.

    The message says what has become of the change: it is not in the queue unless it says so.
    """


def not_started(what: str, error: BaseException) -> StoreError:
    """Return the error to raise if the system refuses a thread, a process or a pipe."""
    number = getattr(error, "errno", None) or errno.EAGAIN
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    advice = _LIMITS.get(number, "see the system's message")
    return StoreError(number, f"{what} could not be started: {reason} ({advice})")
