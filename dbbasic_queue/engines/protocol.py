"""`Engine`: the calls of a queue, wherever its jobs are kept and whoever runs them.

What holds for all of them:

- **A job** is shown as a dict with the keys `id`, `type`, `payload`, `status`, `created_at`,
  `run_at`, `attempts`, `error`, `result`: a snapshot, which the caller may alter. `payload` and
  `result` are what JSON makes of the values that were given. `status` is one of `pending`,
  `processing`, `completed`, `failed`, `cancelled`; the instants are ints, Unix seconds; `attempts`
  counts those that were started; `error` is the last one, or None.
- **Atomic**: a call has been done whole when it returns, and not at all where it raises, for every
  other thread, and for every other process where the engine is one that processes share. As durable
  as the engine says it is.
- **Errors**: `InvalidJob` and `DuplicateJob` for what is refused, before anything is changed;
  `InvalidHandlers` before anything is run; `StoreError` where the jobs cannot be reached. No other
  exception of the engine's own machinery comes out.
- **The clock** that an engine is given says what time it is, in all that it compares and records.

This is the level of the public calls, not of a store, so that an engine may bring its own workers,
its own locks, and its own way of waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime, timedelta
    from types import TracebackType
    from typing import Self

    from dbbasic_queue.jobqueue import FinishedStatus, JobDict, Status


class Engine(Protocol):
    """What `open_queue` returns; the contract tests check all of it."""

    def enqueue(
        self,
        job_type: str,
        payload: Any,
        run_at: float | datetime | None = None,
        *,
        job_id: str | None = None,
    ) -> str:
        """Add one pending job; return its id: `job_id`, or one that no other job has.

        `job_type`: 1 to 100 of `A-Z a-z 0-9 _ . : -`. `payload`: a JSON value of at most 1 MiB and
        a depth of 100; None becomes `{}`. `run_at`: Unix seconds, rounded up, or an aware datetime;
        None and 0 are now. `job_id`: 1 to 64 of `A-Z a-z 0-9 . _ -`.

        Raises InvalidJob for any other argument; DuplicateJob if a job has the id, whatever its
        status: of many who ask at once for one id, one gets it.
        """

    def enqueue_many(
        self, job_type: str, payloads: Iterable[Any], run_at: float | datetime | None = None
    ) -> list[str]:
        """Add a job for each payload, all or none; return the ids in the payloads' order.

        No one sees a part of them. Raises as `enqueue` does, and what iterating raises: then none
        is added.
        """

    def get_job(self, job_id: str) -> JobDict | None:
        """Return the job as it stands, or None where there is none, or where that is no id.

        It shows what was acknowledged before the call, by whomever.
        """

    def cancel_job(self, job_id: str) -> bool:
        """Make a pending job `cancelled`, its error `Cancelled by user`; True if that was done.

        False, and nothing is changed, for a job that is being run or done, and where there is
        none. Against a worker that claims the job at the same moment, one of the two wins: after
        True, its handler is never called.
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
        """Run what is due now, in this call; return how many jobs ended how.

        Due is a pending job whose `run_at` has come when the pass begins; earliest first, in the
        order of enqueueing within a second. A job that is put back, or added, meanwhile waits for
        the next pass. Never is one job in two handlers at once, and while one takes long, another
        pass may run what this one has not started. The attempt counts before the handler starts;
        each outcome is recorded before the next handler does:

        - it returns: `completed`, the result kept if it is JSON, else the reason in `error`;
        - it raises `Delay`: `pending` again, due when that says, the attempt returned, `error`
          begins with `delayed`;
        - it raises `Fail`: `failed`;
        - it raises anything else: `pending` again after the backoff of its `Handler`, by default
          `60 * 2**attempts` seconds, or `failed` where no attempt is left of its own `max_attempts`
          or those given here. `error` is `Type: message`;
        - there is no handler for the type: as if it had raised; with `skip_unknown`, the job is
          left alone.

        A retry whose `run_at` is later than its backoff can explain was set by a clock that ran
        ahead: it is brought near. With `linger`, in seconds, the call goes on with what becomes due
        meanwhile. With `workers`, so many run at a time where the engine can; never more.
        Of a handler with a `concurrency` never more than that run, over all passes; one that takes
        longer than its `timeout` is ended, as if it had raised. What is paused is left alone.

        Returns the counts `completed`, `failed`, `retried`, `delayed` and `recovered` (started by a
        worker that is dead). Raises InvalidHandlers for arguments that cannot work.
        """

    def run_until_complete(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = 3,
        *,
        workers: int = 1,
    ) -> dict[str, int]:
        """As `process_jobs`, until no job is pending or processing; waits for what is not due."""

    def pause(self, job_type: str | None = None) -> bool:
        """Have no pass claim a job of this type, or of any, from now on; what runs goes on.

        False if it was paused so already. Raises InvalidJob for what can be no type.
        """

    def resume(self, job_type: str | None = None) -> bool:
        """Take back the pause of this type, or, without one, every pause.

        False if there was none. A pause of all types is not taken back for one of them.
        """

    def wait(self, job_id: str, timeout: float | timedelta) -> JobDict | None:
        """Return the job once it is completed, failed or cancelled.

        Returns None after `timeout` of real time (seconds, or a `timedelta`). Raises JobNotFound if
        there is no such job, InvalidArgument for an invalid `timeout`.
        """

    def requeue(self, job_id: str, run_at: float | datetime | None = None) -> bool:
        """Make a failed or cancelled job pending again: attempts 0, no error.

        It becomes due at `run_at`; by default a failed job is due now, and a cancelled one at its
        old `run_at`. Returns False, and changes nothing, for any other job. An outcome of an
        earlier attempt that comes late changes nothing.
        """

    def run_now(self, job_id: str) -> bool:
        """Make a pending job due now; False if it isn't pending.

        Raises JobNotFound if there is no such job.
        """

    def requeue_failed(self, job_type: str | None = None) -> int:
        """Requeue all failed jobs, or those of a type, all at once; return how many."""

    def clear_failed(self, job_type: str | None = None) -> int:
        """Take all failed jobs, or those of a type, out, all at once; return how many."""

    def remove_type(self, job_type: str) -> int:
        """Take all jobs of a type out but those being run, all at once; return how many."""

    def purge(
        self,
        older_than: float | timedelta,
        status: FinishedStatus | None = None,
        *,
        archive: str | os.PathLike[str] | None = None,
    ) -> int:
        """Take finished jobs out, all at once; return how many. Their ids are free then.

        Those whose `run_at` is more than `older_than` seconds ago, and that have this status
        (`completed`, `failed` or `cancelled`), where given. With `archive`, the name of a
        plain TSV file, they are on the disk at its end, as lines of the text file's nine columns,
        before they leave.

        Raises InvalidArgument for other arguments; an engine that cannot archive, too.
        """

    def jobs(self, status: Status | None = None, job_type: str | None = None) -> Iterator[JobDict]:
        """Iterate over the jobs in the order of enqueueing, by status and type where given.

        Changes that are made meanwhile disturb nothing. Raises InvalidArgument, at the call, for
        a status that no job can have.
        """

    def counts(self) -> dict[Status, int]:
        """Return how many jobs have each of the five statuses."""

    def paused(self) -> frozenset[str]:
        """Return the paused types; "*" means all types."""

    def close(self) -> None:
        """Let go of what is open. The queue may be used again, and opens it again."""

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
