"""`Queue`: enqueue, look up, change and run jobs, in any store."""

from __future__ import annotations

import math
import os
import time

from dbbasic_queue.errors import (
    InvalidArgument,
    InvalidJob,
    JobNotFound,
    QueueError,
)
from dbbasic_queue.lazy import load
from dbbasic_queue.model.checks import (
    ALL,
    CheckedClock,
    check_count,
    check_id,
    check_instant,
    check_once,
    check_seconds,
    check_type,
    is_id,
)
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.jobdict import as_dict
from dbbasic_queue.model.jsontext import LARGEST_PAYLOAD, MAX_PAYLOAD, encode_json
from dbbasic_queue.model.rows import Row, has_json, new_row
from dbbasic_queue.model.states import (
    CANCELLED,
    COMPLETED,
    FAILED,
    FINISHED,
    PROCESSING,
    STATUSES,
    is_moving,
    is_old,
)
from dbbasic_queue.store.location import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
    from datetime import datetime, timedelta
    from types import ModuleType
    from typing import Any, Literal, Self

    from dbbasic_queue.model.jobdict import (
        AttemptDict,
        FinishedStatus,
        JobDict,
        ProgressDict,
        ScheduleDict,
        Status,
        UnreadableDict,
    )
    from dbbasic_queue.monitoring.summary import Summary
    from dbbasic_queue.passes.base import Pass
    from dbbasic_queue.passes.supervisor import Supervisor
    from dbbasic_queue.store.protocol import Store

MAX_ATTEMPTS = 3
_FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1
_STOP_SECONDS = 1.5
"""how long `stop_job` waits for the end of a running job"""


class Queue:
    """A queue in a text file, or in memory: safe for threads, processes and forks.

    `path_or_url` is a path, relative to the current directory at this call, or `file:PATH`: the
    file and its directory are created by the first `enqueue`. `memory:` keeps the jobs in this
    process only, for tests; all queues named `memory:NAME` share theirs.

    With `fsync=False` a job survives any crash of a process, but not of the machine. All calls of a
    queue that `dbbasic-queue move` has moved raise QueueMoved, except with `even_if_moved=True`.
    `max_payload` limits the JSON of a payload, or a result, in bytes. `clock` returns the time in
    Unix seconds.

    Raises InvalidArgument for a `max_payload` that is too large, NotAQueue for a URL of another
    kind.
    """

    _skipped_history_rows = 0
    """how many unreadable rows of the history have been reported"""

    def __init__(
        self,
        path_or_url: str | os.PathLike[str] = "data/queue.tsv",
        *,
        fsync: bool = True,
        even_if_moved: bool = False,
        max_payload: int = MAX_PAYLOAD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        store = open_store(path_or_url, fsync=fsync, even_if_moved=even_if_moved)
        self._set(store, max_payload, clock)

    @classmethod
    def of_store(
        cls,
        store: Store,
        *,
        max_payload: int = MAX_PAYLOAD,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return a queue whose jobs a store keeps that is open already: for `open_queue`."""
        queue = cls.__new__(cls)
        queue._set(store, max_payload, clock)
        return queue

    def _set(self, store: Store, max_payload: int, clock: Callable[[], float]) -> None:
        if max_payload > LARGEST_PAYLOAD:
            raise InvalidArgument(
                f"invalid max_payload {max_payload!r}: must be at most {LARGEST_PAYLOAD} bytes "
                "(put larger data into a file, and the file's name into the payload)"
            )
        self.path = store.path
        """the absolute path of the queue's file, or its URL"""
        self.store = store
        """where the jobs are kept: for this package's own tools"""
        self.max_payload = max_payload
        self.now = clock if clock is time.time else CheckedClock(clock)
        """returns the time in Unix seconds"""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def close(self) -> None:
        """Close the files. The next call opens them again."""
        self.store.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it opens the same file.

        Raises QueueError if the clock can't be pickled.
        """
        clock = getattr(self.now, "clock", self.now)
        if "<" in getattr(clock, "__qualname__", ""):
            raise QueueError(
                f"cannot pickle the queue {self.path}: its clock {clock!r} is a lambda or an inner "
                "function (define it at the top level of a module)"
            )
        return {**self.__dict__, "path": self.path, "now": self.now, "store": self.store}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        """Add one job, and return its id. The job is on the disk on return.

        `job_type` is 1 to 100 characters from A-Z a-z 0-9 _ . : -. `payload` is any JSON value;
        None becomes `{}`. `run_at` is when the job becomes due: Unix seconds, rounded up, or an
        aware datetime; None and 0 mean now. `job_id` is an id of your own, 1 to 64 characters from
        A-Z a-z 0-9 . _ -, the first not "-": only one job can have it.

        With `exist_ok`, if a job has this `job_id`, nothing is added and the id is returned:
        whatever that job's type, payload and status are. With `unique="pending"`, if a job of this
        type with the same payload is pending, nothing is added and that job's id is returned; its
        `run_at` stays. A running job doesn't count, because it may have read older data; a job that
        waits for a retry does. The order of an object's members doesn't matter. Both are exact for
        concurrent callers. The first call with `unique` in a process reads the whole queue.

        With `connection`, for a queue in PostgreSQL, the job is part of the transaction of that
        database connection (of psycopg 2 or 3, or Django): it is there when the caller commits,
        and never if the caller rolls back.

        Raises InvalidJob for an invalid argument, DuplicateJob if a job has this `job_id`,
        InvalidArgument for `exist_ok` without a `job_id`, or `unique` with one, and for a
        `connection` that the queue can't use; StoreError if the system can't write. Then nothing
        was added, unless a StoreError says otherwise.
        """
        if exist_ok or unique is not None:
            check_once(job_id, exist_ok, unique)
        job_type = check_type(job_type)
        now = int(self.now())
        due = now if run_at is None else self._instant(run_at, now)
        row_id = os.urandom(8).hex() if job_id is None else check_id(job_id)
        text = self._encode(payload)
        row = new_row(row_id, job_type, text, now, due)
        store = self.store if connection is None else self.store.within(connection)
        if unique is not None:
            return store.add_unless_pending(row, job_type, text) or row_id
        if exist_ok:
            store.add_once(row, row_id)
        else:
            store.add(row, job_id)
        return row_id

    def enqueue_many(
        self,
        job_type: str,
        payloads: Iterable[Any],
        run_at: float | datetime | None = None,
        *,
        connection: Any = None,
    ) -> list[str]:
        """Add one job per payload, and return their ids in the payloads' order.

        All jobs are added by one write and one sync, and are on the disk on return. `connection` is
        as for `enqueue`. Raises the same errors as `enqueue`: then no job was added, unless a
        StoreError says otherwise.
        """
        job_type = check_type(job_type)
        if isinstance(payloads, (str, bytes, bytearray)) or hasattr(payloads, "keys"):
            raise InvalidJob(
                f"invalid payloads of type {type(payloads).__name__}: must be a list, or another "
                "iterable, with one payload for each job"
            )
        now = int(self.now())
        due = now if run_at is None else self._instant(run_at, now)
        most = self.max_payload
        try:
            texts = [encode_json({} if value is None else value, most) for value in list(payloads)]
        except ValueError as e:
            raise InvalidJob(f"invalid payload: {e}") from e
        random = os.urandom(8 * len(texts)).hex()
        ids = [random[i : i + 16] for i in range(0, len(random), 16)]
        rows = [new_row(i, job_type, text, now, due) for i, text in zip(ids, texts, strict=True)]
        store = self.store if connection is None else self.store.within(connection)
        if rows:
            store.add("".join(rows))
        return ids

    def _encode(self, payload: object) -> str:
        """Return a payload as JSON text; raises InvalidJob if it isn't valid."""
        try:
            return encode_json({} if payload is None else payload, self.max_payload)
        except ValueError as e:
            raise InvalidJob(f"invalid payload: {e}") from e

    @staticmethod
    def _instant(run_at: object, now: int) -> int:
        """Return when a job is due: now for a `run_at` of 0, as in dbbasic-queue 1.0.0."""
        return check_instant(run_at) or now

    def get_job(self, job_id: str) -> JobDict | None:
        """Return the job, or None if there is no such job. Writes nothing; needs no lock.

        The keys are the nine columns: `id`, `type`, `payload`, `status`, `created_at`, `run_at`
        (both in Unix seconds), `attempts`, `error` (a str or None), `result`. The dict is a copy.
        """
        row = self.store.find(job_id) if is_id(job_id) else None
        return as_dict(row) if row else None

    def cancel_job(self, job_id: str) -> bool:
        """Cancel a pending job. The change is on the disk on return.

        Returns True if the job was pending and is now `cancelled`; False if it is unknown, running
        or finished.
        """
        return is_id(job_id) and self.store.cancel(job_id)

    def stop_job(self, job_id: str) -> Literal["cancelled", "stopped", "requested"] | None:
        """Stop a job, whether it is pending or running. The request is on the disk on return.

        A pending job is cancelled: returns "cancelled". A running job is stopped by its pass, if it
        runs in a process of its own (its handler has a `timeout`): within a second, that process
        and all that it has started get SIGTERM, then SIGKILL. The job ends as `cancelled`: returns
        "stopped". Any other running job is asked to stop (`Job.stop_requested`,
        `Job.check_stop`): returns "requested" if it hasn't ended 1.5 seconds later. It ends as
        `completed` if its handler returns, and as `cancelled` if that raises, or if its pass dies.

        A stopped job never runs again, unless someone requeues it. Returns None if the job is
        finished, or completes in the meantime. Raises JobNotFound if there is no such job.
        """
        status = self.store.stop(job_id) if is_id(job_id) else None
        if status != PROCESSING:
            self._existing(job_id, self.get_job(job_id))
            return "cancelled" if status == CANCELLED else None
        for pause in _polls(_STOP_SECONDS):
            time.sleep(pause)
            job = self.get_job(job_id)
            if job is None or job["status"] != PROCESSING:
                return None if job is None or job["status"] == COMPLETED else "stopped"
        return "requested"

    def process_jobs(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        skip_unknown: bool = False,
        linger: float | timedelta = 0,
        workers: int = 1,
        ping: str | None = None,
    ) -> dict[str, int]:
        """Make one pass: run the jobs that are due now, and record each outcome.

        `handlers` maps job types to functions, or coroutine functions, that take the payload (and,
        if they have a second argument, the `Job`) and return a JSON value or None. A `Handlers`
        registry or `Handler` objects add policies. If a handler raises an exception, its type and
        text are the job's error, and the job runs again `60 * 2**attempt` seconds later. After
        `max_attempts` attempts in all, it is `failed`. `Delay` postpones a job, `Fail` fails it at
        once. A job whose type has no handler is retried like one whose handler raises; with
        `skip_unknown` it is left alone.

        With `linger` (seconds, or a `timedelta`) the pass stays that long, and starts a job within
        a tenth of a second after it becomes due. So cron with `linger=55` needs no daemon.

        With `workers`, that many jobs run at a time: plain functions in forked processes,
        coroutine functions on one event loop.

        `ping` is an http or https URL that is requested after the pass, even if jobs have failed,
        but not if the pass raises an error: a monitoring service can alert you if no ping arrives.
        A ping that fails within 5 seconds is logged, and changes nothing.

        Returns the counts `completed`, `failed`, `retried`, `delayed`, `stopped` (by `stop_job`)
        and `recovered` (jobs of a pass that died). Ctrl-C raises KeyboardInterrupt and SIGTERM
        SystemExit, after the running job has been recorded or returned.

        Raises InvalidHandlers for invalid handlers or limits, InvalidArgument for an invalid
        `linger` or `ping`, QueueBusy if 64 passes are running, NotAQueue or StoreError if the files
        can't be used.
        """
        seconds = check_seconds(linger, "linger")
        if ping is not None:
            load(_http).check_url(ping, "ping")
        counts = self._pass(
            handlers, max_attempts, workers, skip_unknown=skip_unknown, linger=seconds
        ).run()
        if ping is not None:
            load(_http).ping(ping)
        return counts

    def run_until_complete(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        workers: int = 1,
    ) -> dict[str, int]:
        """Run jobs until none is pending or running; wait for retries and delayed jobs.

        Jobs of paused types are left alone. If a job calls this, the jobs that its own pass is
        running are left alone, too. Otherwise like `process_jobs`; returns the same counts.
        """
        return self._pass(
            handlers, max_attempts, workers, linger=math.inf, until_complete=True
        ).run()

    def _pass(
        self, handlers: Any, max_attempts: int, workers: int, **how: Any
    ) -> Pass | Supervisor:
        return load(_plan)(
            self.store, handlers, max_attempts, workers, self.now, self.max_payload, **how
        )

    def pause(self, job_type: str | None = None) -> bool:
        """Stop starting jobs of a type, or of all types. Running jobs go on.

        The pause is on the disk, in `queue.tsv.paused`, on return. Returns False if it was paused
        already.
        """
        return self.store.pause(ALL if job_type is None else check_type(job_type))

    def resume(self, job_type: str | None = None) -> bool:
        """End the pause of a type or, without a type, every pause; on the disk on return.

        Returns False if it wasn't paused. While all types are paused, resuming one of them has no
        effect.
        """
        return self.store.resume(None if job_type is None else check_type(job_type))

    def paused(self) -> frozenset[str]:
        """Return the paused types; "*" means all types."""
        return self.store.paused()

    def schedules(self) -> list[ScheduleDict]:
        """Return the schedules that passes have recorded, of all programs, in the file's order.

        The keys are the columns of `queue.tsv.schedule`: `name`, `program` (which declares it),
        `type`, `expression` (a cron expression, or an interval such as `300s`), `timezone` ("" for
        an interval), `last` (the instant that was added last, in Unix seconds, or None) and `next`
        (the next one). Needs no lock.

        Raises QueueDamaged if a line of the file isn't valid, NotAQueue or StoreError if it can't
        be used.
        """
        found: list[ScheduleDict] = load(_schedule_file).as_dicts(
            self.store.read_schedules(), self.path
        )
        return found

    def remove_schedule(self, name: str) -> bool:
        """Forget a schedule; return whether there was one. On the disk on return.

        For the schedule of a program that is gone, or one whose `next` is wrong because the clock
        was. If a program still declares it, the next pass records it again, with its first instant
        after that. Raises the same errors as `schedules`.
        """
        change = load(_schedule_file).Change(name, None)
        while True:
            seen = self.store.read_schedules()
            if name not in load(_schedule_file).parse(seen, self.path):
                return False
            if self.store.update_schedules(seen, [change]):
                return True

    def wait(self, job_id: str, timeout: float | timedelta) -> JobDict | None:
        """Wait until a job is completed, failed or cancelled, and return it like `get_job`.

        Returns None after `timeout` (seconds, or a `timedelta`). Raises JobNotFound if there is no
        such job, InvalidArgument for an invalid `timeout`.
        """
        for pause in _polls(timeout):
            time.sleep(pause)
            job = self._existing(job_id, self.get_job(job_id))
            if job["status"] in FINISHED:
                return job
        return None

    def _existing(self, job_id: object, job: JobDict | None) -> JobDict:
        if job is None:
            raise _not_found(job_id, self.path)
        return job

    # -- for coroutines: the same in a thread, so that the event loop goes on --

    async def aenqueue(
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
        """Like `enqueue`. If the caller is cancelled, the job may have been added anyway."""
        import asyncio

        return await asyncio.to_thread(
            self.enqueue,
            job_type,
            payload,
            run_at,
            job_id=job_id,
            exist_ok=exist_ok,
            unique=unique,
            connection=connection,
        )

    async def aget_job(self, job_id: str) -> JobDict | None:
        """Like `get_job`."""
        import asyncio

        return await asyncio.to_thread(self.get_job, job_id)

    async def await_job(self, job_id: str, timeout: float | timedelta) -> JobDict | None:
        """Like `wait`. However many coroutines wait, only one thread looks for their jobs."""
        seconds = check_seconds(timeout, "timeout", above=-math.inf)
        found = await load(_waiting)(self, self.get_job, job_id, seconds)
        job = self._existing(job_id, found)
        return job if job["status"] in FINISHED else None

    # -- changing jobs: each call is one atomic change, and leaves running jobs alone --

    def requeue(self, job_id: str, run_at: float | datetime | None = None) -> bool:
        """Make a failed or cancelled job pending again, with 0 attempts; on the disk on return.

        It becomes due at `run_at` (Unix seconds, or an aware datetime; 0 means now). By default a
        failed job is due now, and a cancelled one at its old `run_at`. Returns False if there is
        no such job, or if it is neither failed nor cancelled. Raises InvalidJob for an invalid
        `run_at`.
        """
        now = self.now()
        due = None if run_at is None else self._instant(run_at, int(now))
        return is_id(job_id) and self.store.requeue(now, job_id=job_id, run_at=due) == 1

    def run_now(self, job_id: str) -> bool:
        """Make a pending job due now: the next pass runs it. On the disk on return.

        Returns False if the job isn't pending. Raises JobNotFound if there is no such job.
        """
        if is_id(job_id) and self.store.run_now(job_id, self.now()):
            return True
        self._existing(job_id, self.get_job(job_id))
        return False

    def edit_job(self, job_id: str, payload: Any) -> bool:
        """Replace the payload of a pending job. On the disk on return.

        `payload` is any JSON value; None becomes `{}`. Everything else in the job stays. Rewrites
        the queue's file. Returns False, and changes nothing, if the job isn't pending: a running
        job, and one that a pass has claimed, keeps its payload. Raises InvalidJob for an invalid
        payload, JobNotFound if there is no such job, StoreError if the system can't write: then
        nothing was changed, unless the error says otherwise.
        """
        text = self._encode(payload)
        if is_id(job_id) and self.store.edit(job_id, text):
            return True
        self._existing(job_id, self.get_job(job_id))
        return False

    def requeue_failed(self, job_type: str | None = None, *, error: str | None = None) -> int:
        """Requeue all failed jobs, or those of one type; return how many. They are due now.

        With `error`, only those whose error contains that text, as `get_job` shows it;
        upper and lower case differ. The change is on the disk on return. Raises InvalidArgument if
        `error` isn't text.
        """
        if error is not None and not isinstance(error, str):
            raise InvalidArgument(
                f"invalid error of type {type(error).__name__}: must be a str, a part of the errors"
            )

        def is_wanted(row: Row) -> bool:
            return job_type in (None, row.type) and (
                error is None or error in unescape(row.state.error)
            )

        return self.store.requeue(self.now(), wanted=is_wanted)

    def clear_failed(self, job_type: str | None = None) -> int:
        """Remove all failed jobs, or those of one type; return how many.

        The change is on the disk on return.
        """
        return self.store.remove(
            lambda row: row.state.status == FAILED and job_type in (None, row.type),
            statuses=(FAILED,),
            job_type=job_type,
        )

    def remove_type(self, job_type: str) -> int:
        """Remove all jobs of a type, except running ones; return how many.

        The change is on the disk on return.
        """
        return self.store.remove(
            lambda row: row.type == job_type and not is_moving(row.state), job_type=job_type
        )

    def purge(
        self,
        older_than: float | timedelta,
        status: FinishedStatus | None = None,
        *,
        archive: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
    ) -> int:
        """Remove finished jobs that were due more than `older_than` ago; return how many.

        `older_than` is seconds or a `timedelta`. A job that was enqueued after its `run_at` counts
        from when it was enqueued. `status` (completed, failed or cancelled) removes only those.
        `archive` names a TSV file: the rows are appended to it, and synced, before they leave the
        queue; a crash in between leaves them in both. Several queues may share an archive. The
        change is on the disk on return. With `dry_run`, nothing is changed: returns how many jobs
        would be removed now.

        Raises InvalidArgument for an invalid argument, NotAQueue if the archive's name belongs to
        another file, QueueBusy if another purge has been writing to it for a minute, StoreError if
        the system can't write. Then no job was removed, unless a StoreError says otherwise.
        """
        seconds = check_seconds(older_than, "older_than")
        if status is not None and status not in FINISHED:
            raise InvalidArgument(
                f"invalid status {status!r}: must be one of {', '.join(FINISHED)}"
            )
        path = None if archive is None else load(_archive).path_of(archive, self.path)
        before = self.now() - seconds
        statuses = FINISHED if status is None else (status,)

        def is_unwanted(row: Row) -> bool:
            return status in (None, row.state.status) and is_old(row.state, before)

        if dry_run:
            if path is not None:
                load(_archive).check(path)
            return sum(map(is_unwanted, self.store.rows(statuses=statuses)))
        return self.store.remove(is_unwanted, archive=path, statuses=statuses)

    # -- looking --

    def jobs(self, status: Status | None = None, job_type: str | None = None) -> Iterator[JobDict]:
        """Iterate over all jobs in the file's order, as dicts like those of `get_job`.

        The jobs are as they were at the iteration's first step. `status` and `job_type` select some
        of them. Raises InvalidArgument for a status that no job can have.
        """
        if status is not None and status not in STATUSES:
            raise InvalidArgument(
                f"invalid status {status!r}: must be one of {', '.join(STATUSES)}"
            )
        return self._jobs(status, job_type)

    def _jobs(self, status: str | None, job_type: str | None) -> Iterator[JobDict]:
        statuses = STATUSES if status is None else (status,)
        for row in self.store.rows(statuses=statuses, job_type=job_type):
            if status in (None, row.state.status) and job_type in (None, row.type):
                job = as_dict(row)
                if job is not None:
                    yield job

    def counts(self) -> dict[Status, int]:
        """Return how many jobs have each of the five statuses."""
        return load(_summary)(self.store, self.now()).counts

    # -- lines of the file that aren't jobs --

    def unreadable(self) -> Iterator[UnreadableDict]:
        """Iterate over the lines of the file that aren't jobs, in the file's order.

        No pass runs them, and no other call shows them. The keys are `line` (its number in the
        file), `reason`, and `text` (its first 200 characters, escaped). Needs no lock, except to
        check a last line that has no line end.
        """
        for found in self.store.unreadable():
            yield {"line": found.line, "reason": found.reason, "text": found.text}

    def remove_unreadable(self) -> int:
        """Move the lines that aren't jobs to `queue.tsv.rejected`; return how many.

        All are moved by one rewrite, which is on the disk on return; a crash may leave them in
        both files. Raises StoreError if the system can't write. Then no line was moved, unless the
        error says otherwise.
        """
        return self.store.remove_unreadable()

    # -- the history, `queue.tsv.history`: one row per finished attempt --

    def history(self, job_id: str) -> list[AttemptDict]:
        """Return the finished attempts of a job, oldest first, as far as the history goes back.

        The keys are the history's columns: `id`, `type`, `attempt` (counted from 1; a delayed or
        interrupted attempt doesn't count, and its number is used again), `outcome` (completed,
        failed, retried, stopped by `stop_job`, delayed, interrupted, died if its pass died, or late
        if a newer attempt had replaced it), `due_at` and `ended_at` (Unix seconds), `seconds` (how
        long the handler ran; None if its pass died), `error` and `traceback` (a str or None),
        `worker` (the pass that recorded it: the host's name, a dot, the process id), `exception`
        (the path of its class, such as "smtplib.SMTPServerDisconnected"), `output_offset` (where
        what it has printed begins in `queue.tsv.output`). The last three are None if there was
        none, and in rows of an earlier version. Rows are written up to a second after an attempt
        has ended.

        Raises NotAQueue or StoreError if the files can't be used.
        """
        found = (
            sorted(self.store.history(job_id), key=lambda a: a.ended_at) if is_id(job_id) else []
        )
        self._report_skipped_history()
        return [attempt.as_dict() for attempt in found]

    # -- what running and finished jobs have to say --

    def progress(self, job_id: str) -> ProgressDict | None:
        """Return how far a running job is; None if it isn't running, or hasn't reported.

        The keys are `done`, `total` (None if it is unknown), `note`, `at` (when the job reported
        that) and `started_at` (when its attempt was started; both in Unix seconds), and
        `seconds_left`: an estimate, which assumes a steady speed; None without a `total`. Reports
        are made by `Job.progress`.

        Raises JobNotFound if there is no such job, NotAQueue or StoreError if the files can't be
        used.
        """
        row = self.store.find(job_id) if is_id(job_id) else None
        if row is None or not has_json(row):
            raise _not_found(job_id, self.path)
        found = self.store.progress([row]).get(row.id)
        return found.as_dict(self.now()) if found else None

    def output(self, job_id: str, attempt: int | None = None) -> str | None:
        """Return the last 64 KiB that a job has printed to stdout and stderr, in one attempt.

        That is its latest attempt that has printed anything, or number `attempt`. Only attempts in
        a process of their own are kept, such as those of a handler with a `timeout`, and only when
        they have ended. Returns None if nothing is kept. Bytes that aren't UTF-8 are lone
        surrogates in the text (`encode("utf-8", "surrogateescape")` returns the bytes).

        Raises InvalidArgument for an invalid `attempt`, NotAQueue or StoreError if the files can't
        be used.
        """
        if attempt is not None:
            check_count(attempt, "attempt", InvalidArgument)
        found = self.store.output(job_id, attempt) if is_id(job_id) else None
        return unescape(found.text) if found else None

    def metrics(self, window: float | timedelta = 3600) -> dict[str, Any]:
        """Return figures about the jobs now, and about attempts that ended in the last `window`.

        `window` is seconds or a `timedelta`. `jobs`: how many jobs have each status. `paused`: how
        many pending jobs are of a paused type. `oldest_pending`: for how many seconds the first
        due job has been waiting; 0 if none is due. `window`: the seconds that the rest covers;
        less than asked for if the history is shorter. `types` has, for each type, `attempts` (how
        many ended, by outcome), `rate` (attempts per second), `waiting` (seconds from `due_at`, a
        whole second, to the handler's start) and `running` (seconds that handlers ran), both with
        `p50`, `p95`, `p99` (None without attempts), `sum` and `count`; and `oldest_pending`.

        Raises InvalidArgument for an invalid `window`, NotAQueue or StoreError if the files can't
        be used.
        """
        seconds = check_seconds(window, "window", above=0)
        now = self.now()
        attempts = self.store.history(since=now - seconds)
        summary = load(_summary)(self.store, now)
        found: dict[str, Any] = load(_metrics).measure(summary, attempts, now, seconds)
        self._report_skipped_history()
        return found

    def _report_skipped_history(self) -> None:
        """Log rows of the history that can't be read; not again until there are more of them."""
        log_lines = load(_log_lines)
        lines = self.store.skipped_history
        if len(lines) > self._skipped_history_rows and (log := log_lines.logger()):
            log_lines.skipped_history(log, self.path, lines)
        self._skipped_history_rows = len(lines)

    def write_metrics(self, path: str | os.PathLike[str], window: float | timedelta = 3600) -> None:
        """Write the figures of `metrics` to a file for Prometheus' node_exporter.

        Its textfile collector reads the files in its directory whose names end in `.prom`. The
        file is replaced atomically, and readable by all.

        Raises InvalidArgument if the name doesn't end in `.prom`, NotAQueue if the path belongs to
        a file that isn't one of these, StoreError if the system can't write. Then the file is
        unchanged.
        """
        prometheus = load(_prometheus)
        place = os.path.abspath(os.fspath(path))
        prometheus.check_path(place)
        prometheus.write(place, prometheus.to_text(self.metrics(window)))


# -- imported on first use --


def _summary() -> type[Summary]:
    from dbbasic_queue.monitoring.summary import Summary

    return Summary


def _archive() -> ModuleType:
    from dbbasic_queue.store.writing import archive

    return archive


def _metrics() -> ModuleType:
    from dbbasic_queue.monitoring import metrics

    return metrics


def _schedule_file() -> ModuleType:
    from dbbasic_queue.store import schedule_file

    return schedule_file


def _prometheus() -> ModuleType:
    from dbbasic_queue.monitoring import prometheus

    return prometheus


def _log_lines() -> ModuleType:
    from dbbasic_queue.passes import log_lines

    return log_lines


def _http() -> ModuleType:
    from dbbasic_queue.passes import http

    return http


def _waiting() -> Callable[..., Awaitable[JobDict | None]]:
    from dbbasic_queue.waiting import wait

    return wait


def _plan() -> Callable[..., Pass | Supervisor]:
    from dbbasic_queue.passes.plan import plan

    return plan


def _not_found(job_id: object, path: str) -> JobNotFound:
    return JobNotFound(f"unknown job_id {job_id!r}: {path} has no such job")


def _polls(timeout: float | timedelta) -> Iterator[float]:
    """Yield how long to sleep before each look at a job: first 0, and the last at the timeout."""
    end = time.monotonic() + check_seconds(timeout, "timeout", above=-math.inf)
    yield 0
    pause = _FIRST_POLL_SECONDS
    while (left := end - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.5, _LONGEST_POLL_SECONDS)
