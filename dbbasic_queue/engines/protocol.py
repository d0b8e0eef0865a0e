"""`Engine`: the calls of a queue, whatever keeps and runs its jobs; `tests/contract/` checks them.

For all engines:

- **A job** is a dict with the keys `id`, `type`, `payload`, `status`, `created_at`, `run_at`,
  `attempts`, `error`, `result`. It is a copy. `payload` and `result` are the given values as JSON
  returns them. `status` is one of `pending`, `processing`, `completed`, `failed`, `cancelled`.
  Times are whole Unix seconds. `attempts` counts started attempts. `error` is the last error, or
  None.
- **Each change is atomic**: it is made completely when the call returns, and not at all if the call
  raises, for all threads and, if the engine is shared, for all processes.
- **Errors**: an engine raises `InvalidJob`, `DuplicateJob` and `InvalidArgument` before it changes
  anything, `InvalidHandlers` before it runs anything, and `StoreError` if it can't reach the jobs.
  Exceptions of its own machinery, such as a driver's, aren't raised.
- **The clock** that an engine was given is the source of all times that it compares and records.

These are a queue's public calls, not those of a store, so an engine may have its own workers, its
own locks and its own way of waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime, timedelta
    from types import TracebackType
    from typing import Literal, Self

    from dbbasic_queue.model.jobdict import FinishedStatus, JobDict, Status


class Engine(Protocol):
    """The public calls of a queue; `open_queue` returns an object that has them."""

    def enqueue(
        self,
        job_type: str,
        payload: Any,
        run_at: float | datetime | None = None,
        *,
        job_id: str | None = None,
        exist_ok: bool = False,
        unique: Literal["pending"] | None = None,
        connection: Any = None,
    ) -> str:
        """Add one pending job; return its id: `job_id`, or one that no other job has.

        `job_type`: 1 to 100 characters from A-Z a-z 0-9 _ . : -. `payload`: a JSON value of at most
        1 MiB, nested at most 100 deep; None becomes `{}`. `run_at`: Unix seconds, rounded up, or an
        aware datetime; None and 0 mean now. `job_id`: 1 to 64 characters from A-Z a-z 0-9 . _ -.

        With `exist_ok`, the id is returned if a job of any status has it, and nothing is added.
        With `unique="pending"`, the id of a pending job of this type with the same payload, if
        there is one, is returned, and nothing is added or changed. Running jobs don't count. Two
        payloads are the same if they are the same JSON, in whatever order an object's members are.

        With `connection`, the job is part of the transaction of that database connection, if the
        engine can do that; InvalidArgument otherwise.

        Raises InvalidJob for an invalid argument, DuplicateJob if a job of any status has
        the id, InvalidArgument for `exist_ok` without `job_id`, or `unique` with it. If several
        callers ask for the same id, or enqueue the same unique job, at once, one of them adds it.
        """

    def enqueue_many(
        self,
        job_type: str,
        payloads: Iterable[Any],
        run_at: float | datetime | None = None,
        *,
        connection: Any = None,
    ) -> list[str]:
        """Add one job per payload, all or none; return the ids in the payloads' order.

        Readers see all of them or none. Raises the errors of `enqueue`, and any that iterating over
        `payloads` raises.
        """

    def get_job(self, job_id: str) -> JobDict | None:
        """Return the job, or None if there is no such job.

        It shows every change that was acknowledged before the call, by any process.
        """

    def cancel_job(self, job_id: str) -> bool:
        """Make a pending job `cancelled`, with the error `Cancelled by user`, and return True.

        Returns False, and changes nothing, if the job is running, finished or unknown. If a worker
        claims the job at the same moment, one of the two wins: after True, its handler is never
        called.
        """

    def stop_job(self, job_id: str) -> Literal["cancelled", "stopped", "requested"] | None:
        """Cancel a pending job, or stop a running one, as far as the engine can.

        Returns "cancelled" if the job was pending. If it was running, it ends as `cancelled`, with
        the error `Stopped by user`, unless it completes first, and never runs again: returns
        "stopped" if it has ended, "requested" if it may still be running. Returns None if it is
        finished, or completes in the meantime. Raises JobNotFound if there is no such job.
        """

    def process_jobs(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = 3,
        *,
        skip_unknown: bool = False,
        linger: float | timedelta = 0,
        workers: int = 1,
    ) -> dict[str, int]:
        """Make one pass: run the due jobs; return how many had each outcome.

        A pending job is due if its `run_at` has come when the pass starts. Jobs of types whose
        `Handler` has a higher `priority` run first, then those with an earlier `run_at`, and within
        a second those that were enqueued earlier. Jobs that are added or made pending again in the
        meantime wait for the next pass, unless their priority is higher than that of a job that
        still waits. A job is never in two handlers at once; while one takes long, another pass may
        run the jobs that this one has not started. An attempt is counted before its handler starts,
        and each outcome is recorded before the next handler starts:

        - it returns: `completed`; the result is kept if it is JSON, otherwise `error` says why not
        - it raises `Delay`: `pending` again and due as it says, the attempt doesn't count, `error`
          begins with `delayed`
        - it raises `Fail`: `failed`
        - it raises anything else: `pending` again after the backoff of its `Handler`, by default
          `60 * 2**attempts` seconds, rounded down to a full minute; `failed` if its attempts are
          used up: the `max_attempts` of its `Handler`, by default those given here. `error` is
          `Type: message`, or only the message of a plain `Exception`
        - its type has no handler: as if it had raised; with `skip_unknown` it is left alone

        A retry whose `run_at` is later than its backoff allows was set by a wrong clock, and is
        made due earlier. With `linger`, the call also runs jobs that become due within that time.
        With `workers`, up to that many jobs run at a time, if the engine can. A handler's
        `concurrency` limits how many of its jobs run in all passes together; a job that takes
        longer than its `timeout` is ended as if it had raised. Paused types are left alone.

        Returns the counts `completed`, `failed`, `retried`, `delayed`, `stopped` and `recovered`
        (jobs of a dead worker). Raises InvalidHandlers for invalid handlers or limits,
        InvalidArgument for an invalid `linger`.
        """

    def run_until_complete(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = 3,
        *,
        workers: int = 1,
    ) -> dict[str, int]:
        """Like `process_jobs`, until no job is pending or running; waits for later jobs.

        Jobs of paused types are left alone: the call doesn't wait for them.
        """

    def pause(self, job_type: str | None = None) -> bool:
        """Stop starting jobs of a type, or of all types; running jobs go on.

        Returns False if it was paused already. Raises InvalidJob for an invalid type.
        """

    def resume(self, job_type: str | None = None) -> bool:
        """End the pause of a type or, without a type, every pause; False if there was none.

        While all types are paused, resuming one of them has no effect. Raises InvalidJob for an
        invalid type.
        """

    def paused(self) -> frozenset[str]:
        """Return the paused types; "*" means all types."""

    def wait(self, job_id: str, timeout: float | timedelta) -> JobDict | None:
        """Return the job once it is completed, failed or cancelled.

        Returns None after `timeout` of real time (seconds, or a `timedelta`). Raises JobNotFound if
        there is no such job, InvalidArgument for an invalid `timeout`.
        """

    def requeue(self, job_id: str, run_at: float | datetime | None = None) -> bool:
        """Make a failed or cancelled job pending again, with 0 attempts and no error.

        It becomes due at `run_at`; by default a failed job is due now, and a cancelled one at its
        old `run_at`. Returns False, and changes nothing, for any other job. A late outcome of an
        earlier attempt changes nothing. Raises InvalidJob for an invalid `run_at`.
        """

    def run_now(self, job_id: str) -> bool:
        """Make a pending job due now; False if it isn't pending.

        Raises JobNotFound if there is no such job.
        """

    def edit_job(self, job_id: str, payload: Any) -> bool:
        """Replace the payload of a pending job, and nothing else; False if it isn't pending.

        If a worker claims the job at the same moment, one of the two wins: after True, its handler
        never gets the old payload; after False, it never gets the new one. Raises InvalidJob for an
        invalid payload, JobNotFound if there is no such job.
        """

    def requeue_failed(self, job_type: str | None = None, *, error: str | None = None) -> int:
        """Requeue all failed jobs, or those of one type; return how many.

        With `error`, only those whose error contains that text, as `get_job` shows it. Raises
        InvalidArgument if it isn't text.
        """

    def clear_failed(self, job_type: str | None = None) -> int:
        """Remove all failed jobs, or those of one type; return how many."""

    def remove_type(self, job_type: str) -> int:
        """Remove all jobs of a type, except running ones; return how many."""

    def purge(
        self,
        older_than: float | timedelta,
        status: FinishedStatus | None = None,
        *,
        archive: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
    ) -> int:
        """Remove finished jobs that were due more than `older_than` ago; return how many.

        `older_than` is seconds or a `timedelta`. `status` (`completed`, `failed` or `cancelled`)
        removes only those. `archive` names a TSV file: the jobs are appended to it as rows of nine
        columns, and on the disk, before they are removed. The ids of removed jobs can be used
        again. With `dry_run`, nothing is changed, and the number is that of now.

        Raises InvalidArgument for an invalid argument, and if the engine can't archive.
        """

    def jobs(self, status: Status | None = None, job_type: str | None = None) -> Iterator[JobDict]:
        """Iterate over the jobs in the order of enqueueing, of one status or type if given.

        The jobs are those of the first step: later changes don't disturb it. Raises
        InvalidArgument, at the call, for a status that no job can have.
        """

    def counts(self) -> dict[Status, int]:
        """Return how many jobs have each of the five statuses."""

    def close(self) -> None:
        """Close what is open. The next call opens it again."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        """Close."""
