"""What programs do before the power fails, and what they were promised by then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from power import Killed, Recorder

from dbbasic_queue import Backoff, Delay, Fail, Handler, Queue
from dbbasic_queue.passes.ticker import Ticker
from dbbasic_queue.store.disk import openfile
from dbbasic_queue.store.writing.queue_files import QueueFiles

NOW = 1_700_000_000
MONTH = 30 * 86_400
BACKOFF = 300
"""longer than any wait after an attempt, in seconds"""
FINAL = ("completed", "failed", "cancelled")
MAX_ATTEMPTS = 3
ARCHIVE = "archive.tsv"


def done(payload: dict[str, Any]) -> dict[str, Any]:
    """A handler's result. It is as long as the payload, so that its record spans sectors."""
    return {"done": payload["n"], "text": payload.get("text", "")[::-1]}


class Session:
    """A program that uses a queue, and records what it was promised."""

    def __init__(self, root: Path, recorder: Recorder) -> None:
        self.path = root / "data" / "queue.tsv"
        self.recorder = recorder
        self.now = float(NOW)
        self.deadly = True
        self.numbers = max(recorder.facts.started, default=0)
        self.queue = self.open()
        with recorder.unrecorded():
            self.reader = Queue(self.path)

    def open(self) -> Queue:
        return Queue(self.path, clock=lambda: self.now)

    def read_final_jobs(self) -> None:
        """Record the jobs that a reader sees as final: that must not change any more."""
        facts = self.recorder.facts
        with self.recorder.unrecorded():
            for job in self.reader.jobs():
                if job["status"] in FINAL:
                    facts.final[job["id"]] = job
        self.recorder.promise()

    def payload(self, do: str, run_at: int | None = None, **more: Any) -> dict[str, Any]:
        self.numbers += 1
        due = int(self.now) if run_at is None else run_at
        payload = {"n": self.numbers, "do": do, **more}
        self.recorder.facts.started[self.numbers] = {"payload": payload, "run_at": due}
        self.recorder.promise()
        return payload

    def keep(self, job_id: str, number: int) -> str:
        self.recorder.facts.kept[job_id] = number
        self.recorder.promise()
        return job_id

    def enqueue(
        self,
        do: str,
        run_at: int | None = None,
        job_id: str | None = None,
        queue: Queue | None = None,
        **more: Any,
    ) -> str:
        payload = self.payload(do, run_at, **more)
        job_id = (queue or self.queue).enqueue("step", payload, run_at, job_id=job_id)
        return self.keep(job_id, payload["n"])

    def enqueue_many(self, do: str, count: int, **more: Any) -> list[str]:
        payloads = [self.payload(do, **more) for _ in range(count)]
        ids = self.queue.enqueue_many("step", payloads)
        for job_id, payload in zip(ids, payloads, strict=True):
            self.recorder.facts.kept[job_id] = payload["n"]
        self.recorder.promise()
        return ids

    def edit(self, job_id: str, **more: Any) -> None:
        """Replace a pending job's payload: until the call returns, it is the old or new one."""
        facts = self.recorder.facts
        number = facts.kept[job_id]
        old = facts.started[number]
        new = old["payload"] | more
        facts.started[number] = old | {"or": new}
        self.recorder.promise()
        assert self.queue.edit_job(job_id, new)
        facts.started[number] = old | {"payload": new}
        self.recorder.promise()

    def cancel(self, job_id: str) -> None:
        assert self.queue.cancel_job(job_id)
        self.read_final_jobs()

    def chosen(self, *statuses: str) -> dict[str, int]:
        """Return id -> number of the jobs that have one of these statuses now."""
        with self.recorder.unrecorded():
            jobs = [job for job in self.reader.jobs() if job["status"] in statuses]
        return {job["id"]: job["payload"]["n"] for job in jobs}

    def requeue(self, *statuses: str) -> None:
        """Requeue the only cancelled job, or all failed ones."""
        jobs = self.chosen(*statuses)
        facts = self.recorder.facts
        for job_id, number in jobs.items():
            facts.final.pop(job_id, None)
            facts.attempts.pop(job_id, None)
            facts.uncertain.add(job_id)
            facts.when.setdefault(number, []).append(int(self.now))
        self.recorder.promise()
        if statuses == ("failed",):
            assert self.queue.requeue_failed() == len(jobs) > 1
        else:
            (job_id,) = jobs
            assert self.queue.requeue(job_id)
        facts.requeued.update(dict.fromkeys(jobs, int(self.now)))
        self.recorder.promise()

    def remove(self, *statuses: str, archive: bool) -> list[str]:
        """Remove all jobs with these statuses; return their ids."""
        jobs = self.chosen(*statuses)
        facts = self.recorder.facts
        for job_id, number in jobs.items():
            for promised in (facts.kept, facts.final, facts.attempts, facts.requeued):
                promised.pop(job_id, None)
            if archive:
                facts.leaving.add(number)
        self.recorder.promise()
        if archive:
            assert statuses == FINAL
            place = self.path.with_name(ARCHIVE)
            assert self.queue.purge(0, archive=place) == len(jobs) > 1
        else:
            assert statuses == ("failed",)
            assert self.queue.clear_failed() == len(jobs) > 1
        facts.removed.update(jobs.values())
        self.recorder.promise()
        return list(jobs)

    def pause(self, *job_types: str) -> None:
        for job_type in job_types:
            assert self.queue.pause(job_type)
            self.recorder.facts.paused += (job_type,)
            self.recorder.promise()

    def delay(self, job_id: str, payload: dict[str, Any], seconds: int) -> None:
        """Raise Delay: from here on the attempt may be returned."""
        facts = self.recorder.facts
        facts.attempts[job_id] -= 1
        facts.when.setdefault(payload["n"], []).append(int(self.now) + seconds)
        self.recorder.promise()
        raise Delay(seconds, "too\tearly")

    def step(self, payload: dict[str, Any]) -> Any:
        facts = self.recorder.facts
        own_id = ""
        with self.recorder.unrecorded():
            for job in self.reader.jobs():
                if isinstance(job["payload"], dict) and job["payload"].get("n") == payload["n"]:
                    own_id = job["id"]
                    facts.attempts[own_id] = job["attempts"]
        self.read_final_jobs()  # by now the outcomes of earlier jobs are on the disk
        if payload["do"] == "give up":
            raise Fail(f"never {payload['n']}")
        if payload["do"] == "delay" and self.now < NOW + 100:
            self.delay(own_id, payload, 120)
        if payload["do"] == "fail":
            raise ValueError(f"no\tsuch\nuser {payload['n']}")
        if payload["do"] == "nest":
            self.enqueue("ok", queue=self.queue)
        if payload["do"] == "die" and self.deadly:
            self.recorder.calls_until_death = 0
        return done(payload)

    def run_pass(self, queue: Queue | None = None, handler: Handler | None = None) -> None:
        handlers = {"step": handler or self.step}
        # Otherwise, on a busy machine, a second thread could write while the recorder is paused.
        with patch.object(Ticker, "start_once", lambda _: None):
            (queue or self.queue).process_jobs(handlers, max_attempts=MAX_ATTEMPTS)
        self.read_final_jobs()

    def die_in(self, act: Callable[[], object]) -> None:
        """Run `act`, in which this process dies, and go on as another process."""
        with pytest.raises(Killed):
            act()
        for file in list(openfile._to_close_after_fork):  # a dead process releases its slot's lock
            file.close()
        self.queue.close()
        self.recorder.calls_until_death = None
        self.queue = self.open()


# -- the workloads -----------------------------------------------------------------------------


def first_steps(s: Session) -> None:
    """The directory and all files are new; each outcome occurs once."""
    s.enqueue("ok")
    s.enqueue("fail", job_id="mine")
    s.enqueue("nest")
    future = s.enqueue("ok", run_at=NOW + MONTH)
    s.run_pass()
    s.enqueue_many("ok", 4)
    s.cancel(future)
    s.now += 200
    s.run_pass()
    s.now += 500
    s.enqueue("ok", job_id="later")
    s.run_pass()


def bulk(s: Session) -> None:
    """Writes of several sectors, batches of claims, and folds in between."""
    s.enqueue_many("ok", 12, text="x" * 300)
    s.enqueue_many("fail", 3, text="é" * 500)
    s.run_pass()
    waiting = s.enqueue("ok", run_at=NOW + MONTH, text="y" * 5000)
    s.enqueue_many("nest", 2)
    s.now += 130
    s.run_pass()
    s.cancel(waiting)
    s.now += 250
    s.run_pass()


def two_processes(s: Session) -> None:
    """Between an enqueue's write and its sync, another process claims, runs and folds."""
    other = s.open()
    s.enqueue("ok")
    s.recorder.before_sync = lambda: s.run_pass(other)
    s.enqueue("ok")
    first = s.enqueue("ok", run_at=NOW + MONTH)
    s.recorder.before_sync = lambda: other.cancel_job(first)
    s.enqueue("fail")
    s.read_final_jobs()
    s.recorder.before_sync = lambda: s.enqueue("ok", queue=other)
    s.enqueue("nest")
    s.now += 10
    s.run_pass(other)
    s.enqueue_many("ok", 3)
    s.run_pass()


def kills(s: Session) -> None:
    """Processes die in a handler, before a write to the journal and in a fold; others go on."""
    s.enqueue("ok")
    s.enqueue("die")
    s.die_in(s.run_pass)
    s.enqueue("fail")
    for _ in range(MAX_ATTEMPTS - 1):
        s.run_pass()  # recovers the job that has killed the last pass
        s.now += BACKOFF
        s.die_in(s.run_pass)
    s.run_pass()
    s.enqueue_many("ok", 3)
    s.recorder.calls_until_death = 9
    s.die_in(s.run_pass)
    s.run_pass()
    s.read_final_jobs()


def journal_only(s: Session) -> None:
    """Like a long queue: until the pass ends, changes are only in the journal."""
    assert hasattr(QueueFiles, "is_fold_cheap")
    with patch.object(QueueFiles, "is_fold_cheap", lambda *_: False):
        s.enqueue("ok", text="abc" * 600)
        s.enqueue_many("fail", 2)
        s.enqueue("nest")
        s.run_pass()
        waiting = s.enqueue("ok", run_at=NOW + MONTH)
        s.cancel(waiting)
        s.enqueue("die", text="xyz" * 300)
        s.enqueue("ok")
        for _ in range(MAX_ATTEMPTS):
            s.die_in(s.run_pass)
            s.run_pass()
            s.now += BACKOFF
        s.run_pass()


def by_hand(s: Session) -> None:
    """Invalid lines, one with a NUL, are moved away; an id is used again."""
    s.enqueue("ok", job_id="again")
    s.run_pass()
    bad = [b"no job at all", b"\0\0\0 zeros \xff", b"x\ty\t{}\tdone\t1\t1\t0\t\t"]
    fd = os.open(s.path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"\n".join(bad) + b"\n")
    os.fdatasync(fd)
    os.close(fd)
    s.recorder.facts.lines += bad
    s.recorder.promise()
    s.enqueue("ok")
    s.run_pass()
    s.enqueue("nest")
    s.run_pass()
    assert s.queue.remove_unreadable() == 2
    s.enqueue("ok")
    s.run_pass()


def policies(s: Session) -> None:
    """Handlers with a policy delay, fail for good and retry; other types are paused."""
    policy = Handler(s.step, max_attempts=2, backoff=Backoff(first=10))
    s.enqueue_many("delay", 2)
    s.enqueue("give up")
    s.enqueue("fail")
    s.run_pass(handler=policy)
    s.pause("first", "second")
    s.now += 60
    s.enqueue("delay")
    s.run_pass(handler=policy)
    s.now += 200
    s.run_pass(handler=policy)


def requeues(s: Session) -> None:
    """Failed and cancelled jobs are requeued; some of their outcomes are only in the journal."""
    s.enqueue_many("give up", 2, text="r" * 300)
    s.enqueue_many("ok", 2)
    waiting = s.enqueue("ok", run_at=NOW + MONTH)
    with patch.object(QueueFiles, "is_fold_cheap", lambda *_: False):
        s.run_pass()
        s.cancel(waiting)
        s.now += 60
        s.requeue("cancelled")
        s.enqueue("give up")
        s.run_pass()
        s.now += 60
        s.requeue("failed")
        s.run_pass()
        s.enqueue("ok")
        s.cancel(s.enqueue("ok", run_at=NOW + MONTH))
        s.now += 60
        s.requeue("failed")
        s.requeue("cancelled")


def purges(s: Session) -> None:
    """Finished jobs are archived or removed, and their ids are used again."""
    with patch.object(QueueFiles, "is_fold_cheap", lambda *_: False):
        for n in range(4):
            s.enqueue("ok", job_id=f"own.{n}", text="p" * 200)
        waiting = s.enqueue("ok", run_at=NOW + 10)
        s.run_pass()
        s.cancel(waiting)
        s.now += 60
        gone = s.remove(*FINAL, archive=True)
        s.enqueue("ok", job_id=gone[0])
        s.enqueue_many("give up", 2)
        s.run_pass()
        s.now += 60
        gone = s.remove("failed", archive=False)
        s.enqueue("ok", job_id=gone[1])
        s.enqueue("fail")
        s.run_pass()
        s.cancel(s.enqueue("ok", run_at=NOW + 130))
        s.now += 60
        s.remove(*FINAL, archive=True)
        s.enqueue("ok", job_id="own.2")
        s.run_pass()


def at_most_once(s: Session) -> None:
    """Another process finds jobs before their enqueue is synced, and is given their ids."""
    other = s.open()
    s.enqueue("ok")
    for arguments in ({"unique": "pending"}, {"job_id": "own", "exist_ok": True}):
        payload = s.payload("ok", text="f" * 300)

        def find(how: dict[str, Any] = arguments, payload: dict[str, Any] = payload) -> None:
            s.keep(other.enqueue("step", payload, **how), payload["n"])

        s.recorder.before_sync = find
        s.keep(s.queue.enqueue("step", payload, **arguments), payload["n"])
        find()
    s.run_pass()
    again = s.payload("ok")
    for queue in (s.queue, other, s.queue):
        s.keep(queue.enqueue("step", again, unique="pending"), again["n"])
    s.run_pass()


def edits(s: Session) -> None:
    """Payloads are replaced, while the changes of other jobs are only in the journal."""
    with patch.object(QueueFiles, "is_fold_cheap", lambda *_: False):
        first = s.enqueue("ok", text="a" * 300)
        retried = s.enqueue("fail", text="b" * 300)
        waiting = s.enqueue("ok", run_at=NOW + MONTH, text="c")
        gone = s.enqueue("ok", run_at=NOW + MONTH)
        s.edit(first, text="A" * 900)
        s.cancel(gone)
        s.edit(waiting, text="C" * 600)
        s.run_pass()
        s.edit(retried, text="")
        s.edit(waiting, text="c" * 10)
        s.now += 200
        s.run_pass()


WORKLOADS = [
    first_steps,
    bulk,
    two_processes,
    journal_only,
    kills,
    by_hand,
    policies,
    requeues,
    purges,
    at_most_once,
    edits,
]


def record(work: Callable[[Session], None], root: Path) -> Recorder:
    recorder = Recorder(root)
    with recorder.recording():
        recorder.promise()
        work(Session(root, recorder))
    return recorder
