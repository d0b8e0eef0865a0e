"""The power fails at each point while schedules add jobs: each instant is still added exactly once.

As in `test_power_loss.py`, a workload is recorded, and disks are built as a power loss could leave
them. Of `Facts`, `started` has the number 0 once the schedule is recorded, `kept` the ids of the
jobs that were certainly added, `final` those that a reader has seen completed, and `uncertain` and
`removed` those that a purge was called for, and was acknowledged for.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from power import MODELS, Facts, Killed, Recorder, check_state, crash_states
from power_workloads import NOW

from dbbasic_queue import Handlers, Queue
from dbbasic_queue.passes.ticker import Ticker
from dbbasic_queue.store.disk import openfile

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
STATES = 3000 if LONG else 200
SECONDS = 100
assert NOW % SECONDS == 0


def registry(work: Callable[..., Any]) -> Handlers:
    jobs = Handlers(name="program")
    jobs.handler("tick")(work)
    jobs.every(SECONDS, "tick", missed="all")
    return jobs


def number(job_id: str) -> int:
    """Return which instant after NOW a job belongs to, from 1."""
    from calendar import timegm
    from time import strptime

    return (timegm(strptime(job_id, "tick.%Y%m%dT%H%M%SZ")) - NOW) // SECONDS


class Program:
    """Processes that make passes with a schedule, and record what they were promised."""

    def __init__(self, root: Path, recorder: Recorder) -> None:
        self.path = root / "data" / "queue.tsv"
        self.recorder = recorder
        self.now = float(NOW)
        self.added = 0
        self.jobs = registry(lambda payload: 0)
        self.queue = self.open()

    def open(self) -> Queue:
        return Queue(self.path, clock=lambda: self.now)

    def run_pass(self, instants: int = 0) -> None:
        """Make a pass when this many more instants have come due."""
        self.now += instants * SECONDS
        with patch.object(Ticker, "start_once", lambda _: None):  # no second thread writes
            self.queue.process_jobs(self.jobs)
        facts = self.recorder.facts
        facts.started[0] = {}
        with self.recorder.unrecorded(), Queue(self.path) as reader:
            jobs = list(reader.jobs())
        for job in jobs:
            if number(job["id"]) > self.added or job["id"] in facts.kept:
                facts.kept[job["id"]] = number(job["id"])
                if job["status"] == "completed":
                    facts.final[job["id"]] = job
        self.added = (int(self.now) - NOW) // SECONDS
        self.recorder.promise()

    def purge(self) -> None:
        self.now += 1
        facts = self.recorder.facts
        gone = dict(facts.kept)
        facts.kept.clear()
        facts.final.clear()
        facts.uncertain.update(gone)
        self.recorder.promise()
        assert self.queue.purge(0) == len(gone) > 0
        facts.removed.update(gone.values())
        self.recorder.promise()
        self.now -= 1

    def die_in_a_pass(self, calls: int) -> None:
        """Make a pass in a process that dies after some calls; go on as another process."""
        self.recorder.calls_until_death = calls
        with pytest.raises(Killed):
            self.run_pass()
        for file in list(openfile._to_close_after_fork):  # a dead process releases its slot's lock
            file.close()
        self.queue.close()
        self.recorder.calls_until_death = None
        self.queue = self.open()


def first_instants(program: Program) -> None:
    """The directory and all files are new."""
    program.run_pass()
    program.run_pass(1)
    program.run_pass(2)
    program.run_pass(1)


def deaths(program: Program) -> None:
    """Passes die after each of their first calls; the next one finds what they have added."""
    program.run_pass()
    for calls in range(9):
        program.now += SECONDS
        program.die_in_a_pass(calls)
        program.run_pass()


def purges(program: Program) -> None:
    """The jobs of recorded instants are purged."""
    program.run_pass()
    for _ in range(3):
        program.run_pass(2)
        program.purge()
    program.run_pass(1)


def check(root: Path, facts: Facts) -> None:
    """Recover like a process that starts after the power loss. Raises AssertionError."""
    last = max([*facts.kept.values(), *facts.removed, 0]) + 3
    clock = NOW + last * SECONDS + 1
    ran: Counter[str] = Counter()
    jobs = registry(lambda payload, job: ran.update([job.id]))
    queue = Queue(root / "data" / "queue.tsv", fsync=False, clock=lambda: clock)
    for _ in range(3):
        queue.process_jobs(jobs)
    ids = [job["id"] for job in queue.jobs()]
    there = [number(job_id) for job_id in ids]
    queue.close()
    assert len(set(ids)) == len(ids), f"twice in the file: {there}"
    assert not facts.removed.intersection(there), f"removed, but there: {there}"
    assert set(facts.kept) <= set(ids), f"lost: {set(facts.kept).difference(ids)}"
    assert not set(facts.final).intersection(ran), "a completed job ran again"
    assert all(count == 1 for count in ran.values()), f"ran twice: {ran}"
    perhaps = facts.removed | {number(job_id) for job_id in facts.uncertain}
    if 0 in facts.started:
        missing = set(range(1, last + 1)).difference(there, perhaps)
        assert not missing, f"never added: {missing}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("work", [first_instants, deaths, purges], ids=lambda work: work.__name__)
def test_after_a_power_loss_each_instant_is_added_exactly_once(
    work: Callable[[Program], None], model: str, scratch: Path
) -> None:
    (scratch / "live").mkdir()
    recorder = Recorder(scratch / "live")
    with recorder.recording():
        recorder.promise()
        work(Program(scratch / "live", recorder))
    states = 0
    label = f"{work.__name__}, {model}"
    for state in crash_states(recorder, model, STATES, random.Random(f"{SEED} {label}")):
        check_state(state, scratch, label, SEED, check)
        states += 1
    print(f"{label}: {len(recorder.events)} points, {states} disks")
