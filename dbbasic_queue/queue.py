"""The default queue, and its calls as functions, as in dbbasic-queue 1.0.0.

Each call looks up which queue that is:

1. `QUEUE_FILE` of this module, a path, if the program has set it;
2. the environment variable `DBBASIC_QUEUE_URL`, as for `open_queue`;
3. the environment variable `DBBASIC_QUEUE_FILE`: a path, or `file:PATH`;
4. `data/queue.tsv`.

A relative path is relative to the current directory at the call.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import NotAQueue
from dbbasic_queue.jobqueue import MAX_ATTEMPTS as MAX_ATTEMPTS
from dbbasic_queue.jobqueue import Queue as Queue
from dbbasic_queue.opening import open_queue
from dbbasic_queue.store.location import path_of, scheme_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta
    from typing import Any, Literal

    from dbbasic_queue.model.jobdict import JobDict

    QUEUE_FILE: str | os.PathLike[str]

_URL, _FILE = "DBBASIC_QUEUE_URL", "DBBASIC_QUEUE_FILE"
_default: tuple[str, Queue] | None = None


class _NotSet(str):
    """The value of `QUEUE_FILE` while the program hasn't set it.

    A test that sets `QUEUE_FILE` and then restores this value leaves it unset.
    """


if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        if name != "QUEUE_FILE":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _NotSet(_location())


def default_queue() -> Queue:
    """Return the default queue, the same object as long as its path or URL stays the same.

    Raises NotAQueue if an environment variable is invalid, or if both are set.
    """
    global _default
    location = _location()
    if _default is None or _default[0] != location:
        _default = location, open_queue(location)
    return _default[1]


def open_default(*, even_if_moved: bool) -> Queue:
    """Return a new object for the default queue; otherwise like `default_queue`."""
    return open_queue(_location(), even_if_moved=even_if_moved)


def _location() -> str:
    """Return the default queue's absolute path, or its URL."""
    path: str | os.PathLike[str] | None = globals().get("QUEUE_FILE")
    if path is not None and not isinstance(path, _NotSet):
        return os.path.abspath(os.fspath(path))
    url, value = os.environ.get(_URL), os.environ.get(_FILE)
    if url and value:
        raise NotAQueue(f"both {_URL} and {_FILE} ({value!r}) are set: unset one of them")
    if url and scheme_of(url) != "file":
        return url
    if url:
        return os.path.abspath(path_of(url))
    return os.path.abspath(path_of(value, _FILE) if value else "data/queue.tsv")


def enqueue(
    job_type: str,
    payload: Any,
    run_at: float | datetime | None = None,
    *,
    job_id: str | None = None,
    exist_ok: bool = False,
    unique: Literal["pending"] | None = None,
    connection: Any = None,
) -> str:
    """Add one job to the default queue, and return its id. The job is on the disk on return.

    `job_type` is 1 to 100 characters from A-Z a-z 0-9 _ . : -. `payload` is any JSON value; None
    becomes `{}`. `run_at` is when the job becomes due: Unix seconds, rounded up, or an aware
    datetime; None and 0 mean now. `job_id` is an id of your own, 1 to 64 characters from
    A-Z a-z 0-9 . _ -, the first not "-": only one job can have it. With `exist_ok`, the id is
    returned if a job has it already. With `unique="pending"`, the id of a pending job of this type
    with the same payload is returned, if there is one. With `connection`, for a queue in
    PostgreSQL, the job is part of that connection's transaction. `Queue.enqueue` says more.

    Raises InvalidJob for an invalid argument, DuplicateJob if a job has this `job_id`,
    InvalidArgument for `exist_ok` without a `job_id`, or `unique` with one, StoreError if the
    system can't write. Then nothing was added, unless a StoreError says otherwise.
    """
    return default_queue().enqueue(
        job_type,
        payload,
        run_at,
        job_id=job_id,
        exist_ok=exist_ok,
        unique=unique,
        connection=connection,
    )


def enqueue_many(
    job_type: str,
    payloads: Iterable[Any],
    run_at: float | datetime | None = None,
    *,
    connection: Any = None,
) -> list[str]:
    """Add one job per payload to the default queue, and return their ids in the payloads' order.

    All jobs are added by one write and one sync, and are on the disk on return. `connection` is as
    for `enqueue`. Raises the same errors as `enqueue`: then no job was added, unless a StoreError
    says otherwise.
    """
    return default_queue().enqueue_many(job_type, payloads, run_at, connection=connection)


async def aenqueue(
    job_type: str,
    payload: Any,
    run_at: float | datetime | None = None,
    *,
    job_id: str | None = None,
    exist_ok: bool = False,
    unique: Literal["pending"] | None = None,
    connection: Any = None,
) -> str:
    """Like `enqueue`, for coroutines: the event loop goes on while a thread writes the job.

    If the caller is cancelled, the job may have been added anyway.
    """
    return await default_queue().aenqueue(
        job_type,
        payload,
        run_at,
        job_id=job_id,
        exist_ok=exist_ok,
        unique=unique,
        connection=connection,
    )


def get_job(job_id: str) -> JobDict | None:
    """Return a job of the default queue, or None if there is no such job.

    The keys are the nine columns: `id`, `type`, `payload`, `status`, `created_at`, `run_at` (both
    in Unix seconds), `attempts`, `error` (a str or None), `result`. The dict is a copy.
    """
    return default_queue().get_job(job_id)


def cancel_job(job_id: str) -> bool:
    """Cancel a pending job of the default queue. The change is on the disk on return.

    Returns True if the job was pending and is now `cancelled`; False if it is unknown, running or
    finished.
    """
    return default_queue().cancel_job(job_id)


def process_jobs(
    handlers: Mapping[str, Callable[..., Any]],
    max_attempts: int = MAX_ATTEMPTS,
    *,
    skip_unknown: bool = False,
    linger: float | timedelta = 0,
    workers: int = 1,
    ping: str | None = None,
) -> dict[str, int]:
    """Make one pass over the default queue: run the jobs that are due, and record each outcome.

    Arguments, return value and errors are those of `Queue.process_jobs`.
    """
    return default_queue().process_jobs(
        handlers,
        max_attempts,
        skip_unknown=skip_unknown,
        linger=linger,
        workers=workers,
        ping=ping,
    )
