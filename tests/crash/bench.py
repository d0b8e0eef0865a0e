"""The queue as the attacked processes use it, and the log of every call and effect.

The log is one file outside the queue's directory, with one JSON line per event. Each is appended
with one write when it happens, so it survives the process, in the order of all processes' events.

    call     keys operation run_at    the operation is about to be called
    done     keys operation value     it has returned the value
    raised   keys operation type errno filename is-a-QueueError message
    made     keys operation whether   it has raised or was killed; whether the change was made
    start    key clock version        the job's handler is entered; which edit wrote its payload
    end      key                      the handler returns or raises
    delay    key                      the handler raises Delay: this attempt may be returned
    outcome  id name status attempt   the pass has logged it
    final    id status                a reader has seen this status
    attempts key attempts             attempts from before the log was started
    clock    seconds                  the clock was set
    schedules                         from here on, passes have schedules
    error    site                     the planned error is raised for the first time
    over                              from here on calls succeed again
    dead     pid                      this process has ended (written by its parent)
    wrong    what                     the script itself has found a mistake

A job's key is in its payload. `run_at` of an `edit` is the version of the new payload. The
operations on finished jobs are `requeue`, `remove` and `archive`; their keys are those of the jobs
that should be changed, given the files at the call.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import cronsim  # noqa: F401 - so that attacked processes needn't import it
from disk import FINAL, SCHEDULED, Job, archive_of, read_disk
from shim import REAL

import dbbasic_queue
from dbbasic_queue import Backoff, Delay, Fail, Handler, Handlers, Queue, QueueError

START = 1_000_000
DAY = 86_400
MAX_ATTEMPTS = 3
SLOW_JOB_SECONDS = 10
"""seconds, on the attacked process's monotonic clock, that `job_slow` waits for a fold"""
RETRY_AT = START + 500
"""when `job_flaky` and `job_delays` begin to succeed"""
POLICIES: dict[str, dict[str, Any]] = {
    "twice": {"max_attempts": 2, "backoff": Backoff(first=20)},
    "often": {"max_attempts": 5, "backoff": Backoff(first=1, factor=1)},
    "prints": {"timeout": math.inf},
}
"""type -> the policy of its handler"""
SCHEDULES = {"tick": 30_000, "cron": 12 * 3600}
"""name -> seconds between the instants, which are multiples of that"""


class Log:
    """The log of one run."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = REAL["open"](path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._events: list[list[Any]] = []
        self._read = 0

    def add(self, what: str, *rest: Any, process: int | None = None) -> None:
        line = json.dumps([process or os.getpid(), what, *rest]) + "\n"
        REAL["write"](self.fd, line.encode())

    def events(self) -> list[list[Any]]:
        """Return what was added, by all processes."""
        with open(self.path, "rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        self._events += [json.loads(line) for line in new.splitlines()]
        return list(self._events)


class _Outcomes(logging.Handler):
    """Adds the outcomes that passes log to the run's log.

    A pass logs an outcome once it is recorded: from then on it is a promise.
    """

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "job_id") and hasattr(record, "status"):
            fields = record.__dict__
            name = record.args[2] if isinstance(record.args, tuple) else None
            job_id, status, attempt = fields["job_id"], fields["status"], fields["attempt"]
            self._log.add("outcome", job_id, name, status, attempt)


class Kept(dict[str, Callable[..., Any]]):
    """Handlers with a `keep`, like a registry."""

    keep: float


class Bench:
    """A queue, a clock, handlers, and the log that all of them are written to."""

    def __init__(self, path: str, log: Log, now: float = START) -> None:
        self.path = path
        self.log = log
        self.now = now
        self.ids: dict[str, str] = {}
        """key -> id of each job that was enqueued"""
        self.pipes = (-1, -1)
        """for `job_waits`: it reads from the first, to wait, and reports its start to the second"""
        self.ticks: float | None = None
        """the monotonic clock of an attacked process"""
        self._nested = 0
        self.job: dbbasic_queue.Job | None = None
        """the job that was started last"""
        self.process = 0
        """the process that makes the passes"""
        self.queue = self.open()
        self.registry: Handlers | None = None
        """the handlers with schedules, if passes have any"""
        self.handlers: dict[str, Callable[..., Any]] = {
            name.removeprefix("job_"): self._handler(name)
            for name in dir(self)
            if name.startswith("job_")
        }
        logger = logging.getLogger("dbbasic_queue")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.handlers[:] = [_Outcomes(log)]

    def open(self) -> Queue:
        return Queue(self.path, clock=lambda: self.now)

    def set_clock(self, now: float) -> None:
        self.now = now
        self.log.add("clock", now)

    # -- calls --

    def _try(self, operation: str, key: str, call: Callable[[], Any]) -> Any:
        try:
            value = call()
        except Exception as e:  # noqa: BLE001 - the checks judge it
            error, name = (e.errno, e.filename) if isinstance(e, OSError) else (None, None)
            known = isinstance(e, QueueError)
            text = f"{type(e).__name__}: {e}"
            self.log.add("raised", key, operation, type(e).__name__, error, name, known, text)
            return None
        self.log.add("done", key, operation, value)
        return value

    def enqueue(
        self,
        key: str,
        job_type: str = "ok",
        run_at: float | None = None,
        own_id: str | None = None,
        **once: Any,
    ) -> None:
        self.log.add("call", key, "enqueue", run_at)
        job_id = self._try(
            "enqueue",
            key,
            lambda: self.queue.enqueue(job_type, {"k": key}, run_at, job_id=own_id, **once),
        )
        if job_id is not None:
            self.ids[key] = job_id

    def enqueue_many(self, keys: list[str], job_type: str = "ok") -> None:
        for key in keys:
            self.log.add("call", key, "enqueue", None)
        ids = self._try(
            "enqueue_many",
            " ".join(keys),
            lambda: self.queue.enqueue_many(job_type, [{"k": key} for key in keys]),
        )
        self.ids.update(zip(keys, ids or [], strict=False))

    def cancel(self, key: str) -> bool | None:
        if key not in self.ids:
            return None
        self.log.add("call", key, "cancel", None)
        done: bool | None = self._try("cancel", key, lambda: self.queue.cancel_job(self.ids[key]))
        return done

    def stop(self, key: str) -> None:
        """Request a stop without waiting for it: the clocks of attacked processes stand still."""
        if key in self.ids:
            self.log.add("call", key, "stop", None)
            self._try("stop", key, lambda: self.queue.store.stop(self.ids[key]))

    def edit(self, key: str, version: int) -> bool | None:
        if key not in self.ids:
            return None
        self.log.add("call", key, "edit", version)
        payload = {"k": key, "v": version, "text": "x" * 100 * version}
        done: bool | None = self._try(
            "edit", key, lambda: self.queue.edit_job(self.ids[key], payload)
        )
        return done

    def status(self, key: str) -> None:
        if key in self.ids:
            self._try("status", key, lambda: _status(self.queue, self.ids[key]))

    # -- calls that change finished jobs --

    def _change(
        self, operation: str, chosen: Callable[[Job], bool], call: Callable[[], Any]
    ) -> Any:
        """Make a call that changes all `chosen` jobs, and log it; return its value.

        If the call raises, look in the files whether the change was made, and log that, too; then
        return None.
        """
        keys = read_disk(self.path).keys(chosen)
        text = " ".join(keys)
        self.log.add("call", text, operation, None)
        value = self._try(operation, text, call)
        if value is None:
            made = read_disk(self.path).made(operation, keys)
            if len(made) > 1:
                self.log.add("wrong", f"P6: {operation} of {keys} raised, and is partly made")
            elif True in made:
                self.log.add("made", text, operation, True)
        return value

    def requeue(self, key: str) -> None:
        if key in self.ids:
            self._change(
                "requeue",
                lambda job: job.key == key and job.status in ("failed", "cancelled"),
                lambda: self.queue.requeue(self.ids[key]),
            )

    def requeue_failed(self, job_type: str | None = None) -> None:
        self._change(
            "requeue",
            lambda job: job.status == "failed" and job_type in (None, job.type),
            lambda: self.queue.requeue_failed(job_type),
        )

    def clear_failed(self, job_type: str | None = None) -> None:
        self._change(
            "remove",
            lambda job: job.status == "failed" and job_type in (None, job.type),
            lambda: self.queue.clear_failed(job_type),
        )

    def remove_type(self, job_type: str) -> None:
        self._change(
            "remove",
            lambda job: job.status != "processing" and job.type == job_type,
            lambda: self.queue.remove_type(job_type),
        )

    def pause(self, job_type: str) -> None:
        self._pause("pause", job_type)

    def resume(self, job_type: str) -> None:
        self._pause("resume", job_type)

    def _pause(self, operation: str, job_type: str) -> None:
        keys = read_disk(self.path).keys(lambda job: job.type == job_type)
        self.log.add("call", " ".join(keys), operation, None)
        call = self.queue.pause if operation == "pause" else self.queue.resume
        self._try(operation, " ".join(keys), lambda: call(job_type) or True)

    def purge(self, seconds: float) -> None:
        self._change("remove", self._older(seconds), lambda: self.queue.purge(seconds))

    def archive(self, seconds: float) -> None:
        archive = archive_of(self.path)
        self._change(
            "archive",
            self._older(seconds),
            lambda: self.queue.purge(seconds, archive=archive),
        )

    def _older(self, seconds: float) -> Callable[[Job], bool]:
        before = self.now - seconds
        return lambda job: job.status in FINAL and job.run_at < before and not job.is_unrecorded

    # -- passes --

    def declare_schedules(self) -> None:
        """Let all passes have schedules, except those of `work_without_schedules`."""
        jobs = Handlers(name="program")
        for job_type, handler in self.handlers.items():
            register: Any = jobs.handler(job_type, **POLICIES.get(job_type, {}))
            register(getattr(handler, "function", handler))
        key = {"k": SCHEDULED}
        jobs.every(SCHEDULES["tick"], "ok", payload=key, name="tick", missed="all")
        rule = "0 */12 * * *"
        jobs.every(rule, "text", payload=key, name="cron", timezone="UTC", missed="all")
        self.registry = jobs
        self.log.add("schedules")

    def work_without_schedules(self) -> None:
        self._try("plain", "", lambda: self.queue.process_jobs(self.handlers, MAX_ATTEMPTS))

    def work(self) -> dict[str, int] | None:
        self.process = os.getpid()
        handlers = self.handlers if self.registry is None else self.registry
        counts: dict[str, int] | None = self._try(
            "pass", "", lambda: self.queue.process_jobs(handlers, MAX_ATTEMPTS)
        )
        return counts

    def work_and_keep(self, seconds: float) -> None:
        """Make a pass that also removes finished jobs that were due longer ago than `seconds`."""
        store, handlers = self.queue.store, Kept(self.handlers)
        handlers.keep = seconds
        remove = store.remove

        def remove_and_log(unwanted: Callable[[Any], bool], **narrowed: Any) -> Any:
            change = partial(remove, unwanted, **narrowed)
            return self._change("remove", self._older(seconds), change) or 0

        store.remove = remove_and_log  # type: ignore[assignment,method-assign]
        try:
            self._try("pass", "", lambda: self.queue.process_jobs(handlers, MAX_ATTEMPTS))
        finally:
            store.remove = remove  # type: ignore[method-assign]

    # -- handlers, by the job's type --

    def _handler(self, name: str) -> Callable[..., Any]:
        function: Callable[[str], Any] = getattr(self, name)

        def run(payload: Any, *, job: dbbasic_queue.Job) -> Any:
            key = job.id if payload["k"] == SCHEDULED else payload["k"]
            self.job = job
            process = self.process  # that of the pass, whichever process runs this
            self.log.add("start", key, self.now, payload.get("v", 0), process=process)
            try:
                return function(key)
            except Delay:
                self.log.add("delay", key, process=process)
                raise
            finally:
                self.log.add("end", key, process=process)

        policy = POLICIES.get(name.removeprefix("job_"))
        return run if policy is None else Handler(run, **policy)

    def job_ok(self, _: str) -> Any:
        return 0

    def job_text(self, _: str) -> Any:
        return {"text": "tab\t newline\n \u2028", "list": []}

    def job_odd(self, _: str) -> Any:
        return object()

    def job_flaky(self, _: str) -> Any:
        if self.now < RETRY_AT:
            raise ValueError("not\tyet\nx\ty\tz\tpending\t0\t0\t0\t\t")
        return ""

    def job_bad(self, _: str) -> Any:
        raise RuntimeError("never")

    def job_fails(self, _: str) -> Any:
        raise Fail("no use")

    def job_delays(self, _: str) -> Any:
        if self.now < RETRY_AT:
            raise Delay(300, "too early")
        return 0

    def job_twice(self, _: str) -> Any:
        raise ValueError("never")

    def job_often(self, _: str) -> Any:
        raise ValueError("never")

    def job_reports(self, _: str) -> Any:
        """Report progress: to a file that nothing depends on."""
        for done in (1, 2):
            assert self.job is not None
            self.job.progress(done, 2, "half")
        return done

    def job_prints(self, _: str) -> Any:
        """Print in a process of its own: its pass writes that to such a file, too."""
        REAL["write"](1, b"printed\n" * 9)
        return 1

    def job_revives(self, key: str) -> Any:
        self.requeue(key + ".victim")

    def job_tidies(self, _: str) -> Any:
        """Remove all other jobs of this type."""
        self.remove_type("tidies")

    def job_nest(self, key: str) -> Any:
        self._nested += 1
        self.enqueue(f"{key}.{os.getpid()}.{self._nested}")
        return False

    def job_cancels(self, key: str) -> Any:
        return self.cancel(key + ".victim")

    def job_halts(self, key: str) -> Any:
        """Have this job stopped, and its neighbour; then end as the key says."""
        self.stop(key)
        self.stop(f"{key}.next")
        if key.endswith("raises"):
            raise ValueError("stopped")
        if key.endswith("delays"):
            raise Delay(300, "stopped")
        return 0

    def job_calls(self, key: str) -> Any:
        """Enqueue an urgent job, which is to run before the others that are due."""
        self._nested += 1
        self.enqueue(f"{key}.{os.getpid()}.{self._nested}", "urgent")
        return 0

    def job_low(self, _: str) -> Any:
        return 0

    def job_urgent(self, _: str) -> Any:
        return 0

    def job_edits(self, key: str) -> Any:
        return self.edit(key + ".victim", 1)

    def job_inner(self, _: str) -> Any:
        """Make a whole pass of another worker while this job's pass is alive."""
        queue, self.queue = self.queue, self.open()
        try:
            return self.work() is not None
        finally:
            self.queue = queue

    def job_slow(self, _: str) -> Any:
        """Take so long that the ticker returns the unstarted jobs and folds."""
        if self.ticks is not None:
            pause = threading.Event()
            before = REAL["stat"](self.path).st_ino
            self.ticks += 1
            while REAL["stat"](self.path).st_ino == before and self.ticks < SLOW_JOB_SECONDS:
                pause.wait(0.001)
                self.ticks += 0.01
        return 1

    def job_waits(self, _: str) -> Any:
        """Tell the parent that it runs, and wait until the parent lets it finish."""
        wake, ready = self.pipes
        REAL["write"](ready, b"!")
        REAL["read"](wake, 1)
        return 1


def _status(queue: Queue, job_id: str) -> str | None:
    job = queue.get_job(job_id)
    return job["status"] if job else None
