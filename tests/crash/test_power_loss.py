"""The power fails at each point of each workload, and nothing that was promised is lost.

Each workload is recorded once. For each point, some of the disks that may remain after a power loss
(`power.py` says which) are written, recovered by the calls of a new process, and compared with what
the workload was promised by then. About 6,000 disks by default, 30,000 with DBBASIC_QUEUE_LONG=1;
DBBASIC_QUEUE_SEED chooses other ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from power import MODELS, Facts, Recorder, State, check_state, crash_states, lay_out
from power_workloads import (
    ARCHIVE,
    FINAL,
    MAX_ATTEMPTS,
    MONTH,
    NOW,
    WORKLOADS,
    Session,
    done,
    first_steps,
    record,
)

from dbbasic_queue import JobDict, Queue
from dbbasic_queue.model.records import decode_record, encode_record
from dbbasic_queue.model.rows import HEADER

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
SEED = int(os.environ.get("DBBASIC_QUEUE_SEED", "1"))
STATES = 30_000 if LONG else 6_000


# -- what must hold of each disk ---------------------------------------------------------------


def check(root: Path, facts: Facts) -> None:
    """Recover like a process that starts after the power loss. Raises AssertionError."""
    path = root / "data" / "queue.tsv"
    now = float(max((b["run_at"] for b in facts.started.values()), default=NOW))
    clock = min(now, NOW + MONTH / 2)
    ran: Counter[int] = Counter()
    queue = Queue(path, fsync=False, clock=lambda: clock)

    def step(payload: dict[str, Any]) -> dict[str, Any]:
        ran[payload["n"]] += 1
        number = payload["n"]
        assert number in facts.started, f"{payload} runs, but was never enqueued"
        started = facts.started[number]
        assert payload in (started["payload"], started.get("or")), f"{payload} runs, changed"
        due = min([started["run_at"], *facts.when.get(number, ())])
        assert due <= clock, f"{number} runs at {clock}, but is due at {due}"
        return done(payload)

    paused = path.with_name("queue.tsv.paused")
    types = paused.read_text("utf-8").split() if paused.exists() else []
    assert not set(facts.paused).difference(types), (
        f"{facts.paused} were paused, but only {types} are"
    )
    found = holds(queue, facts, "as found")
    queue.process_jobs({"step": step}, max_attempts=MAX_ATTEMPTS)
    holds(queue, facts, "after the first pass")
    new = queue.enqueue("new", {})
    clock += 10 * 365 * 86_400
    queue.process_jobs({"step": step, "new": lambda _: None}, max_attempts=MAX_ATTEMPTS)
    jobs = {job["id"]: job for job in queue.jobs()}
    holds(queue, facts, "in the end")
    assert jobs[new]["status"] == "completed", "a new job doesn't run"
    for job in jobs.values():
        assert job["status"] in FINAL, f"never done: {job}"
    for job_id, number in facts.kept.items():
        times = ran[number]
        was = found[job_id]["status"]
        assert times <= 1, f"{jobs[job_id]} ran {times} times"
        assert not times or job_id not in facts.final, f"{facts.final[job_id]} ran again"
        # A record without its line end counts as soon as a writer adds the end. So a cancel or a
        # requeue that didn't return may have been made or not.
        if jobs[job_id]["status"] == "cancelled":
            assert not times, f"{jobs[job_id]} ran"
        elif job_id not in facts.attempts and not (job_id in facts.uncertain and was in FINAL):
            spent = (
                jobs[job_id]["attempts"] == MAX_ATTEMPTS
            )  # all attempts were lost in crashes right after a claim
            assert times == 1 or spent, f"never run: {jobs[job_id]}"
    check_archive(queue, facts, jobs)
    queue.close()
    file = path.read_bytes()
    assert file.startswith(HEADER) and file.endswith(b"\n")
    lines = file.split(b"\n")[:-1]
    rejected = path.with_name("queue.tsv.rejected")
    aside = rejected.read_bytes().split(b"\n") if rejected.exists() else []
    for line in facts.lines:
        assert line in lines or line in aside, f"the line {line!r} is gone"
    assert not any(b"\0" in line for line in lines), "a NUL stays in the file"


def check_archive(queue: Queue, facts: Facts, jobs: dict[str, JobDict]) -> None:
    """Jobs to be archived are in the queue or in the archive, which a purge repairs."""
    archive = Path(queue.path).with_name(ARCHIVE)
    if not facts.leaving:
        assert not archive.exists() or not facts.kept, (
            "there is an archive, but nothing was archived"
        )
        return
    there = {job["payload"]["n"] for job in jobs.values() if job["type"] != "new"}
    queue.purge(0, archive=archive)
    header, *lines = archive.read_bytes().split(b"\n")
    assert header + b"\n" == HEADER and lines.pop() == b""
    whole = [line.split(b"\t") for line in lines if b"\0" not in line]
    assert all(len(columns) == 9 for columns in whole), "the archive has a part of a row"
    numbers = {n for columns in whole if (n := json.loads(columns[2]).get("n"))}
    lost = facts.leaving - numbers
    assert not lost, f"neither in the queue nor in the archive: {lost}; in the queue: {there}"


def holds(queue: Queue, facts: Facts, when: str) -> dict[str, JobDict]:
    jobs: dict[str, JobDict] = {}
    for job in queue.jobs():
        assert job["id"] not in jobs, f"{when}: {job['id']} is in the queue twice"
        jobs[job["id"]] = job
        if job["type"] == "new":
            continue
        number = job["payload"]["n"]
        assert number in facts.started, f"{when}: {job} was never enqueued"
        started = facts.started[number]
        payloads = started["payload"], started.get("or")
        assert job["payload"] in payloads, f"{when}: {job} is not {started}"
        if job["status"] == "completed":
            assert job["result"] == done(job["payload"]), f"{when}: {job} has another result"
        if job["attempts"] == 0:
            instants = [started["run_at"], *facts.when.get(number, ())]
            assert job["run_at"] in instants, f"{when}: {job} was for {instants}"
        assert number not in facts.removed, f"{when}: {job} was removed"
    for job_id, number in facts.kept.items():
        assert job_id in jobs, f"{when}: {job_id} is lost: {facts.started[number]}"
        assert jobs[job_id]["payload"]["n"] == number
        assert queue.get_job(job_id) == jobs[job_id]
    for job_id, instant in facts.requeued.items():
        assert jobs[job_id]["run_at"] >= instant, f"{when}: {jobs[job_id]} was requeued"
    for job_id, job in facts.final.items():
        # A reader may have seen a job finish whose enqueue had not returned yet.
        found = jobs.get(job_id)
        assert found == job or (found is None and job_id not in facts.kept), (
            f"{when}: {job} was final, but is {found}"
        )
    for job_id, attempt in facts.attempts.items():
        if job_id in jobs:
            assert jobs[job_id]["attempts"] >= attempt, f"{when}: an attempt was forgotten"
    return jobs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.__name__)
def test_a_power_loss_at_any_point_loses_nothing_that_was_promised(
    work: Callable[[Session], None],
    model: str,
    scratch: Path,
) -> None:
    began = time.monotonic()
    rng = random.Random(f"{SEED} {work.__name__} {model}")
    (scratch / "live").mkdir()
    recorder = record(work, scratch / "live")
    budget = STATES * 8 // 10 // (2 * len(WORKLOADS) - 1)
    label = f"{work.__name__}, {model}"
    states = []
    for state in crash_states(recorder, model, budget, rng):
        check_state(state, scratch, label, SEED, check)
        states.append(state)
    again = 0
    for state in rng.sample(states, max(len(states) // 40, 1)):
        again += crash_in_recovery(state, model, scratch, rng, label)
    print(
        f"{label}: {len(recorder.events)} points, {len(states)} disks, and {again} left "
        f"by a power loss in the recovery; seed {SEED}, {time.monotonic() - began:.1f} s",
    )


def crash_in_recovery(
    state: State, model: str, scratch: Path, rng: random.Random, label: str
) -> int:
    """The power comes back, and fails again while the first pass recovers."""
    root = scratch / "again"
    lay_out(state.tree, root)
    recorder = Recorder(root, seed=1 + state.point)
    recorder.start_with(state.tree, state.facts)
    try:
        with recorder.recording():
            session = Session(root, recorder)
            session.deadly = False
            session.now = NOW + 20 * 60.0
            session.run_pass()
            session.enqueue("ok")
            session.run_pass()
    finally:
        shutil.rmtree(root)
    states = list(crash_states(recorder, model, 12, rng))
    for second in states:
        check_state(
            second,
            scratch,
            f"{label}, recovery from event {state.point} ({state.how})",
            SEED,
            check,
        )
    return len(states)


@pytest.mark.parametrize("model", MODELS)
def test_an_id_whose_row_the_disk_has_lost_can_be_used_again(model: str, scratch: Path) -> None:
    # Another process has run the job before its enqueue was synced: the disk has its outcome only.
    journal = encode_record(b"mine", b"completed\t1700000000\t1700000000\t1\t\t")
    tree = {"data": {"queue.tsv": HEADER, "queue.tsv.journal": journal, "queue.tsv.lock": b""}}
    root = scratch / "live"
    lay_out(tree, root)
    recorder = Recorder(root)
    recorder.start_with(tree, Facts())
    with recorder.recording():
        session = Session(root, recorder)
        session.enqueue("ok", job_id="mine")
        session.enqueue("ok")
        session.run_pass()
    for state in crash_states(recorder, model, 300, random.Random(SEED)):
        check_state(state, scratch, model, SEED, check)


def test_the_recorder_sees_every_change_of_the_files(scratch: Path) -> None:
    root = scratch / "live"
    root.mkdir()
    recorder = record(first_steps, root)
    disk = recorder._now.tree()
    assert sorted(disk["data"]) == sorted(os.listdir(root / "data"))
    for name in os.listdir(root / "data"):
        assert disk["data"][name] == (root / "data" / name).read_bytes(), name


def test_a_torn_line_of_the_journal_is_not_a_record() -> None:
    line = b"a\tcompleted\t1\t1\t1\t\t\t"
    assert decode_record(line) is None
    assert decode_record(b"\0" * 40) is None
    assert decode_record(b"") is None
