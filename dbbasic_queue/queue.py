"""The queue's calls: `Queue`, and the same as functions of the default queue.

The default queue's file is looked up at each call: a `QUEUE_FILE` that the program has set, else
the environment's `DBBASIC_QUEUE_FILE`, else "data/queue.tsv". A relative path is relative to the
working directory of the call.
"""

from __future__ import annotations

import math
import os
import time

from dbbasic_queue.errors import InvalidHandlers, InvalidJob, NotAQueue, QueueError
from dbbasic_queue.handlers import is_seconds
from dbbasic_queue.job import FAILED, FINISHED, PENDING, STATUSES
from dbbasic_queue.loading import load
from dbbasic_queue.rows import (
    CheckedClock,
    Row,
    check_id,
    check_instant,
    check_type,
    is_id,
    new_row,
)
from dbbasic_queue.store.paused import ALL
from dbbasic_queue.store.store import Store
from dbbasic_queue.text import LARGEST_PAYLOAD, MAX_PAYLOAD, decode_json, encode_json, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from typing import Any, Concatenate, ParamSpec, TypeVar

    from dbbasic_queue.crew import Crew
    from dbbasic_queue.engines.protocol import Engine
    from dbbasic_queue.worker import Pass

    P = ParamSpec("P")
    R = TypeVar("R")

MAX_ATTEMPTS = 3
_FIRST_LOOK = 0.005
_LONGEST_LOOK = 0.1


class Queue:
    """A queue in a text file: safe from threads, from processes, and on both sides of a fork.

    `path` is relative to the working directory of this call; the file and its directory are
    created when the first job comes. With `fsync=False` a job survives any crash of processes,
    but not of the machine. `max_payload` bounds a payload's, and a result's, JSON in bytes.
    `clock` gives the time in Unix seconds.
    """

    _bad_attempts = 0  # lines of the history that were reported as skipped

    def __init__(
        self,
        path: str | os.PathLike[str] = "data/queue.tsv",
        *,
        fsync: bool = True,
        max_payload: int = MAX_PAYLOAD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_payload > LARGEST_PAYLOAD:
            raise InvalidJob(
                f"invalid max_payload {max_payload!r}: must be at most {LARGEST_PAYLOAD} bytes "
                "(put what is larger into a file, and its name into the payload)"
            )
        self.path = os.path.abspath(os.fspath(path))
        self.max_payload = max_payload
        self._clock = clock if clock is time.time else CheckedClock(clock)
        self._store = Store(self.path, fsync=fsync)

    @staticmethod
    def open(url_or_path: str | os.PathLike[str], **options: Any) -> Engine:
        """Return the queue at a path or URL; `options` are those of its class, such as `clock`.

        A path, or `file:PATH`, is a `Queue`. `memory:` is a new queue in this process's memory; all
        queues named `memory:NAME` in the process share their jobs. Raises NotAQueue for any other
        scheme.
        """
        scheme_of, path_of, find = load(_engines)
        scheme = scheme_of(url_or_path)
        if scheme == "file":
            return Queue(path_of(url_or_path), **options)
        return find(scheme)(url_or_path, **options)

    def close(self) -> None:
        """Close the files; the queue may be used again, and then opens them anew."""
        self._store.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it opens the same file."""
        clock = getattr(self._clock, "clock", self._clock)
        if "<" in getattr(clock, "__qualname__", ""):
            raise QueueError(
                f"cannot pickle the queue {self.path}: its clock {clock!r} is a lambda or an inner "
                "function (define it at the top level of a module)"
            )
        state = {
            **self.__dict__,
            "path": self.path,
            "_clock": self._clock,
            "fsync": self._store.fsync,
        }
        del state["_store"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        fsync = state.pop("fsync")
        self.__dict__.update(state)
        self._store = Store(self.path, fsync=fsync)

    def __enter__(self) -> Queue:
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
    ) -> str:
        """Put one job into the queue; it is on the disk on return. Returns its id.

        `payload` is any JSON value (None becomes `{}`). `run_at` is when it becomes due: Unix
        seconds, rounded up, or an aware datetime; None, or 0, is now. With a `job_id` of the
        caller's own there is at most one such job.

        Raises InvalidJob if an argument is refused, DuplicateJob if `job_id` is there already,
        StoreError if the system refuses to write; then the queue is as it was.
        """
        job_type = check_type(job_type)
        now = int(self._clock())
        due = now if run_at is None else self._instant(run_at, now)
        row_id = os.urandom(8).hex() if job_id is None else check_id(job_id)
        try:
            text = encode_json({} if payload is None else payload, self.max_payload)
        except ValueError as e:
            raise InvalidJob(f"invalid payload: {e}") from e
        self._store.add(new_row(row_id, job_type, text, now, due), job_id)
        return row_id

    def enqueue_many(
        self,
        job_type: str,
        payloads: Iterable[Any],
        run_at: float | datetime | None = None,
    ) -> list[str]:
        """Put a job for each payload into the queue: all, or on an error none.

        One lock, one write, one sync for all of them. Returns the ids, in the payloads' order.
        Raises as `enqueue` does.
        """
        job_type = check_type(job_type)
        if isinstance(payloads, (str, bytes, bytearray)) or hasattr(payloads, "keys"):
            raise InvalidJob(
                f"invalid payloads of type {type(payloads).__name__}: must be a list, or another "
                "iterable, with one payload for each job"
            )
        now = int(self._clock())
        due = now if run_at is None else self._instant(run_at, now)
        most = self.max_payload
        try:
            texts = [encode_json({} if value is None else value, most) for value in list(payloads)]
        except ValueError as e:
            raise InvalidJob(f"invalid payload: {e}") from e
        random = os.urandom(8 * len(texts)).hex()
        ids = [random[i : i + 16] for i in range(0, len(random), 16)]
        rows = [new_row(i, job_type, text, now, due) for i, text in zip(ids, texts, strict=True)]
        if rows:
            self._store.add("".join(rows))
        return ids

    @staticmethod
    def _instant(run_at: object, now: int) -> int:
        """Return when a job is due: `now` for a `run_at` of 0, as dbbasic-queue does."""
        return check_instant(run_at) or now

    def get_job(self, job_id: str) -> dict[str, Any] | None:
        """Return the job as it stands, or None where there is none; writes nothing, takes no lock.

        The keys are the nine columns; `payload` and `result` are decoded, the instants and
        `attempts` are ints, `error` is a str or None.
        """
        row = self._store.find(job_id) if is_id(job_id) else None
        return _as_dict(row) if row else None

    def cancel_job(self, job_id: str) -> bool:
        """Cancel a job that nobody has begun; on the disk on return.

        Returns True if it was pending and is `cancelled` now, else False: it is unknown, being
        run, or done.
        """
        return is_id(job_id) and self._store.cancel(job_id)

    def process_jobs(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        only: bool = False,
        linger: float = 0,
        workers: int = 1,
    ) -> dict[str, int]:
        """Make one pass: run what is due now, and record each outcome before the next job.

        `handlers` maps a job's type to a function, or coroutine function, that takes the payload
        (and, if it wants, the `Job`) and returns a JSON value or None; a `Handlers` registry or
        `Handler` objects add policies. What it raises is the job's error: the job runs again
        `60 * 2**attempt` seconds later, until `max_attempts` are used up and it is `failed`.
        `Delay` puts it off, `Fail` ends it. A type without a handler fails like an error; with
        `only`, it is left alone.

        With `linger` the pass stays for so many seconds, and picks up what becomes due within a
        tenth of a second: cron with `linger=55` needs no daemon.

        With `workers` so many jobs run at a time: plain functions in as many forked passes,
        coroutines together on one event loop.

        Returns the counts `completed`, `failed`, `retried`, `delayed` and `recovered` (found
        `processing` under a pass that is dead). Ctrl-C raises KeyboardInterrupt, SIGTERM
        SystemExit, both after a clean end.

        Raises InvalidHandlers for arguments that cannot work, QueueBusy where 64 passes run
        already, NotAQueue and StoreError where the files cannot be used.
        """
        if not is_seconds(linger):
            raise InvalidHandlers(f"linger {linger!r} is refused: it must be seconds, 0 or more")
        return self._worker(handlers, max_attempts, workers, only=only, linger=linger).run()

    def run_until_complete(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        workers: int = 1,
    ) -> dict[str, int]:
        """Run jobs until none is pending or processing, retries and delays waited for.

        Jobs of paused types are not waited for; nor, if it is called within a job, are the jobs
        that the calling job's pass is running. Otherwise as `process_jobs`; returns its counts.
        """
        return self._worker(
            handlers, max_attempts, workers, linger=math.inf, until_complete=True
        ).run()

    def _worker(
        self, handlers: Any, max_attempts: int, workers: int = 1, *, here: bool = True, **how: Any
    ) -> Pass | Crew:
        """Return a pass, or several; they are to run in this thread, unless it is not `here`."""
        check, check_thread, make_pass = load(_pass)
        check(handlers, max_attempts, workers)
        if here:
            check_thread(handlers)
        self._check_registry(getattr(handlers, "queue", None))
        settings = self._store, handlers, max_attempts, self._clock, self.max_payload
        if workers > 1:
            return load(_several)(workers, *settings, **how)
        return make_pass(*settings, **how)

    def _check_registry(self, of: object) -> None:
        """Raise InvalidHandlers if the handlers' own queue is another one."""
        if not isinstance(of, Queue) or of._store is self._store:
            return
        are_files = os.path.isabs(self.path) and os.path.isabs(of.path)
        if not are_files or os.path.realpath(of.path) != os.path.realpath(self.path):
            raise InvalidHandlers(
                f"invalid handlers: this registry enqueues into {of.path}, and this pass runs the "
                f"jobs of {self.path} (call process_jobs of the registry's queue)"
            )

    def pause(self, job_type: str | None = None) -> bool:
        """Have passes claim no job of this type, or of any; what is being run goes on.

        On the disk, in the file `queue.tsv.paused`, on return. Returns False if it was so.
        """
        return self._store.pause(ALL if job_type is None else check_type(job_type))

    def resume(self, job_type: str | None = None) -> bool:
        """Take back the `pause` of this type; without a type, every pause.

        On the disk on return. Returns False if nothing was paused so. What all types were paused
        for is not resumed for one of them.
        """
        return self._store.resume(None if job_type is None else check_type(job_type))

    def wait(self, job_id: str, timeout: float) -> dict[str, Any] | None:
        """Wait until the job is done, at most `timeout` seconds; return it as `get_job` does.

        Returns None when time is up, or where there is no such job. Done is completed, failed or
        cancelled.
        """
        for pause in _looks(timeout):
            time.sleep(pause)
            job = self.get_job(job_id)
            if job is None or job["status"] in FINISHED:
                return job
        return None

    # -- for coroutines: the same, and the event loop goes on meanwhile --

    async def aenqueue(
        self,
        job_type: str,
        payload: Any,
        run_at: float | datetime | None = None,
        *,
        job_id: str | None = None,
    ) -> str:
        """Do as `enqueue` does. A caller that is cancelled meanwhile may have put the job in."""
        import asyncio

        return await asyncio.to_thread(self.enqueue, job_type, payload, run_at, job_id=job_id)

    async def aget_job(self, job_id: str) -> dict[str, Any] | None:
        """Do as `get_job` does."""
        import asyncio

        return await asyncio.to_thread(self.get_job, job_id)

    async def await_job(self, job_id: str, timeout: float) -> dict[str, Any] | None:
        """Do as `wait` does."""
        import asyncio

        for pause in _looks(timeout):
            await asyncio.sleep(pause)
            job = await self.aget_job(job_id)
            if job is None or job["status"] in FINISHED:
                return job
        return None

    # -- living with the queue: each is one atomic change; none touches what is being run --

    def requeue(self, job_id: str) -> bool:
        """Make a failed or cancelled job pending again: attempts 0, due now. False if it is not."""
        return is_id(job_id) and self._store.requeue(self._clock(), job_id=job_id) == 1

    def requeue_failed(self, job_type: str | None = None) -> int:
        """Requeue all failed jobs, or those of a type; return how many."""
        return self._store.requeue(self._clock(), job_type=job_type)

    def clear_failed(self, job_type: str | None = None) -> int:
        """Take all failed jobs, or those of a type, out of the queue; return how many."""
        return self._store.remove(
            lambda row: row.state.status == FAILED and job_type in (None, row.type)
        )

    def remove_type(self, job_type: str) -> int:
        """Take all jobs of a type out of the queue but those being run; return how many."""
        return self._store.remove(lambda row: row.type == job_type)

    def purge(
        self,
        older_than: float,
        status: str | None = None,
        *,
        archive: str | os.PathLike[str] | None = None,
    ) -> int:
        """Take finished jobs out that were due more than `older_than` seconds ago; return how many.

        Where a job came after it was due, what counts is when it came. Only those with this status
        (completed, failed or cancelled), if given. With `archive`, their rows are on the disk at
        the end of that TSV file before they leave the queue; a crash between the two leaves them in
        both. Several queues may share an archive.

        Raises InvalidJob for an argument that can't be used, NotAQueue if another file has the
        archive's name, QueueBusy if another purge has been writing it for a minute, StoreError if
        the system refuses; then the queue is as it was.
        """
        if not is_seconds(older_than):
            raise InvalidJob(f"older_than {older_than!r} is refused: it must be seconds, 0 or more")
        if status is not None and status not in FINISHED:
            raise InvalidJob(f"status {status!r} is refused: it must be one of {FINISHED}")
        statuses = FINISHED if status is None else (status,)
        path = None if archive is None else self._archive_path(archive)
        before = self._clock() - older_than

        def is_old(row: Row) -> bool:
            state = row.state
            # A job that was to go before all others may have an instant long ago.
            return state.status in statuses and max(state.run_at, state.created_at) < before

        return self._store.remove(is_old, archive=path)

    def _archive_path(self, archive: str | os.PathLike[str]) -> str:
        """Return the archive's path; raises InvalidJob for a name that an archive can't have."""
        path = os.path.abspath(os.fspath(archive))
        name = os.fspath(archive)
        if path.endswith(".gz"):
            raise InvalidJob(
                f"invalid archive {name!r}: archives are plain TSV files now (name one that "
                "doesn't end in .gz; logrotate can compress it, and zcat still reads this one)"
            )
        if f"{os.path.realpath(path)}.".startswith(os.path.realpath(self.path) + "."):
            raise InvalidJob(
                f"invalid archive {name!r}: this is a file of the queue (name another)"
            )
        return path

    def jobs(
        self, status: str | None = None, job_type: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Iterate over the jobs in the file's order, as `get_job` gives them.

        Only those with this status, and of this type, where given. Raises ValueError for a
        status that no job can have.
        """
        if status is not None and status not in STATUSES:
            raise InvalidJob(f"status {status!r} is refused: it must be one of {STATUSES}")
        return self._jobs(status, job_type)

    def _jobs(self, status: str | None, job_type: str | None) -> Iterator[dict[str, Any]]:
        for row in self._store.rows():
            if status in (None, row.state.status) and job_type in (None, row.type):
                job = _as_dict(row)
                if job is not None:
                    yield job

    def counts(self) -> dict[str, int]:
        """Return how many jobs have each of the five statuses; `paused` of the pending are."""
        counts = dict.fromkeys((*STATUSES, "paused"), 0)
        paused = self._store.paused()
        for row in self._store.rows():
            status = row.state.status
            counts[status] += 1
            if status == PENDING and (ALL in paused or row.type in paused):
                counts["paused"] += 1
        return counts

    # -- lines of the file that are not jobs --

    def unreadable(self) -> Iterator[dict[str, Any]]:
        """Iterate over the lines of the file that are not jobs, in the file's order.

        No pass runs them, and no other call shows them. The keys are `line` (its number in the
        file), `reason`, and `text` (its first 200 characters, escaped). Takes no lock, unless the
        last line has no end: then it is looked at again under the lock.
        """
        for found in self._store.unreadable():
            yield found.as_dict()

    def remove_unreadable(self) -> int:
        """Move the lines that are not jobs to `queue.tsv.rejected`; return how many.

        All are moved by one rewrite, and on the disk on return; a crash may leave them in both
        files. Raises StoreError if the system refuses; then the queue is as it was.
        """
        return self._store.remove_unreadable()

    # -- the history, `queue.tsv.attempts`: a row for each attempt that has ended --

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return the attempts of a job that have ended, as far as the history goes; oldest first.

        The keys are the history's columns: `id`, `type`, `attempt` (counted from 1; one that was
        delayed or interrupted is given back, and its number comes again), `outcome` (completed,
        failed, retried, delayed, interrupted; died, with its pass; late, and so not recorded),
        `due_at` and `ended_at` (Unix seconds), `seconds` (how long the handler ran; None if it
        died), `error` and `traceback` (a str or None). A pass writes them up to a second later.

        Raises NotAQueue or StoreError where the files cannot be used.
        """
        found = (
            sorted(self._store.history(job_id), key=lambda a: a.ended_at) if is_id(job_id) else []
        )
        self._report_bad_attempts()
        return [attempt.as_dict() for attempt in found]

    def metrics(self, window: float = 3600) -> dict[str, Any]:
        """Return figures about the queue as it is, and about the attempts of the last `window` s.

        `jobs`: how many have each status. `paused`: how many pending ones are of a paused type.
        `oldest_pending`: how many seconds the job that is overdue the longest has waited, 0 where
        none is due. `window`: how many seconds the rest is about; less than was asked for where the
        history is shorter. `types` has for each type `attempts` (how many ended, by outcome),
        `rate` (the same a second), `waiting` (from due to begun; due is in whole seconds) and
        `running` (the handler's run time), both with `p50`, `p95`, `p99` (None where there is no
        attempt), `sum` and `count`, and `oldest_pending`.

        Raises NotAQueue or StoreError where the files cannot be used.
        """
        from dbbasic_queue import figures

        if not is_seconds(window, above=0):
            raise InvalidJob(f"window {window!r} is refused: it must be seconds, over 0")
        rows, paused, now = self._store.rows(), self._store.paused(), self._clock()
        attempts = self._store.history(since=now - window)
        found = figures.measure(rows, paused, attempts, now, window)
        self._report_bad_attempts()
        return found

    def _report_bad_attempts(self) -> None:
        """Log lines of the history that were skipped: once, until there are more of them."""
        from dbbasic_queue import reports

        lines = self._store.bad_attempts
        if len(lines) > self._bad_attempts and (log := reports.logger()):
            reports.bad_attempts(log, self.path, lines)
        self._bad_attempts = len(lines)

    def write_metrics(self, path: str | os.PathLike[str], window: float = 3600) -> None:
        """Write what `metrics` returns as a file for Prometheus' node_exporter.

        Its textfile collector reads the files in its directory whose names end in `.prom`. The
        file is replaced in one step, and readable by all.

        Raises InvalidJob if the name doesn't end in `.prom`, NotAQueue if a file is there that
        isn't a file of these metrics, StoreError if the system refuses; then it is as it was.
        """
        from dbbasic_queue import figures

        place = os.path.abspath(os.fspath(path))
        figures.check_path(place)
        figures.write(place, figures.to_text(self.metrics(window)))


def _engines() -> tuple[
    Callable[[Any], str], Callable[[Any], str], Callable[[str], Callable[..., Engine]]
]:
    from dbbasic_queue.engines import find, path_of, scheme_of

    return scheme_of, path_of, find


def _pass() -> tuple[Callable[..., None], Callable[..., None], Callable[..., Pass]]:
    from dbbasic_queue.worker import Pass, check, check_thread

    return check, check_thread, Pass


def _several() -> Callable[..., Pass | Crew]:
    from dbbasic_queue.crew import several

    return several


def _looks(timeout: float) -> Iterator[float]:
    """Yield how long to sleep before each look at a job, the first one at once.

    The last look is when the time is up.
    """
    if not is_seconds(timeout, above=-math.inf):  # less than none: a deadline that has passed
        raise InvalidJob(f"timeout {timeout!r} is refused: it must be seconds")
    end = time.monotonic() + timeout
    yield 0
    pause = _FIRST_LOOK
    while (left := end - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.5, _LONGEST_LOOK)


def _as_dict(row: Row) -> dict[str, Any] | None:
    """Return a job with Python values, or None where its payload is no JSON: then it is no job."""
    state = row.state
    try:
        payload = decode_json(row.payload) if row.payload else {}
    except ValueError:
        return None
    try:
        result = decode_json(state.result) if state.result else None
    except ValueError:  # left by another program; what it meant cannot be told
        result = None
    return {
        "id": row.id,
        "type": row.type,
        "payload": payload,
        "status": state.status,
        "created_at": state.created_at,
        "run_at": state.run_at,
        "attempts": state.attempts,
        "error": unescape(state.error) if state.error else None,
        "result": result,
    }


# -- the default queue -------------------------------------------------------------------------

_default: Queue | None = None


class _NotSet(str):
    """What `QUEUE_FILE` is while the program has not set it.

    A test that sets `QUEUE_FILE` and then puts this back leaves it as it was: not set.
    """


if TYPE_CHECKING:
    QUEUE_FILE: str | os.PathLike[str]
else:

    def __getattr__(name: str) -> str:
        if name != "QUEUE_FILE":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _NotSet(_file_of_environment())


def default_path() -> str:
    """Return the absolute path of the default queue's file, as it is at this call.

    Raises NotAQueue if `DBBASIC_QUEUE_FILE` can't be used.
    """
    path = globals().get("QUEUE_FILE")
    if path is None or isinstance(path, _NotSet):
        path = _file_of_environment()
    return os.path.abspath(path)


def _file_of_environment() -> str:
    value = os.environ.get("DBBASIC_QUEUE_FILE")
    return path_of(value, "DBBASIC_QUEUE_FILE") if value else "data/queue.tsv"


def path_of(value: str, name: str) -> str:
    """Return the path that a setting or option with this name means: a path, or `file:PATH`.

    A leading `~` is the home directory: a crontab doesn't expand it. Raises NotAQueue for the URL
    of something other than a file.
    """
    if ":" in value:
        from dbbasic_queue import engines

        if engines.scheme_of(value) != "file":
            raise NotAQueue(
                f"invalid {name} {value!r}: must be a path, or file:PATH (if it is the name of a "
                f"file, write ./{value})"
            )
        value = engines.path_of(value)
    return os.path.expanduser(value) if value[:1] == "~" else value


def default_queue() -> Queue:
    """Return the default queue: the one whose file is `default_path()` at this call."""
    global _default
    queue, path = _default, default_path()
    if queue is None or queue.path != path:
        queue = _default = Queue(path)
    return queue


def _of_default(method: Callable[Concatenate[Queue, P], R]) -> Callable[P, R]:
    """Return a method as a function that acts on the default queue."""

    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(default_queue(), *args, **kwargs)

    function.__name__ = function.__qualname__ = name = method.__name__
    function.__doc__ = f"Do as `Queue.{name}` does, in the default queue."
    return function


enqueue = _of_default(Queue.enqueue)
enqueue_many = _of_default(Queue.enqueue_many)
get_job = _of_default(Queue.get_job)
cancel_job = _of_default(Queue.cancel_job)
process_jobs = _of_default(Queue.process_jobs)
run_until_complete = _of_default(Queue.run_until_complete)
pause = _of_default(Queue.pause)
resume = _of_default(Queue.resume)
wait = _of_default(Queue.wait)
requeue = _of_default(Queue.requeue)
requeue_failed = _of_default(Queue.requeue_failed)
clear_failed = _of_default(Queue.clear_failed)
remove_type = _of_default(Queue.remove_type)
purge = _of_default(Queue.purge)
jobs = _of_default(Queue.jobs)
counts = _of_default(Queue.counts)
attempts = _of_default(Queue.attempts)
metrics = _of_default(Queue.metrics)
write_metrics = _of_default(Queue.write_metrics)


# Written out, so that they are coroutine functions: a web framework that is given one as a
# background task calls any other function in a thread, and drops the coroutine that it returns.


async def aenqueue(
    job_type: str,
    payload: Any,
    run_at: float | datetime | None = None,
    *,
    job_id: str | None = None,
) -> str:
    """Do as `Queue.aenqueue` does, in the default queue."""
    return await default_queue().aenqueue(job_type, payload, run_at, job_id=job_id)


async def aget_job(job_id: str) -> dict[str, Any] | None:
    """Do as `Queue.aget_job` does, in the default queue."""
    return await default_queue().aget_job(job_id)


async def await_job(job_id: str, timeout: float) -> dict[str, Any] | None:
    """Do as `Queue.await_job` does, in the default queue."""
    return await default_queue().await_job(job_id, timeout)
