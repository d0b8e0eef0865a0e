"""What the attacked processes do: scripts over a queue, and a log of every call and effect.

The log is one file outside of the queue, one JSON line an event, each appended with one write as
it happens: what stands in it was so before the process died, in this order among all processes.

    call     key operation run_at     it is about to be called
    done     key operation value      it has returned
    raised   key operation type errno filename is-a-QueueError message
    start    key clock                its handler is entered
    end      key                      its handler is left
    outcome  id status attempt        the pass has reported it
    had      key attempts             attempts that were begun before the log was
    clock    seconds                  the clock has been set
    error    site                     the planned error is met for the first time
    gone                              the cause of the error is gone
    dead     pid                      that process has ended (written by its parent)
    wrong    what                     the script itself has seen something wrong

A job's key is in its payload. New workloads (a purge, a requeue) are one function more in
`WORKLOADS`, and one operation more in `checks`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shim import REAL

from dbbasic_queue import Queue, QueueError

START = 1_000_000
MAX_ATTEMPTS = 3
WATCHED = 10
RETRY_AT = START + 500
HEADER = "id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"


class Log:
    """The log of one run."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = REAL["open"](path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def say(self, what: str, *rest: Any) -> None:
        line = json.dumps([os.getpid(), what, *rest]) + "\n"
        REAL["write"](self.fd, line.encode())

    def events(self) -> list[list[Any]]:
        with open(self.path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]


class _Outcomes(logging.Handler):
    """The pass reports an outcome when it is recorded: from there on it is a promise."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "job_id") and hasattr(record, "status"):
            fields = record.__dict__
            self._log.say("outcome", fields["job_id"], fields["status"], fields["attempt"])


class Bench:
    """A queue, a clock, handlers, and the log that all of them are written to."""

    def __init__(self, path: str, log: Log, now: float = START) -> None:
        self.path = path
        self.log = log
        self.now = now
        self.ids: dict[str, str] = {}
        self.pipes = (-1, -1)
        self.ticks: float | None = None
        """what the monotonic clock shows, in an attacked process"""
        self._nested = 0
        self.queue = self.open()
        self.handlers: dict[str, Callable[[Any], Any]] = {
            name.removeprefix("job_"): self._handler(getattr(self, name))
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
        self.log.say("clock", now)

    # -- calls --

    def _try(self, operation: str, key: str, call: Callable[[], Any]) -> Any:
        try:
            value = call()
        except Exception as e:  # noqa: BLE001 - whatever it is, the checks judge it
            error, name = (e.errno, e.filename) if isinstance(e, OSError) else (None, None)
            known = isinstance(e, QueueError)
            text = f"{type(e).__name__}: {e}"
            self.log.say("raised", key, operation, type(e).__name__, error, name, known, text)
            return None
        self.log.say("done", key, operation, value)
        return value

    def enqueue(
        self, key: str, job_type: str = "ok", run_at: float | None = None, own_id: str | None = None
    ) -> None:
        self.log.say("call", key, "enqueue", run_at)
        job_id = self._try(
            "enqueue",
            key,
            lambda: self.queue.enqueue(job_type, {"k": key}, run_at, job_id=own_id),
        )
        if job_id is not None:
            self.ids[key] = job_id

    def enqueue_many(self, keys: list[str], job_type: str = "ok") -> None:
        for key in keys:
            self.log.say("call", key, "enqueue", None)
        ids = self._try(
            "enqueue_many",
            " ".join(keys),
            lambda: self.queue.enqueue_many(job_type, [{"k": key} for key in keys]),
        )
        self.ids.update(zip(keys, ids or [], strict=False))

    def cancel(self, key: str) -> bool | None:
        if key not in self.ids:
            return None
        self.log.say("call", key, "cancel", None)
        done: bool | None = self._try("cancel", key, lambda: self.queue.cancel_job(self.ids[key]))
        return done

    def status(self, key: str) -> None:
        if key in self.ids:
            self._try("status", key, lambda: _status(self.queue, self.ids[key]))

    def work(self) -> dict[str, int] | None:
        counts: dict[str, int] | None = self._try(
            "pass", "", lambda: self.queue.process_jobs(self.handlers, MAX_ATTEMPTS)
        )
        return counts

    # -- handlers, by the job's type --

    def _handler(self, function: Callable[[str], Any]) -> Callable[[Any], Any]:
        def run(payload: Any) -> Any:
            key = payload["k"]
            self.log.say("start", key, self.now)
            try:
                return function(key)
            finally:
                self.log.say("end", key)

        return run

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

    def job_nest(self, key: str) -> Any:
        self._nested += 1
        self.enqueue(f"{key}.{os.getpid()}.{self._nested}")
        return False

    def job_cancels(self, key: str) -> Any:
        return self.cancel(key + ".victim")

    def job_inner(self, _: str) -> Any:
        """Make a whole pass, of another worker, while this job's pass is alive."""
        queue, self.queue = self.queue, self.open()
        try:
            return self.work() is not None
        finally:
            self.queue = queue

    def job_slow(self, _: str) -> Any:
        """Take so long that the watcher gives back and folds."""
        if self.ticks is not None:
            pause = threading.Event()
            before = REAL["stat"](self.path).st_ino
            self.ticks += 1
            while REAL["stat"](self.path).st_ino == before and self.ticks < WATCHED:
                pause.wait(0.001)
                self.ticks += 0.01
        return 1

    def job_waits(self, _: str) -> Any:
        """Tell the partner that it runs, and wait until it may end."""
        wake, ready = self.pipes
        REAL["write"](ready, b"!")
        REAL["read"](wake, 1)
        return 1


def _status(queue: Queue, job_id: str) -> str | None:
    job = queue.get_job(job_id)
    return job["status"] if job else None


@dataclass(frozen=True)
class Workload:
    """`lay` puts the files there and `ruin` more; between them a partner takes a job in hand."""

    name: str
    script: Callable[[Bench], None]
    lay: Callable[[Bench], None] = lambda _: None
    ruin: Callable[[Bench], None] | None = None
    junk: int = 0
    """lines left there that are no jobs"""
    dear: bool = False
    """whether folds look dear, so that the journal grows"""


# -- A: calls of an application, from the first one ----------------------------------------------


def _application(bench: Bench) -> None:
    bench.enqueue("a1")
    bench.enqueue_many(["a2", "a3", "a4"], "text")
    bench.enqueue("a5", own_id="own.a5")
    bench.cancel("a2")
    bench.status("a2")
    bench.enqueue("a6", run_at=START + 50_000)
    bench.cancel("a5")
    bench.queue.close()
    bench.queue = bench.open()
    bench.enqueue("a7", "flaky")
    bench.cancel("a7")
    bench.enqueue("a8", own_id="own.a8")


# -- B: passes ------------------------------------------------------------------------------------


def _row(
    key: str, job_type: str, status: str = "pending", run_at: int = 0, attempts: int = 0
) -> str:
    payload = json.dumps({"k": key})
    return f"{key}\t{job_type}\t{payload}\t{status}\t{START}\t{run_at or START}\t{attempts}\t\t\n"


def _lay_file(bench: Bench, rows: str) -> None:
    os.makedirs(os.path.dirname(bench.path))
    with open(bench.path, "w", encoding="utf-8") as file:
        file.write(HEADER + rows)
    _tell_rows(bench, rows)


def _tell_rows(bench: Bench, rows: str) -> None:
    for row in rows.splitlines():
        job_id, _, _, _, _, run_at, attempts, *_ = row.split("\t")
        bench.ids[job_id] = job_id
        bench.log.say("call", job_id, "enqueue", int(run_at))
        bench.log.say("done", job_id, "enqueue", job_id)
        bench.log.say("had", job_id, int(attempts))


def _lay_passes(bench: Bench) -> None:
    rows = [
        _row("b1", "ok", run_at=START - 9),
        _row("b2", "flaky", run_at=START - 8),
        _row("b3", "bad", run_at=START - 7, attempts=1),
        _row("b4", "nest", run_at=START - 6),
        _row("b5", "odd", run_at=START - 5),
        _row("b6", "cancels", run_at=START - 4),
        _row("b6.victim", "ok", run_at=START + 100),
        _row("b7", "text", run_at=START - 3),
        _row("b8", "nobody", run_at=START - 2, attempts=2),
        _row("b9", "ok", run_at=START + 50_000),
    ]
    _lay_file(bench, "".join(rows))


def _passes(bench: Bench) -> None:
    bench.work()
    bench.set_clock(START + 1000)
    bench.work()
    bench.status("b1")


# -- C: two passes at a time, what the dead left, torn tails --------------------------------------


def record(job_id: str, state: str) -> bytes:
    body = f"{job_id}\t{state}".encode()
    return b"%b\t%08x\n" % (body, zlib.crc32(body))


def _lay_partner(bench: Bench) -> None:
    _lay_file(bench, _row("c1", "waits", run_at=START - 99))


def _ruin(bench: Bench) -> None:
    """Leave what a pass and two writers leave that die in the middle of it."""
    rows = [
        _row("c2", "ok", run_at=START - 9),
        _row("c3", "ok", run_at=START - 8),
        _row("c4", "inner", run_at=START - 7),
        _row("c5", "text", run_at=START - 6),
        _row("c6", "flaky", run_at=START - 5),
    ]
    rows += [_row(f"c{n}", "ok", run_at=START - 4) for n in range(11, 18)]
    journal = [
        record("c2", f"processing\t{START}\t{START - 9}\t1\t\t"),
        record("c3", f"processing\t{START}\t{START - 8}\t{MAX_ATTEMPTS}\told\t"),
        record("c11", f"processing\t{START}\t{START - 4}\t1\t\t"),
        record("own.c9", f"completed\t{START}\t{START}\t1\t\t7"),
        record("c5", f"completed\t{START}\t{START}\t1\t\t7")[:-4],
    ]
    _append(bench.path, "".join(rows).encode() + _row("c8", "ok").encode()[:30])
    _append(bench.path + ".journal", b"".join(journal))
    _append(bench.path + ".pass.2", b"pass\t99999\t1\nc2\t1\nc11\t1\n")
    _append(bench.path + ".pass.3", b"pass\t99998\t1\nc3\t3\nc12\t1\n")
    _tell_rows(bench, "".join(rows))
    bench.log.say("had", "c2", 1)
    bench.log.say("had", "c3", MAX_ATTEMPTS)


def _append(path: str, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)


def _overlapping_passes(bench: Bench) -> None:
    bench.enqueue("c9", own_id="own.c9")
    bench.work()
    bench.enqueue("c10")
    bench.set_clock(START + 1000)
    bench.work()


# -- D: a job that takes long ---------------------------------------------------------------------


def _lay_slow(bench: Bench) -> None:
    rows = [_row(f"d{n}", "ok", run_at=START - 20 + n) for n in range(3)]
    rows.append(_row("d3", "slow", run_at=START - 10))
    rows += [_row(f"d{n}", "ok", run_at=START - 20 + n) for n in range(11, 16)]
    _lay_file(bench, "".join(rows))


def _one_pass(bench: Bench) -> None:
    bench.work()


# -- E: a long queue: a fold waits for the end of the pass ----------------------------------------


def _calls_and_passes(bench: Bench) -> None:
    bench.enqueue("b10", "flaky")
    bench.cancel("b9")
    bench.cancel("b1")
    bench.work()
    bench.enqueue_many(["b11", "b12"], "text")
    bench.cancel("b11")
    bench.set_clock(START + 1000)
    bench.work()


# -- what another process does meanwhile -----------------------------------------------------------


def cancel_all(bench: Bench) -> None:
    """Cancel whatever is pending."""
    queue, bench.queue = bench.queue, bench.open()
    for key in list(bench.ids):
        bench.cancel(key)
    bench.queue = queue


def make_a_pass(bench: Bench) -> None:
    """Run whatever is due."""
    queue, bench.queue = bench.queue, bench.open()
    bench.work()
    bench.queue = queue


def tear(bench: Bench) -> None:
    """Die in the middle of a line, of the file and of the journal."""
    if os.path.exists(bench.path):
        _append(bench.path, b"torn\tok\t{")
        _append(bench.path + ".journal", b"torn\tcompl")


MEANWHILE = (cancel_all, make_a_pass, tear)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("application", _application),
        Workload("passes", _passes, _lay_passes),
        Workload("overlapping", _overlapping_passes, _lay_partner, _ruin, junk=1),
        Workload("slow", _one_pass, _lay_slow),
        Workload("unfolded", _calls_and_passes, _lay_passes, dear=True),
    )
}
